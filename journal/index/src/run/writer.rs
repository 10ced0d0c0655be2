//! Writing a run.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::header::{AGES, HEADER_BYTES, Header, RunName};
use super::{PAGE_BYTES, PAGE_ENTRIES, Pages, Reader, Run, page_offset};
use crate::error::IndexError;
use crate::filter::Filter;
use crate::location::{Entry, Fingerprint};

const BUFFER_BYTES: usize = 64 * PAGE_BYTES;

/// Samples of segment numbers that are kept; when there are as many, every second is dropped.
const SAMPLES_MAX: usize = 8192;

/// Takes entries in the order of their fingerprints. Given up, it leaves no file.
#[derive(Debug)]
pub(crate) struct Writer {
    name: RunName,
    folder: PathBuf,
    file: File,
    written_bytes: u64,
    buffer: Vec<u8>,
    fences: Vec<Fingerprint>,
    entries: u64,
    ages: Ages,
    is_finished: bool,
}

impl Writer {
    /// Begins the run of that name in the index's folder.
    pub(crate) fn new(folder: &Path, name: RunName) -> Result<Writer, IndexError> {
        let path = temporary(folder, name);
        let options = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        Ok(Writer {
            name,
            folder: folder.to_owned(),
            file: options.map_err(IndexError::io("create", &path))?,
            written_bytes: HEADER_BYTES as u64,
            buffer: Vec::with_capacity(BUFFER_BYTES + PAGE_BYTES),
            fences: Vec::new(),
            entries: 0,
            ages: Ages::default(),
            is_finished: false,
        })
    }

    /// Appends an entry, whose fingerprint is above all before it.
    pub(crate) fn push(&mut self, entry: Entry) -> Result<(), IndexError> {
        if self.entries.is_multiple_of(PAGE_ENTRIES as u64) {
            self.fences.push(entry.fingerprint);
        }
        self.buffer.extend(entry.to_bytes());
        self.ages.take(self.entries, entry.location.segment());
        self.entries += 1;
        if self.buffer.len() == BUFFER_BYTES { self.write_out() } else { Ok(()) }
    }

    /// Makes it a run; `None`, and no file, if it has no entry.
    pub(crate) fn finish(mut self) -> Result<Option<Run>, IndexError> {
        if self.entries == 0 {
            return Ok(None);
        }
        self.buffer.resize(self.buffer.len().next_multiple_of(PAGE_BYTES), 0);
        self.write_out()?;
        let (temporary, path) = (temporary(&self.folder, self.name), self.folder.join(self.name.file_name()));
        let file = self.file.try_clone().map_err(IndexError::io("duplicate", &temporary))?;
        let fences = std::mem::take(&mut self.fences).into_boxed_slice();
        let pages = Pages { file, fences, entries: self.entries };
        let filter = filter_of(&pages).map_err(IndexError::io("read", &temporary))?;
        let ages = self.ages.parts();
        self.write_ends(&pages, &filter, ages)?;
        fs::rename(&temporary, &path).map_err(IndexError::io("rename", &temporary))?;
        self.is_finished = true;
        Ok(Some(Run { path, name: self.name, ages, pages, filter }))
    }

    fn write_out(&mut self) -> Result<(), IndexError> {
        self.write_at(&self.buffer, self.written_bytes)?;
        self.written_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), IndexError> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(IndexError::io("write", &temporary(&self.folder, self.name)))
    }

    fn write_ends(&mut self, pages: &Pages, filter: &Filter, ages: [u32; AGES]) -> Result<(), IndexError> {
        debug_assert_eq!(self.written_bytes, page_offset(pages.fences.len()));
        let mut hasher = blake3::Hasher::new();
        pages.fences.iter().try_for_each(|fence| self.put_tail(&fence.0.to_le_bytes(), &mut hasher))?;
        filter.bytes().try_for_each(|block| self.put_tail(&block, &mut hasher))?;
        hasher.update(&self.buffer);
        self.write_out()?;
        let header = Header {
            name: self.name,
            entries: self.entries,
            filter_blocks: filter.block_count() as u64,
            ages,
            tail_hash: *hasher.finalize().as_bytes(),
        };
        self.write_at(&header.to_bytes(), 0)
    }

    /// Bit by bit: a copy of the whole tail would leave holes of its size in the heap.
    fn put_tail(&mut self, bytes: &[u8], hasher: &mut blake3::Hasher) -> Result<(), IndexError> {
        self.buffer.extend(bytes);
        if self.buffer.len() < BUFFER_BYTES {
            return Ok(());
        }
        hasher.update(&self.buffer);
        self.write_out()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_finished {
            // Opening removes it otherwise.
            let _ = fs::remove_file(temporary(&self.folder, self.name));
        }
    }
}

fn temporary(folder: &Path, name: RunName) -> PathBuf {
    folder.join(name.file_name()).with_extension("tmp")
}

/// The filter is made when the number of entries is known, from pages that the system still has in memory.
fn filter_of(pages: &Pages) -> std::io::Result<Filter> {
    let mut filter = Filter::for_entries(pages.entries);
    let mut reader = Reader::new(pages)?;
    while let Some(entry) = reader.current() {
        filter.insert(entry.fingerprint);
        reader.advance()?;
    }
    Ok(filter)
}

/// How old the entries are, by samples: in the order of fingerprints any sample is a random one.
#[derive(Debug, Default)]
struct Ages {
    samples: Vec<u32>,
    /// One of 2^n entries is a sample.
    stride_bits: u32,
    highest: u32,
}

impl Ages {
    fn take(&mut self, place: u64, segment: u32) {
        self.highest = self.highest.max(segment);
        if place & ((1 << self.stride_bits) - 1) != 0 {
            return;
        }
        self.samples.push(segment);
        if self.samples.len() == SAMPLES_MAX {
            let mut place = 0;
            self.samples.retain(|_| {
                place += 1;
                place % 2 == 1
            });
            self.stride_bits += 1;
        }
    }

    fn parts(&mut self) -> [u32; AGES] {
        self.samples.sort_unstable();
        let samples = &self.samples;
        let mut parts = std::array::from_fn(|i| samples[((i + 1) * samples.len()).div_ceil(AGES) - 1]);
        parts[AGES - 1] = self.highest;
        parts
    }
}
