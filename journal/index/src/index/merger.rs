//! The thread that merges.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use journal_format::with_causes;
use tracing::warn;

use super::Shared;
use crate::location::SHARDS;
use crate::merge::{MergeError, Plan, RUNS_MAX, merge};
use crate::run::Run;
use crate::shard::{Runs, Shard};

/// What the thread is at.
#[derive(Debug, Default)]
struct Work {
    /// There may be something to merge.
    is_pending: bool,
    is_busy: bool,
    /// The last merge could not be written. Nobody waits for the thread then.
    has_failed: bool,
}

#[derive(Debug, Default)]
struct Desk {
    work: Mutex<Work>,
    /// There is something new in `work`, or in a shard.
    changed: Condvar,
    is_stopping: AtomicBool,
    dropped_entries: AtomicU64,
    merged_entries: AtomicU64,
}

impl Desk {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Work)) {
        change(&mut self.work());
        self.changed.notify_all();
    }

    fn wait_while(&self, condition: impl FnMut(&mut Work) -> bool) -> MutexGuard<'_, Work> {
        self.changed.wait_while(self.work(), condition).unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }
}

/// The thread, joined when dropped.
#[derive(Debug)]
pub(super) struct Merger {
    desk: Arc<Desk>,
    shard_entries_max: u64,
    thread: Option<JoinHandle<()>>,
}

impl Merger {
    pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Merger> {
        let desk = Arc::new(Desk {
            work: Mutex::new(Work { is_pending: true, ..Work::default() }),
            ..Desk::default()
        });
        let body = {
            let (shared, desk) = (shared.clone(), desk.clone());
            move || run(&shared, &desk)
        };
        let thread = thread::Builder::new().name("index-merge".to_owned()).spawn(body)?;
        let shard_entries_max = shared.max_entries / SHARDS as u64;
        Ok(Merger { desk, shard_entries_max, thread: Some(thread) })
    }

    /// Says that a shard has a new run, or that segments were forgotten.
    pub(super) fn wake(&self) {
        self.desk.change(|work| work.is_pending = true);
    }

    pub(super) fn wait_until_idle(&self) {
        drop(self.desk.wait_while(|work| (work.is_pending || work.is_busy) && !work.has_failed));
    }

    /// Waits until a shard may take another run. If merging fails its oldest runs are given up instead.
    pub(super) fn make_room(&self, shard: &Shard, entries: u64) {
        let is_full = || {
            let runs = shard.runs();
            let sum: u64 = runs.iter().map(|run| run.entries()).sum();
            // An empty shard has all the room there is.
            sum > 0 && (runs.len() > RUNS_MAX || sum + entries > self.shard_entries_max)
        };
        drop(self.desk.wait_while(|work| is_full() && !work.has_failed));
        while is_full() {
            let dropped = shard.give_up_oldest();
            warn!(dropped, "the block index is full and cannot be merged: its oldest entries are given up");
            self.desk.dropped_entries.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    pub(super) fn dropped_entries(&self) -> u64 {
        self.desk.dropped_entries.load(Ordering::Relaxed)
    }

    pub(super) fn merged_entries(&self) -> u64 {
        self.desk.merged_entries.load(Ordering::Relaxed)
    }
}

impl Drop for Merger {
    fn drop(&mut self) {
        self.desk.is_stopping.store(true, Ordering::Relaxed);
        self.desk.change(|_| ());
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic of it was printed.
            let _ = thread.join();
        }
    }
}

/// Whoever waits for the thread is let go if it panics.
struct Leaving<'a>(&'a Desk);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.change(|work| work.has_failed = true);
    }
}

fn run(shared: &Shared, desk: &Desk) {
    let _leaving = Leaving(desk);
    loop {
        let mut work = desk.wait_while(|work| !work.is_pending && !desk.is_stopping());
        *work = Work { is_busy: true, ..Work::default() };
        drop(work);
        let mut has_failed = false;
        while !desk.is_stopping() && !has_failed {
            let Some((shard, runs, plan)) = smallest_due(shared) else { break };
            has_failed = !merge_one(shared, desk, shard, &runs[plan.runs], plan.floor);
            desk.change(|work| work.has_failed = has_failed);
        }
        desk.change(|work| work.is_busy = false);
        if desk.is_stopping() {
            return;
        }
    }
}

/// The smallest merge first: small runs come often, and each costs every look-up.
fn smallest_due(shared: &Shared) -> Option<(&Shard, Runs, Plan)> {
    let shard_entries_max = shared.max_entries / SHARDS as u64;
    let live = shared.segments().live().clone();
    let due = shared.shards.iter().filter_map(|shard| {
        let runs = shard.runs();
        let plan = Plan::of(&runs, shard_entries_max, &live)?;
        Some((shard, runs, plan))
    });
    due.min_by_key(|(_, runs, plan)| entries(&runs[plan.runs.clone()]))
}

/// Answers whether to go on.
fn merge_one(shared: &Shared, desk: &Desk, shard: &Shard, runs: &[Arc<Run>], floor: u64) -> bool {
    let live = shared.segments().live().clone();
    match merge(&shared.folder, runs, &live, floor, &desk.is_stopping) {
        Ok(merged) => {
            desk.merged_entries.fetch_add(entries(runs), Ordering::Relaxed);
            shard.replace(runs, merged);
            true
        }
        Err(MergeError::Stopped) => true,
        Err(MergeError::Read(run, error)) => {
            shard.drop_unreadable(&run, &error);
            true
        }
        Err(MergeError::Write(error)) => {
            let folder = shared.folder.display();
            warn!(%folder, "runs of the block index cannot be merged: {}", with_causes(&error));
            false
        }
    }
}

fn entries(runs: &[Arc<Run>]) -> u64 {
    runs.iter().map(|run| run.entries()).sum()
}
