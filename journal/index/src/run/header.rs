//! The first page of a run, and its name.

use std::path::Path;

use super::{PAGE_BYTES, PAGE_ENTRIES, RunError};
use crate::filter::BLOCK_BYTES;
use crate::location::SHARDS;

pub(super) const HEADER_BYTES: usize = 4096;
const HASHED_BYTES: usize = 144;
const MAGIC: [u8; 8] = *b"3SITEIDX";
const VERSION: u32 = 1;

/// Parts into which a run's entries are divided by the age of their segments.
pub(crate) const AGES: usize = 16;

/// Which flushes of a shard a run holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunName {
    pub(crate) shard: usize,
    pub(crate) newest: u64,
    pub(crate) oldest: u64,
}

impl RunName {
    pub(crate) fn file_name(self) -> String {
        format!("{:02x}-{:016x}-{:016x}.run", self.shard, self.newest, self.oldest)
    }

    pub(crate) fn of(path: &Path) -> Option<RunName> {
        let text = path.file_name()?.to_str()?;
        let mut parts = text.strip_suffix(".run")?.split('-');
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let name = RunName { shard: number()? as usize, newest: number()?, oldest: number()? };
        (name.shard < SHARDS && name.oldest <= name.newest && name.file_name() == text).then_some(name)
    }

    /// Whether everything in the other run went through this one's merge.
    pub(crate) fn covers(self, other: RunName) -> bool {
        self != other
            && self.shard == other.shard
            && self.newest >= other.newest
            && self.oldest <= other.oldest
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: RunName,
    pub(super) entries: u64,
    pub(super) filter_blocks: u64,
    pub(super) ages: [u32; AGES],
    pub(super) tail_hash: [u8; 32],
}

impl Header {
    pub(super) fn page_count(&self) -> u64 {
        self.entries.div_ceil(PAGE_ENTRIES as u64)
    }

    pub(super) fn tail_bytes(&self) -> u64 {
        self.page_count() * 8 + self.filter_blocks * BLOCK_BYTES as u64
    }

    /// Size of the whole file; `None` if no file can be so large.
    pub(super) fn file_bytes(&self) -> Option<u64> {
        let pages = self.page_count().checked_mul(PAGE_BYTES as u64 + 8)?;
        let blocks = self.filter_blocks.checked_mul(BLOCK_BYTES as u64)?;
        pages.checked_add(blocks)?.checked_add(HEADER_BYTES as u64)
    }

    pub(super) fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.name.shard as u32).to_le_bytes());
        for number in [self.entries, self.name.newest, self.name.oldest, self.filter_blocks] {
            bytes.extend(number.to_le_bytes());
        }
        self.ages.iter().for_each(|age| bytes.extend(age.to_le_bytes()));
        bytes.extend(self.tail_hash);
        bytes.extend(blake3::hash(&bytes).as_bytes());
        let mut page = [0; HEADER_BYTES];
        page[..bytes.len()].copy_from_slice(&bytes);
        page
    }

    pub(super) fn parse(page: &[u8; HEADER_BYTES]) -> Result<Header, RunError> {
        let (hashed, rest) = page.split_at(HASHED_BYTES);
        if hashed[..8] != MAGIC {
            return Err(RunError::Header);
        }
        let u32_at = |place: usize| u32::from_le_bytes(std::array::from_fn(|i| hashed[place + i]));
        let u64_at = |place: usize| u64::from_le_bytes(std::array::from_fn(|i| hashed[place + i]));
        if u32_at(8) != VERSION {
            return Err(RunError::Version(u32_at(8)));
        }
        let header = Header {
            name: RunName { shard: u32_at(12) as usize, newest: u64_at(24), oldest: u64_at(32) },
            entries: u64_at(16),
            filter_blocks: u64_at(40),
            ages: std::array::from_fn(|i| u32_at(48 + 4 * i)),
            tail_hash: std::array::from_fn(|i| hashed[112 + i]),
        };
        let whole = *blake3::hash(hashed).as_bytes() == rest[..32];
        let sensible = header.entries > 0 && header.filter_blocks > 0;
        (whole && sensible).then_some(header).ok_or(RunError::Header)
    }
}
