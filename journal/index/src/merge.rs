//! Which runs of a shard are merged, and merging them.
//!
//! Two runs of about one size are merged, and with them every older run of up to three times what is merged so far. So a shard
//! has a large run with nearly all entries, and few small ones: 3 runs on average at 1 TiB, 5 at most, while an entry is
//! written 7.5 times (simulated; four runs of equal sizes and no more at a time give 6.5 runs and 4.7 writes). Look-ups of
//! what is missing dominate, so runs cost more than writes.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::IndexError;
use crate::location::Entry;
use crate::run::{AGES, Reader, Run, RunName, Writer};
use crate::segments::Live;

/// Runs of about one size that are merged.
const GROUP_RUNS: usize = 2;

/// An older run joins a merge if it is up to so many times as large as the rest.
const JOIN_RATIO: u64 = 3;

/// A shard with more runs does not take another one before some are merged.
pub(crate) const RUNS_MAX: usize = 32;

/// Entries between two looks at whether to stop.
const STOP_INTERVAL: u64 = 1 << 14;

/// What is to be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Places among the runs of the shard, newest first.
    pub(crate) runs: Range<usize>,
    /// Entries of segments below are given up.
    pub(crate) floor: u64,
}

impl Plan {
    /// What is due in a shard that may hold `entries_max`.
    pub(crate) fn of(runs: &[Arc<Run>], entries_max: u64, live: &Live) -> Option<Plan> {
        let entries: u64 = runs.iter().map(|run| run.entries()).sum();
        // A sixteenth is left for what comes while the merge goes on; an eighth is given up, so that it is not soon due again.
        if entries > entries_max / 16 * 15 {
            let floor = floor(runs, entries - entries_max / 16 * 13);
            return Some(Plan { runs: 0..runs.len(), floor });
        }
        let sizes: Vec<u64> = runs.iter().map(|run| run.entries()).collect();
        let dead = || runs.iter().position(|run| is_half_dead(run, live)).map(|place| place..place + 1);
        group(&sizes).or_else(dead).map(|runs| Plan { runs, floor: 0 })
    }
}

/// Whether about half of a run's entries name forgotten segments, or more: it is then written anew without them.
fn is_half_dead(run: &Run, live: &Live) -> bool {
    run.ages().iter().filter(|age| !live.contains(**age)).count() >= AGES / 2
}

/// Runs that are due, by their sizes from the newest on.
fn group(sizes: &[u64]) -> Option<Range<usize>> {
    let similar = |start: usize| {
        let count = sizes[start..].iter().take_while(|&&size| size <= sizes[start] * 2).count();
        (count >= GROUP_RUNS).then_some(start..start + count)
    };
    let crowded = (sizes.len() >= RUNS_MAX).then_some(0..RUNS_MAX / 2);
    let mut group = (0..sizes.len()).find_map(similar).or(crowded)?;
    let mut sum: u64 = sizes[group.clone()].iter().sum();
    while let Some(&size) = sizes.get(group.end).filter(|&&size| size <= sum * JOIN_RATIO) {
        sum += size;
        group.end += 1;
    }
    Some(group)
}

/// The segment below which about `excess` entries are, or more.
fn floor(runs: &[Arc<Run>], excess: u64) -> u64 {
    let part = |run: &Arc<Run>| run.ages().map(|age| (age, run.entries().div_ceil(AGES as u64)));
    let mut parts: Vec<(u32, u64)> = runs.iter().flat_map(part).collect();
    parts.sort_unstable();
    let mut below = 0;
    let reached = parts.iter().find(|(_, entries)| {
        below += entries;
        below >= excess
    });
    reached.map_or(u64::MAX, |(age, _)| u64::from(*age) + 1)
}

/// Why a merge came to no end.
#[derive(Debug)]
pub(crate) enum MergeError {
    /// It was told to stop.
    Stopped,
    /// A run cannot be read.
    Read(Arc<Run>, io::Error),
    /// The new run cannot be written.
    Write(IndexError),
}

/// Merges runs, newest first, that follow each other; `None` if nothing is left of them.
pub(crate) fn merge(
    folder: &Path,
    runs: &[Arc<Run>],
    live: &Live,
    floor: u64,
    stop: &AtomicBool,
) -> Result<Option<Run>, MergeError> {
    let (Some(newest), Some(oldest)) = (runs.first(), runs.last()) else { return Ok(None) };
    let name = RunName { oldest: oldest.name().oldest, ..newest.name() };
    let mut writer = Writer::new(folder, name).map_err(MergeError::Write)?;
    let mut inputs = Inputs::new(runs)?;
    let (mut last, mut taken) = (None, 0);
    while let Some(entry) = inputs.take()? {
        taken += 1;
        if taken % STOP_INTERVAL == 0 && stop.load(Ordering::Relaxed) {
            return Err(MergeError::Stopped);
        }
        let segment = entry.location.segment();
        let is_kept = u64::from(segment) >= floor && live.contains(segment);
        // Of one fingerprint the newest comes first.
        if is_kept && last != Some(entry.fingerprint) {
            last = Some(entry.fingerprint);
            writer.push(entry).map_err(MergeError::Write)?;
        }
    }
    writer.finish().map_err(MergeError::Write)
}

/// Readers that are not at their ends, newest first, with the fingerprints that they stand at.
struct Inputs<'a> {
    readers: Vec<(&'a Arc<Run>, Reader<'a>)>,
    heads: Vec<u64>,
}

impl<'a> Inputs<'a> {
    fn new(runs: &'a [Arc<Run>]) -> Result<Inputs<'a>, MergeError> {
        let mut inputs = Inputs { readers: Vec::new(), heads: Vec::new() };
        for run in runs {
            let reader = Reader::new(run.pages()).map_err(|error| MergeError::Read(run.clone(), error))?;
            if let Some(entry) = reader.current() {
                inputs.heads.push(entry.fingerprint.0);
                inputs.readers.push((run, reader));
            }
        }
        Ok(inputs)
    }

    /// Takes the entry with the lowest fingerprint, of equal ones the newest.
    fn take(&mut self) -> Result<Option<Entry>, MergeError> {
        let Some((first, rest)) = self.heads.split_first() else { return Ok(None) };
        let (mut place, mut lowest) = (0, *first);
        for (i, &head) in rest.iter().enumerate() {
            let lower = head < lowest;
            place = if lower { i + 1 } else { place };
            lowest = if lower { head } else { lowest };
        }
        let (run, reader) = &mut self.readers[place];
        let entry = reader.current();
        reader.advance().map_err(|error| MergeError::Read(Arc::clone(run), error))?;
        match reader.current() {
            Some(next) => self.heads[place] = next.fingerprint.0,
            None => {
                self.heads.remove(place);
                self.readers.remove(place);
            }
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests;
