//! The index as a whole.

mod merger;
mod opening;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use journal_format::with_causes;
use tracing::warn;

use self::merger::Merger;
pub use self::opening::{Discarded, Opened};
use crate::error::IndexError;
use crate::location::{Entry, Fingerprint, Location, SHARDS};
use crate::segments::{SegmentRecord, Segments};
use crate::shard::{Counters, Shard};

/// How large an index may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Entries in memory before they are written to runs, at least 256; each takes about 18 bytes.
    pub memtable_entries: usize,
    /// Entries in runs, at least 32 times those in memory. When there are more, those that name the lowest segments are given
    /// up.
    pub max_entries: u64,
}

impl Default for Options {
    /// Tables that just fit 16 hash tables of 2^16 places, and 4 TiB of unique blocks.
    fn default() -> Options {
        Options { memtable_entries: SHARDS * 57_000, max_entries: 1 << 30 }
    }
}

impl Options {
    fn check(self) -> Result<(), IndexError> {
        if self.memtable_entries < SHARDS * 16 {
            return Err(IndexError::Invalid { what: "memtable_entries", rule: "it is at least 256" });
        }
        if self.max_entries / 32 < self.memtable_entries as u64 {
            let rule = "it is at least 32 times memtable_entries";
            return Err(IndexError::Invalid { what: "max_entries", rule });
        }
        Ok(())
    }
}

/// Figures of an index. Counters begin at 0 when it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Entries, those of forgotten segments and older ones of the same block among them until they are merged.
    pub entries: u64,
    /// Runs of all 16 shards.
    pub runs: u64,
    /// Known segments.
    pub segments: u64,
    /// Size of the files.
    pub disk_bytes: u64,
    /// As [`Index::memory_bytes`] answers.
    pub memory_bytes: u64,
    /// Look-ups that answered a location.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Times that a run's filter said no.
    pub filter_negatives: u64,
    /// Times that a run's filter let a block pass that the run does not have, each of which costs the read of a page. Their
    /// share in the sum of both is the filters' false-positive rate.
    pub filter_false_positives: u64,
    /// Runs that were dropped because they could not be read.
    pub failed_runs: u64,
    /// Entries that were lost because a run could not be written.
    pub lost_entries: u64,
    /// Entries that were given up because the index was full and merging failed.
    pub dropped_entries: u64,
    /// Entries that merges read; divided by those inserted, how often an entry is written again.
    pub merged_entries: u64,
}

/// What threads share.
#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    max_entries: u64,
    shards: Vec<Shard>,
    segments: RwLock<Segments>,
}

