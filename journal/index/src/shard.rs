//! A sixteenth of the index: a table in memory and the runs that it was written to, newest first.

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use journal_format::with_causes;
use tracing::warn;

use crate::error::IndexError;
use crate::location::{Entry, Fingerprint, Location, SHARD_BITS};
use crate::run::{Run, RunName, Writer};
use crate::segments::Live;

/// Fingerprints are uniform already. All of a shard begin alike, and the table takes its tags from the highest bits.
#[derive(Debug, Default)]
struct FingerprintHasher(u64);

impl Hasher for FingerprintHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 << SHARD_BITS
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0 << 8 | u64::from(byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

type Memtable = HashMap<Fingerprint, Location, BuildHasherDefault<FingerprintHasher>>;

/// The runs of a shard, newest first, as they are at one moment.
pub(crate) type Runs = Arc<Vec<Arc<Run>>>;

/// What look-ups did.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    /// Times that a filter said no.
    pub(crate) filter_negatives: AtomicU64,
    /// Times that a filter let something pass that was not in the run.
    pub(crate) filter_false_positives: AtomicU64,
    /// Runs dropped because they could not be read.
    pub(crate) failed_runs: AtomicU64,
    /// Entries that could not be written to a run.
    pub(crate) lost_entries: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct State {
    memtable: Memtable,
    /// A full table while it is written to a run.
    frozen: Option<Arc<Memtable>>,
    runs: Runs,
}

impl State {
    fn in_memory(&self, fingerprint: Fingerprint) -> Option<Location> {
        let frozen = || self.frozen.as_ref()?.get(&fingerprint);
        self.memtable.get(&fingerprint).or_else(frozen).copied()
    }
}

#[derive(Debug)]
pub(crate) struct Shard {
    number: usize,
    memtable_entries: usize,
    state: RwLock<State>,
    /// Serial number of the next run; held while a table is written.
    next_serial: Mutex<u64>,
    pub(crate) counters: Counters,
}

impl Shard {
    /// A shard of runs, newest first.
    pub(crate) fn new(number: usize, memtable_entries: usize, runs: Vec<Arc<Run>>) -> Shard {
        let next_serial = runs.iter().map(|run| run.name().newest + 1).max().unwrap_or(0);
        let state = State { memtable: new_memtable(memtable_entries), frozen: None, runs: Arc::new(runs) };
        Shard {
            number,
            memtable_entries,
            state: RwLock::new(state),
            next_serial: Mutex::new(next_serial),
            counters: Counters::default(),
        }
    }

    /// Answers whether the table is full now.
    pub(crate) fn insert(&self, entry: Entry) -> bool {
        let mut state = self.write();
        state.memtable.insert(entry.fingerprint, entry.location);
        state.memtable.len() >= self.memtable_entries
    }

    pub(crate) fn find(&self, fingerprint: Fingerprint, is_live: impl Fn(u32) -> bool) -> Option<Location> {
        let found = self.search(fingerprint, is_live);
        Counters::add(if found.is_some() { &self.counters.hits } else { &self.counters.misses }, 1);
        found
    }

    fn search(&self, fingerprint: Fingerprint, is_live: impl Fn(u32) -> bool) -> Option<Location> {
        let (found, runs) = {
            let state = self.read();
            (state.in_memory(fingerprint), state.runs.clone())
        };
        let live = |location: &Location| is_live(location.segment());
        let in_runs = || {
            let mut negatives = 0;
            let mut found = None;
            for run in runs.iter() {
                if !run.may_hold(fingerprint) {
                    negatives += 1;
                } else if let Some(location) = self.find_in(run, fingerprint).filter(live) {
                    found = Some(location);
                    break;
                }
            }
            Counters::add(&self.counters.filter_negatives, negatives);
            found
        };
        found.filter(live).or_else(in_runs)
    }

    /// Looks many fingerprints up, run by run, so that the memory accesses of their filters overlap. Answers go to the places
    /// that stand with them.
    pub(crate) fn find_many(
        &self,
        mut wanted: Vec<(Fingerprint, u32)>,
        live: &Live,
        answers: &mut [Option<Location>],
    ) {
        let count = wanted.len();
        let is_live = |location: &Location| live.contains(location.segment());
        let runs = {
            let state = self.read();
            wanted.retain(|&(fingerprint, place)| {
                answers[place as usize] = state.in_memory(fingerprint).filter(is_live);
                answers[place as usize].is_none()
            });
            state.runs.clone()
        };
        let mut passed = vec![0; wanted.len()];
        for run in runs.iter() {
            let mut passed_count = 0;
            for (i, &(fingerprint, _)) in wanted.iter().enumerate() {
                // Without a branch, which would be mispredicted.
                passed[passed_count] = i;
                passed_count += usize::from(run.may_hold(fingerprint));
            }
            Counters::add(&self.counters.filter_negatives, wanted.len() - passed_count);
            for &i in &passed[..passed_count] {
                let (fingerprint, place) = wanted[i];
                answers[place as usize] = self.find_in(run, fingerprint).filter(is_live);
            }
            wanted.retain(|&(_, place)| answers[place as usize].is_none());
        }
        Counters::add(&self.counters.hits, count - wanted.len());
        Counters::add(&self.counters.misses, wanted.len());
    }

    /// A run that cannot be read is dropped: the index goes on without it.
    fn find_in(&self, run: &Arc<Run>, fingerprint: Fingerprint) -> Option<Location> {
        match run.find(fingerprint) {
            Ok(Some(location)) => return Some(location),
            Ok(None) => Counters::add(&self.counters.filter_false_positives, 1),
            Err(error) => self.drop_unreadable(run, &error),
        }
        None
    }

    pub(crate) fn drop_unreadable(&self, run: &Arc<Run>, error: &std::io::Error) {
        // Another look-up may have dropped it.
        if self.remove(run) {
            let (path, entries) = (run.path().display(), run.entries());
            warn!(%path, entries, "a run of the block index cannot be read and is dropped: {}", with_causes(error));
            Counters::add(&self.counters.failed_runs, 1);
        }
    }

    /// Removes the oldest run; answers how many entries it had.
    pub(crate) fn give_up_oldest(&self) -> u64 {
        let oldest = self.runs().last().cloned();
        oldest.map_or(0, |run| {
            self.remove(&run);
            run.entries()
        })
    }

    /// Answers whether it was there.
    fn remove(&self, run: &Arc<Run>) -> bool {
        let place = |runs: &mut Vec<Arc<Run>>| runs.iter().position(|other| Arc::ptr_eq(other, run));
        let removed = self.change_runs(|runs| place(runs).map(|place| runs.remove(place)));
        removed.inspect(|run| remove_file(run.path())).is_some()
    }

    /// Puts a merged run in the place of its inputs. Answers whether it counts: not if one of them is gone by now.
    pub(crate) fn replace(&self, inputs: &[Arc<Run>], merged: Option<Run>) -> bool {
        let path = merged.as_ref().map(|run| run.path().to_owned());
        let replaced = self.change_runs(|runs| {
            let first = runs.iter().position(|run| Arc::ptr_eq(run, &inputs[0]))?;
            let found = runs.get(first..first + inputs.len())?;
            let same = found.iter().zip(inputs).all(|(run, input)| Arc::ptr_eq(run, input));
            same.then(|| runs.splice(first..first + inputs.len(), merged.map(Arc::new)).count())
        });
        let unneeded = inputs.iter().map(|run| run.path()).filter(|_| replaced.is_some());
        // A merge of a single run has its name.
        unneeded.filter(|input| Some(*input) != path.as_deref()).for_each(remove_file);
        if let (None, Some(path)) = (replaced, &path) {
            remove_file(path);
        }
        replaced.is_some()
    }

    /// Writes the table to a run if it has at least so many entries. `make_room` is called before the file is written.
    pub(crate) fn flush(
        &self,
        folder: &Path,
        entries_min: usize,
        make_room: impl FnOnce(u64),
    ) -> Result<(), IndexError> {
        let mut next_serial = self.lock_flushing();
        let frozen = {
            let mut state = self.write();
            if state.memtable.len() < entries_min.max(1) {
                return Ok(());
            }
            let full = std::mem::replace(&mut state.memtable, new_memtable(self.memtable_entries));
            state.frozen.insert(Arc::new(full)).clone()
        };
        make_room(frozen.len() as u64);
        let name = RunName { shard: self.number, newest: *next_serial, oldest: *next_serial };
        *next_serial += 1;
        let written = write_run(folder, name, &frozen);
        let mut state = self.write();
        state.frozen = None;
        match written {
            Ok(Some(run)) => Arc::make_mut(&mut state.runs).insert(0, Arc::new(run)),
            Ok(None) => {}
            Err(error) => {
                Counters::add(&self.counters.lost_entries, frozen.len());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes everything.
    pub(crate) fn clear(&self) {
        let _flushing = self.lock_flushing();
        let runs = {
            let mut state = self.write();
            state.memtable.clear();
            std::mem::take(&mut state.runs)
        };
        runs.iter().for_each(|run| remove_file(run.path()));
    }

    /// Runs, newest first.
    pub(crate) fn runs(&self) -> Runs {
        self.read().runs.clone()
    }

    /// Entries in memory, and bytes of memory that tables take.
    pub(crate) fn in_memory(&self) -> (usize, u64) {
        let state = self.read();
        let tables = [Some(&state.memtable), state.frozen.as_deref()];
        let sizes = tables.into_iter().flatten().map(|table| {
            // A table of 2^n places takes 7/8 of as many entries, with one byte of tag for each place.
            let places = (table.capacity() * 8 / 7).next_power_of_two();
            (table.len(), (places * (size_of::<Entry>() + 1)) as u64)
        });
        sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    }

    fn change_runs<T>(&self, change: impl FnOnce(&mut Vec<Arc<Run>>) -> T) -> T {
        let mut state = self.write();
        change(Arc::make_mut(&mut state.runs))
    }

    fn lock_flushing(&self) -> MutexGuard<'_, u64> {
        self.next_serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_memtable(entries: usize) -> Memtable {
    Memtable::with_capacity_and_hasher(entries, BuildHasherDefault::default())
}

fn write_run(folder: &Path, name: RunName, table: &Memtable) -> Result<Option<Run>, IndexError> {
    let entry = |(&fingerprint, &location)| Entry { fingerprint, location };
    let mut entries: Vec<Entry> = table.iter().map(entry).collect();
    entries.sort_unstable_by_key(|entry| entry.fingerprint);
    let mut writer = Writer::new(folder, name)?;
    for entry in entries {
        writer.push(entry)?;
    }
    writer.finish()
}

/// A file that stays is found and merged again after the next opening, which is harmless.
fn remove_file(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        warn!(path = %path.display(), "cannot remove a run of the block index: {}", with_causes(&error));
    }
}
