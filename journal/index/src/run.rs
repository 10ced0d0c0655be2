//! A run: an immutable file of sorted entries, with what is kept of it in memory. `INDEX.md` states the file.

mod header;
mod reader;
mod writer;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub(crate) use self::header::{AGES, RunName};
use self::header::{HEADER_BYTES, Header};
pub(crate) use self::reader::Reader;
pub(crate) use self::writer::Writer;
use crate::filter::Filter;
use crate::location::{Entry, Fingerprint, Location};

const PAGE_BYTES: usize = 4096;
const PAGE_ENTRIES: usize = PAGE_BYTES / Entry::BYTES;

/// How many pages the interpolated place of a fingerprint is tried away from: four standard deviations in a run of 16
/// million entries, 4 * sqrt(2^24 / 4) / 256.
const GUESS_PAGES: usize = 32;

/// Entries that a look-up reads of a page: four standard deviations of the interpolated place to both sides,
/// 4 * sqrt(256 / 4). To copy a whole page takes longer than the system call.
const WINDOW_ENTRIES: usize = 64;

/// Why a file is no run.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("its name is not that of a run")]
    Name,
    #[error("its header is damaged, or of another file")]
    Header,
    #[error("its version is {0}")]
    Version(u32),
    #[error("{expected} bytes expected, {actual} found")]
    Size { expected: u64, actual: u64 },
    #[error("fences or filter are damaged")]
    Tail,
}

/// The entries of a run as they lie in its file.
#[derive(Debug)]
pub(crate) struct Pages {
    file: File,
    /// First fingerprint of each page.
    fences: Box<[Fingerprint]>,
    entries: u64,
}

impl Pages {
    /// Fingerprints that belong to a page: not below the first, below the second, of which the last page has none.
    fn bounds(&self, page: usize) -> (Fingerprint, Option<Fingerprint>) {
        (self.fences[page], self.fences.get(page + 1).copied())
    }

    /// Entries of pages that follow each other; only the last of all is not full.
    fn entries_of(&self, first: usize, count: usize) -> usize {
        (count * PAGE_ENTRIES).min(self.entries as usize - first * PAGE_ENTRIES)
    }

    /// The page that a fingerprint would be in.
    fn page_of(&self, fingerprint: Fingerprint) -> Option<usize> {
        let count = self.fences.len();
        let guess = fingerprint.part_of(count);
        let (low, high) = (guess.saturating_sub(GUESS_PAGES), (guess + GUESS_PAGES).min(count));
        let right =
            self.fences[low] <= fingerprint && self.fences.get(high).is_none_or(|&end| fingerprint < end);
        let (low, high) = if right { (low, high) } else { (0, count) };
        (low + self.fences[low..high].partition_point(|&fence| fence <= fingerprint)).checked_sub(1)
    }

    fn find(&self, fingerprint: Fingerprint) -> io::Result<Option<Location>> {
        let Some(page) = self.page_of(fingerprint) else { return Ok(None) };
        let window = self.window(page, fingerprint);
        let mut bytes = [0; WINDOW_ENTRIES * Entry::BYTES];
        let entries = &mut bytes[..window.len() * Entry::BYTES];
        self.file.read_exact_at(entries, page_offset(page) + (window.start * Entry::BYTES) as u64)?;
        match Found::of(fingerprint, entries.as_chunks().0) {
            Found::At(location) => Ok(Some(location)),
            Found::Between => Ok(None),
            Found::Below if window.start == 0 => Ok(None),
            Found::Above if window.end == self.entries_of(page, 1) => Ok(None),
            Found::Below | Found::Above => self.find_in_page(page, fingerprint),
        }
    }

    fn find_in_page(&self, page: usize, fingerprint: Fingerprint) -> io::Result<Option<Location>> {
        let mut bytes = [0; PAGE_BYTES];
        let entries = &mut bytes[..self.entries_of(page, 1) * Entry::BYTES];
        self.file.read_exact_at(entries, page_offset(page))?;
        match Found::of(fingerprint, entries.as_chunks().0) {
            Found::At(location) => Ok(Some(location)),
            Found::Between | Found::Below | Found::Above => Ok(None),
        }
    }

