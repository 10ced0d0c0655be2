//! The guest's stand-in for a database: a file of pages that are rewritten in place.
//!
//! Before record `n` is appended, the pages that `n` stands for are rewritten and synced. So whoever finds record `n`
//! must find those pages as `n` or a later record left them: a recovery point that has a later write without an earlier
//! one is caught here, although each file by itself looks whole.

use crate::records::mix;

/// Size of one page, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Number of pages in the file.
pub const PAGES: u64 = 1024;

/// Pages that are rewritten for each record.
pub const PAGES_PER_RECORD: u64 = 4;

/// Size of what a page begins with: its own number and the record's, each 8 bytes, little endian.
const STAMP_BYTES: usize = 16;

/// What a page says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// Only zeros: no record has rewritten it yet.
    Unwritten,
    /// Whole, and left by the record of this number.
    Record(u64),
    /// Neither: torn, damaged, or another page's content.
    Damaged,
}

/// Returns the pages that the given record rewrites; one may come up twice.
pub fn pages_of(record: u64) -> impl Iterator<Item = u64> {
    (0..PAGES_PER_RECORD).map(move |index| mix(record * PAGES_PER_RECORD + index) % PAGES)
}

/// Returns the content of a page as the given record leaves it: a stamp, one part that does not compress, and one that
/// does. Nothing else may be in a page, so it needs no checksum.
pub fn encode(page: u64, record: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PAGE_BYTES);
    bytes.extend_from_slice(&page.to_le_bytes());
    bytes.extend_from_slice(&record.to_le_bytes());
    let mut seed = mix(page) ^ record;
    while bytes.len() < PAGE_BYTES / 2 {
        seed = mix(seed);
        bytes.extend_from_slice(&seed.to_le_bytes());
    }
    let row = format!("page {page:6} last written for record {record:12} ");
    bytes.extend(row.bytes().cycle().take(PAGE_BYTES - bytes.len()));
    bytes
}

/// Reads which record left a page as it is.
pub fn stamp(page: u64, bytes: &[u8]) -> Stamp {
    if bytes.iter().all(|byte| *byte == 0) {
        return Stamp::Unwritten;
    }
    let Some(field) = bytes.get(8..STAMP_BYTES).and_then(|field| field.try_into().ok()) else {
        return Stamp::Damaged;
    };
    let record = u64::from_le_bytes(field);
    if encode(page, record) == bytes { Stamp::Record(record) } else { Stamp::Damaged }
}

/// What every page must be when the log ends with a given record.
pub struct Expectation {
    records: u64,
    last_writer: Vec<u64>,
}

impl Expectation {
    /// Works out the last writer of every page for a log of `records` records.
    pub fn after(records: u64) -> Self {
        let mut last_writer = vec![0; PAGES as usize];
        for record in 1..=records {
            for page in pages_of(record) {
                last_writer[page as usize] = record;
            }
        }
        Expectation { records, last_writer }
    }

    /// Says whether a page's stamp is the expected one. The pages of the record after the last may already be there:
    /// they are written first.
    pub fn allows(&self, page: u64, stamp: Stamp) -> bool {
        let last = self.last_writer[page as usize];
        let next = self.records + 1;
        match stamp {
            Stamp::Unwritten => last == 0,
            Stamp::Record(record) if record == next => pages_of(next).any(|candidate| candidate == page),
            Stamp::Record(record) => record == last,
            Stamp::Damaged => false,
        }
    }
}

#[cfg(test)]
#[path = "pages/tests.rs"]
mod tests;
