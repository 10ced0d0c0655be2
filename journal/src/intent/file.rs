//! The bytes of an intent map's file, and what is taken from one that is found: the tables of `FORMAT.md`.

use std::io;

use journal_format::{GroupName, Hash, VolumeName};

use super::MarkedPage;
use crate::regions::{REGION_BYTES, RegionSet};
use crate::storage::{Storage, UpdateFile};

const SECTOR: usize = 512;
const CHECK: usize = 16;
const MAGIC: &[u8; 8] = b"3SITEINT";
const VERSION: u32 = 1;
const HEADER_NUMBER: u32 = u32::MAX;
const HEADERS: u64 = 2;
const BITS_AT: usize = 24;
/// Regions of a page.
pub(super) const PAGE_REGIONS: u64 = ((SECTOR - BITS_AT) * 8) as u64;

/// What was found in the place of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A map of the right session; pages of which no copy was whole are marked.
    Whole,
    /// Nothing.
    Absent,
    /// The disk does not give it.
    Unreadable,
    /// No header is whole and of this format.
    NoHeader,
    /// Another size of the volume, or of the file.
    OtherSize,
    /// An older session than the journal's.
    Stale,
    /// The maps had been given up.
    Untracked,
}

/// File name of a volume's map.
pub(crate) fn map_name(volume: &VolumeName) -> String {
    format!("{volume}.intent")
}

/// Where what lies in a volume's map.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    name: String,
    identity: [u8; CHECK],
    size_bytes: u64,
}

/// A map that was read.
#[derive(Debug)]
pub(super) struct ReadMap {
    pub(super) session: u64,
    pub(super) bits: RegionSet,
    pub(super) versions: Vec<u64>,
}

impl Layout {
    pub(super) fn new(group: &GroupName, volume: &VolumeName, size_bytes: u64) -> Layout {
        let identity = Hash::of(format!("{group}\0{volume}").as_bytes());
        let identity = *identity.0.first_chunk().expect("a hash is longer than its beginning");
        Layout { name: map_name(volume), identity, size_bytes }
    }

    pub(super) fn pages(&self) -> u32 {
        self.size_bytes.div_ceil(REGION_BYTES).div_ceil(PAGE_REGIONS) as u32
    }

    fn file_bytes(&self) -> u64 {
        (HEADERS + 2 * u64::from(self.pages())) * SECTOR as u64
    }

    fn copies(&self, page: u32) -> [u64; 2] {
        let first = HEADERS + u64::from(page);
        [first * SECTOR as u64, (first + u64::from(self.pages())) * SECTOR as u64]
    }