    /// Entries of the page among which the fingerprint is in all likelihood, if it is there.
    fn window(&self, page: usize, fingerprint: Fingerprint) -> Range<usize> {
        let count = self.entries_of(page, 1);
        let (first, end) = self.bounds(page);
        let width = end.unwrap_or(first.shard_end()).0 - first.0;
        let expected = u128::from(fingerprint.0 - first.0) * count as u128 / u128::from(width.max(1));
        let start =
            (expected as usize).saturating_sub(WINDOW_ENTRIES / 2).min(count.saturating_sub(WINDOW_ENTRIES));
        start..count.min(start + WINDOW_ENTRIES)
    }
}

/// Where a fingerprint is among entries that should be in order.
enum Found {
    At(Location),
    /// It would be among them and is not.
    Between,
    Below,
    Above,
}

impl Found {
    fn of(fingerprint: Fingerprint, entries: &[[u8; Entry::BYTES]]) -> Found {
        let entry = |place: usize| Entry::from_bytes(entries[place]);
        match entries.binary_search_by_key(&fingerprint, |bytes| Entry::from_bytes(*bytes).fingerprint) {
            Ok(place) => Found::At(entry(place).location),
            Err(0) => Found::Below,
            Err(place) if place == entries.len() => Found::Above,
            Err(_) => Found::Between,
        }
    }
}

fn page_offset(page: usize) -> u64 {
    HEADER_BYTES as u64 + (page * PAGE_BYTES) as u64
}

/// A run that can be searched.
#[derive(Debug)]
pub(crate) struct Run {
    path: PathBuf,
    name: RunName,
    ages: [u32; AGES],
    pages: Pages,
    filter: Filter,
}

impl Run {
    /// Opens a file, and checks everything except its pages.
    pub(crate) fn open(path: &Path) -> Result<Run, RunError> {
        let name = RunName::of(path).ok_or(RunError::Name)?;
        let file = File::open(path)?;
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        let header = Header::parse(&bytes)?;
        let (expected, actual) = (header.file_bytes(), file.metadata()?.len());
        if header.name != name {
            return Err(RunError::Header);
        }
        if expected != Some(actual) {
            return Err(RunError::Size { expected: expected.unwrap_or(u64::MAX), actual });
        }
        let mut tail = vec![0; header.tail_bytes() as usize];
        file.read_exact_at(&mut tail, actual - header.tail_bytes())?;
        if *blake3::hash(&tail).as_bytes() != header.tail_hash {
            return Err(RunError::Tail);
        }
        let (fences, filter) = tail.split_at(header.page_count() as usize * 8);
        let fences =
            fences.as_chunks().0.iter().map(|bytes| Fingerprint(u64::from_le_bytes(*bytes))).collect();
        let filter = Filter::from_bytes(filter.as_chunks().0);
        let pages = Pages { file, fences, entries: header.entries };
        Ok(Run { path: path.to_owned(), name, ages: header.ages, pages, filter })
    }

    /// Whether the filter lets the fingerprint pass.
    pub(crate) fn may_hold(&self, fingerprint: Fingerprint) -> bool {
        self.filter.contains(fingerprint)
    }

    /// Looks into the page that would hold the fingerprint.
    pub(crate) fn find(&self, fingerprint: Fingerprint) -> io::Result<Option<Location>> {
        self.pages.find(fingerprint)
    }

    pub(crate) fn pages(&self) -> &Pages {
        &self.pages
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn name(&self) -> RunName {
        self.name
    }

    /// About (i + 1) / 16 of the entries name a segment up to the i-th.
    pub(crate) fn ages(&self) -> &[u32; AGES] {
        &self.ages
    }

    pub(crate) fn entries(&self) -> u64 {
        self.pages.entries
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        page_offset(self.pages.fences.len())
            + (self.pages.fences.len() * 8) as u64
            + self.filter.memory_bytes()
    }

    /// What fences and filter take.
    pub(crate) fn memory_bytes(&self) -> u64 {
        (self.pages.fences.len() * 8) as u64 + self.filter.memory_bytes()
    }
}

#[cfg(test)]
mod tests;
