//! A run's entries in their order, for a merge.

use std::io;
use std::os::unix::fs::FileExt;

use super::{PAGE_BYTES, PAGE_ENTRIES, Pages, page_offset};
use crate::location::Entry;

/// Pages that are read at once.
const CHUNK_PAGES: usize = 64;

/// Gives the entries of a run one after the other. What is out of its place is left out.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pages: &'a Pages,
    next_page: usize,
    bytes: Vec<u8>,
    chunk: Vec<Entry>,
    place: usize,
}

impl<'a> Reader<'a> {
    /// Begins with the first entry.
    pub(crate) fn new(pages: &'a Pages) -> io::Result<Reader<'a>> {
        let mut reader = Reader { pages, next_page: 0, bytes: Vec::new(), chunk: Vec::new(), place: 0 };
        reader.fill()?;
        Ok(reader)
    }

    /// The entry it stands at; `None` behind the last.
    pub(crate) fn current(&self) -> Option<Entry> {
        self.chunk.get(self.place).copied()
    }

    pub(crate) fn advance(&mut self) -> io::Result<()> {
        self.place += 1;
        if self.place < self.chunk.len() { Ok(()) } else { self.fill() }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.place = 0;
        self.chunk.clear();
        // A chunk of damaged pages may have no entry at all.
        while self.chunk.is_empty() && self.next_page < self.pages.fences.len() {
            let count = CHUNK_PAGES.min(self.pages.fences.len() - self.next_page);
            self.bytes.resize(count * PAGE_BYTES, 0);
            self.pages.file.read_exact_at(&mut self.bytes, page_offset(self.next_page))?;
            for page in 0..count {
                self.take_page(page);
            }
            self.next_page += count;
        }
        Ok(())
    }

    fn take_page(&mut self, page: usize) {
        let (mut least, end) = self.pages.bounds(self.next_page + page);
        let stored = self.pages.entries_of(self.next_page + page, 1);
        let entries = &self.bytes[page * PAGE_BYTES..].as_chunks().0[..stored.min(PAGE_ENTRIES)];
        for entry in entries.iter().map(|bytes| Entry::from_bytes(*bytes)) {
            if entry.fingerprint >= least && end.is_none_or(|end| entry.fingerprint < end) {
                // At the highest number there is nothing left to come.
                least.0 = entry.fingerprint.0.saturating_add(1);
                self.chunk.push(entry);
            }
        }
    }
}
