//! What a segment says of blocks that lie in other segments.

use super::layout::{hash_at, u32_at, u64_at};
use crate::{BLOCK_BYTES, FormatError, Generation, GroupName, Hash, SECTOR_BYTES, Sequence};

pub(super) const SOURCE_ENTRY_BYTES: usize = 112;
pub(super) const REFERENCE_ENTRY_BYTES: usize = 48;
pub(super) const PLACE_BYTES: usize = 12;
const NAME_BYTES: usize = 63;
const SOURCE_PART: &str = "the segment's list of sources";
const REFERENCE_PART: &str = "the segment's table of references";

/// A segment that others refer to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentSource {
    /// Its group.
    pub group: GroupName,
    /// Its generation.
    pub generation: Generation,
    /// Its place in the chain of its group.
    pub sequence: Sequence,
    /// Its hash.
    pub hash: Hash,
}

/// Where blocks lie in another segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockPlace {
    /// Index into the list of sources.
    pub source: u32,
    /// Index into the source's frame table.
    pub frame: u32,
    /// Offset in the decompressed frame in bytes; a multiple of 4096.
    pub offset: u32,
}

/// Consecutive blocks of another segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Where the first of them lies; the others follow it in the same frame.
    pub place: BlockPlace,
    /// Combined hash of the blocks.
    pub hash: Hash,
}

impl SegmentSource {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let name = self.group.as_str().as_bytes();
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        out.extend(std::iter::repeat_n(0, NAME_BYTES - name.len()));
        out.extend_from_slice(&self.generation.0.to_le_bytes());
        out.extend_from_slice(&self.sequence.0.to_le_bytes());
        out.extend_from_slice(&self.hash.0);
    }

    pub(super) fn decode_entry(bytes: &[u8]) -> Result<SegmentSource, FormatError> {
        let group = super::layout::padded_name(&bytes[..1 + NAME_BYTES]);
        Ok(SegmentSource {
            group: group
                .ok_or(FormatError::Rule { part: SOURCE_PART, rule: "a group's name is not valid" })?,
            generation: Generation(u64_at(bytes, 64)),
            sequence: Sequence(u64_at(bytes, 72)),
            hash: hash_at(bytes, 80),
        })
    }
}

impl BlockPlace {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.source.to_le_bytes());
        out.extend_from_slice(&self.frame.to_le_bytes());
        out.extend_from_slice(&(self.offset / SECTOR_BYTES as u32).to_le_bytes());
    }

    pub(super) fn decode_entry(bytes: &[u8], sources: usize) -> Result<BlockPlace, FormatError> {
        let rule = |rule| FormatError::Rule { part: REFERENCE_PART, rule };
        let source = u32_at(bytes, 0);
        if source as usize >= sources {
            return Err(rule("a place names a source that is not listed"));
        }
        let offset = u32_at(bytes, 8)
            .checked_mul(SECTOR_BYTES as u32)
            .filter(|&offset| u64::from(offset).is_multiple_of(BLOCK_BYTES))
            .ok_or_else(|| rule("a place is not that of a block"))?;
        Ok(BlockPlace { source, frame: u32_at(bytes, 4), offset })
    }
}

impl Reference {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        self.place.encode(out);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.hash.0);
    }

    pub(super) fn decode_entry(bytes: &[u8], sources: usize) -> Result<Reference, FormatError> {
        if u32_at(bytes, 12) != 0 {
            return Err(FormatError::Rule { part: REFERENCE_PART, rule: "a reserved field is set" });
        }
        Ok(Reference { place: BlockPlace::decode_entry(bytes, sources)?, hash: hash_at(bytes, 16) })
    }
}