    fn check(&self, number: u32, sector: &[u8]) -> [u8; CHECK] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.identity).update(&number.to_le_bytes()).update(&sector[CHECK..]);
        *hasher.finalize().as_bytes().first_chunk().expect("a hash is longer than its beginning")
    }

    fn seal(&self, number: u32, mut sector: [u8; SECTOR]) -> [u8; SECTOR] {
        let check = self.check(number, &sector);
        sector[..CHECK].copy_from_slice(&check);
        sector
    }

    fn is_whole(&self, number: u32, sector: &[u8]) -> bool {
        sector.len() == SECTOR && sector[..CHECK] == self.check(number, sector)
    }

    fn header(&self, session: u64) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        sector[16..24].copy_from_slice(MAGIC);
        sector[24..28].copy_from_slice(&VERSION.to_le_bytes());
        sector[28..32].copy_from_slice(&(REGION_BYTES as u32).to_le_bytes());
        sector[32..40].copy_from_slice(&self.size_bytes.to_le_bytes());
        sector[40..48].copy_from_slice(&session.to_le_bytes());
        self.seal(HEADER_NUMBER, sector)
    }

    fn page(&self, page: u32, version: u64, bits: &[u8]) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        sector[16..24].copy_from_slice(&version.to_le_bytes());
        sector[BITS_AT..].copy_from_slice(bits);
        self.seal(page, sector)
    }

    /// Makes the file anew, as a whole.
    pub(super) fn create(
        &self,
        storage: &dyn Storage,
        session: u64,
        bits: &RegionSet,
        versions: &[u64],
    ) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(self.file_bytes() as usize);
        (0..HEADERS).for_each(|_| bytes.extend_from_slice(&self.header(session)));
        for _copy in 0..2 {
            for page in 0..self.pages() {
                let page_bits = page_bits(bits, page);
                bytes.extend_from_slice(&self.page(page, versions[page as usize], &page_bits));
            }
        }
        storage.write(&self.name, &bytes)
    }

    pub(super) fn write_headers(&self, file: &mut dyn UpdateFile, session: u64) -> io::Result<()> {
        let header = self.header(session);
        (0..HEADERS).try_for_each(|number| file.write_at(number * SECTOR as u64, &header))
    }

    pub(super) fn write_page(&self, file: &mut dyn UpdateFile, page: &MarkedPage) -> io::Result<()> {
        let sector = self.page(page.page, page.version, &page.bits);
        self.copies(page.page).into_iter().try_for_each(|offset| file.write_at(offset, &sector))
    }

    /// Reads a map that is at least of session `known_session`.
    pub(super) fn read(&self, storage: &dyn Storage, known_session: u64) -> Result<ReadMap, Found> {
        let limit = self.file_bytes() as usize + 1;
        let bytes = storage.read(&self.name, 0, limit).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Found::Absent,
            _ => Found::Unreadable,
        })?;
        let session = self.read_header(&bytes)?;
        if bytes.len() as u64 != self.file_bytes() {
            return Err(Found::OtherSize);
        }
        if session < known_session {
            return Err(Found::Stale);
        }
        let mut read = ReadMap { session, bits: RegionSet::new(self.size_bytes), versions: Vec::new() };
        for page in 0..self.pages() {
            let copies = self.copies(page).map(|offset| &bytes[offset as usize..][..SECTOR]);
            let whole: Vec<&[u8]> = copies.into_iter().filter(|copy| self.is_whole(page, copy)).collect();
            let first = u64::from(page) * PAGE_REGIONS;
            let last = (first + PAGE_REGIONS).min(read.bits.regions());
            for region in first..last {
                let (byte, bit) = (BITS_AT + ((region - first) / 8) as usize, 1 << ((region - first) % 8));
                if whole.is_empty() || whole.iter().any(|copy| copy[byte] & bit != 0) {
                    read.bits.insert(region);
                }
            }
            let version = |copy: &&[u8]| u64::from_le_bytes(copy[16..24].try_into().expect("8 bytes"));
            read.versions.push(whole.iter().map(version).max().unwrap_or(0));
        }
        Ok(read)
    }

    fn read_header(&self, bytes: &[u8]) -> Result<u64, Found> {
        let mut headers = bytes.chunks(SECTOR).take(HEADERS as usize);
        let header = headers.find(|sector| {
            self.is_whole(HEADER_NUMBER, sector)
                && sector[16..24] == *MAGIC
                && sector[24..28] == VERSION.to_le_bytes()
                && sector[28..32] == (REGION_BYTES as u32).to_le_bytes()
        });
        let header = header.ok_or(Found::NoHeader)?;
        if header[32..40] != self.size_bytes.to_le_bytes() {
            return Err(Found::OtherSize);
        }
        Ok(u64::from_le_bytes(header[40..48].try_into().expect("8 bytes")))
    }
}

/// The bits of a page as they are stored.
pub(super) fn page_bits(bits: &RegionSet, page: u32) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR - BITS_AT];
    let first = u64::from(page) * PAGE_REGIONS;
    for region in bits.iter_from(first).take_while(|&region| region < first + PAGE_REGIONS) {
        bytes[((region - first) / 8) as usize] |= 1 << ((region - first) % 8);
    }
    bytes
}

/// How many regions the bits of a page mark.
pub(super) fn count(bits: &[u8]) -> u32 {
    bits.iter().map(|byte| byte.count_ones()).sum()
}

/// Numbers of the regions that a page marks, in a volume of so many.
pub(super) fn regions_of_page(page: &MarkedPage, regions: u64) -> impl Iterator<Item = u64> + '_ {
    let first = u64::from(page.page).saturating_mul(PAGE_REGIONS);
    let bits = (0..PAGE_REGIONS)
        .filter(|bit| page.bits.get((bit / 8) as usize).is_some_and(|byte| byte & 1 << (bit % 8) != 0));
    bits.map(move |bit| first + bit).take_while(move |&region| region < regions)
}

#[cfg(test)]
mod tests;