impl Shared {
    fn segments(&self) -> RwLockReadGuard<'_, Segments> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn segments_mut(&self) -> RwLockWriteGuard<'_, Segments> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open index. All methods may be called by many threads at once. Dropping it stops a merge that is under way and forgets
/// what was inserted since the last flush; call [`Index::flush`] before to keep it.
#[derive(Debug)]
pub struct Index {
    /// What opening found.
    pub opened: Opened,
    shared: Arc<Shared>,
    merger: Merger,
    memtable_entries: usize,
    /// Released when the index is closed.
    _lock: File,
}

impl Index {
    /// Opens the index of a folder, or makes an empty one. Files that cannot be read are removed and told in
    /// [`Index::opened`].
    ///
    /// # Errors
    /// `Invalid` options; `Locked` if the folder is open already; `Io` if the folder cannot be read or written.
    pub fn open(folder: &Path, options: Options) -> Result<Index, IndexError> {
        options.check()?;
        let found = opening::open(folder, options.memtable_entries / SHARDS)?;
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            max_entries: options.max_entries,
            shards: found.shards,
            segments: RwLock::new(found.segments),
        });
        let merger = Merger::start(&shared).map_err(IndexError::io("start a thread for", folder))?;
        let memtable_entries = options.memtable_entries;
        Ok(Index { opened: found.opened, shared, merger, memtable_entries, _lock: found.lock })
    }

    /// Remembers where a block is, instead of what was known of it before. When memory is full this writes a run, of a sixteenth
    /// of what is in memory. If that fails these entries are lost and counted, and a warning is logged.
    pub fn insert(&self, hash: &[u8; 32], location: Location) {
        let fingerprint = Fingerprint::of(hash);
        let shard = self.shard(fingerprint);
        if shard.insert(Entry { fingerprint, location })
            && let Err(error) = self.flush_shard(shard, self.memtable_entries / SHARDS)
        {
            let folder = self.shared.folder.display();
            warn!(%folder, "entries of the block index are lost: {}", with_causes(&error));
        }
    }

    /// Looks a block up. The answer is a hint: another block may have the same 8 first bytes of its hash.
    pub fn lookup(&self, hash: &[u8; 32]) -> Option<Location> {
        let fingerprint = Fingerprint::of(hash);
        let is_live = |segment| self.shared.segments().live().contains(segment);
        self.shard(fingerprint).find(fingerprint, is_live)
    }

    /// Looks blocks up, and puts the answers in their order in place of what `answers` holds. For some thousands of blocks this
    /// is several times as fast as one by one.
    pub fn lookup_batch(&self, hashes: &[[u8; 32]], answers: &mut Vec<Option<Location>>) {
        answers.clear();
        answers.resize(hashes.len(), None);
        let mut wanted = [const { Vec::new() }; SHARDS];
        wanted.iter_mut().for_each(|of_shard| of_shard.reserve(hashes.len() / SHARDS * 5 / 4));
        for (place, hash) in (0..).zip(hashes) {
            let fingerprint = Fingerprint::of(hash);
            wanted[fingerprint.shard()].push((fingerprint, place));
        }
        let live = self.shared.segments().live().clone();
        for (shard, wanted) in self.shared.shards.iter().zip(wanted).filter(|(_, wanted)| !wanted.is_empty())
        {
            shard.find_many(wanted, &live, answers);
        }
    }

    /// Gives a segment a number, for locations. A number is never given twice, also not after [`Index::clear`].
    ///
    /// # Errors
    /// `Io` if the record cannot be written; `Invalid` for a group's name of more than 63 bytes; `NumbersExhausted`.
    pub fn add_segment(&self, record: &SegmentRecord) -> Result<u32, IndexError> {
        self.shared.segments_mut().add(record)
    }

    /// The segment of a number; `None` if it was never added, or is forgotten.
    pub fn segment(&self, number: u32) -> Option<SegmentRecord> {
        self.shared.segments().get(number)
    }

    /// The number of the segment with this hash; the newest if it was added more than once.
    pub fn find_segment(&self, hash: &[u8; 32]) -> Option<u32> {
        self.shared.segments().find(hash)
    }

    /// Forgets the segments that match, and answers how many did. Their entries are misses from now on, and vanish when they are
    /// merged, at the latest when they are half of a run.
    ///
    /// # Errors
    /// `Io` if that cannot be written: they are forgotten only until the index is opened again.
    pub fn forget_segments(
        &self,
        matches: impl Fn(u32, &SegmentRecord) -> bool,
    ) -> Result<usize, IndexError> {
        let forgotten = self.shared.segments_mut().forget(matches);
        self.merger.wake();
        forgotten
    }

    /// Forgets all entries and all segments.
    ///
    /// # Errors
    /// `Io` if that cannot be written.
    pub fn clear(&self) -> Result<(), IndexError> {
        // First, so that an entry that is written meanwhile is a miss, too. The lock is not kept: a merge that a flush waits for needs it.
        let forgotten = self.forget_segments(|_, _| true);
        self.shared.shards.iter().for_each(Shard::clear);
        forgotten.map(drop)
    }

    /// Writes what is in memory to runs. It is not synced.
    ///
    /// # Errors
    /// `Io` if a run cannot be written; what it would have held is lost.
    pub fn flush(&self) -> Result<(), IndexError> {
        // One that fails is no reason to keep the others in memory.
        let flushed = self.shared.shards.iter().map(|shard| self.flush_shard(shard, 1));
        flushed.fold(Ok(()), Result::and)
    }

    /// Waits until nothing is due for merging, or merging failed.
    pub fn wait_for_merges(&self) {
        self.merger.wait_until_idle();
    }

    /// Bytes of memory that filters, fences, tables and segments take. A merge takes up to a sixteenth of it besides.
    pub fn memory_bytes(&self) -> u64 {
        self.statistics().memory_bytes
    }

    /// Answers the figures of now.
    pub fn statistics(&self) -> Statistics {
        let segments = self.shared.segments();
        let mut figures = Statistics {
            segments: segments.count() as u64,
            disk_bytes: segments.file_bytes(),
            memory_bytes: segments.memory_bytes(),
            dropped_entries: self.merger.dropped_entries(),
            merged_entries: self.merger.merged_entries(),
            ..Statistics::default()
        };
        drop(segments);
        self.shared.shards.iter().for_each(|shard| figures.add(shard));
        figures
    }

    fn shard(&self, fingerprint: Fingerprint) -> &Shard {
        &self.shared.shards[fingerprint.shard()]
    }

    fn flush_shard(&self, shard: &Shard, entries_min: usize) -> Result<(), IndexError> {
        let written =
            shard.flush(&self.shared.folder, entries_min, |entries| self.merger.make_room(shard, entries));
        self.merger.wake();
        written
    }
}

impl Statistics {
    fn add(&mut self, shard: &Shard) {
        let (table_entries, table_bytes) = shard.in_memory();
        self.entries += table_entries as u64;
        self.memory_bytes += table_bytes;
        for run in shard.runs().iter() {
            self.runs += 1;
            self.entries += run.entries();
            self.disk_bytes += run.file_bytes();
            self.memory_bytes += run.memory_bytes();
        }
        let Counters { hits, misses, filter_negatives, filter_false_positives, failed_runs, lost_entries } =
            &shard.counters;
        for (sum, counter) in [
            (&mut self.hits, hits),
            (&mut self.misses, misses),
            (&mut self.filter_negatives, filter_negatives),
            (&mut self.filter_false_positives, filter_false_positives),
            (&mut self.failed_runs, failed_runs),
            (&mut self.lost_entries, lost_entries),
        ] {
            *sum += counter.load(Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
