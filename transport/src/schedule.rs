//! Which group may write next. Without I/O: time is an argument.
//!
//! Whoever would break its target first goes first; groups without a target come after those that have one, in the order of asking.
//! A group that waits gets a minimum share whatever the others' targets are, and none writes more than its limit.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use journal_format::{Sequence, Timestamp};

use crate::meter::Bucket;

/// Share of what is sent that a group gets while it waits.
const SHARE_MIN: f64 = 0.05;
/// All minimum shares together; the rest goes by urgency.
const SHARES_MAX: f64 = 0.5;
/// Credit that a waiting group collects at most, in bytes.
const CREDIT_MAX: f64 = (1u64 << 20) as f64;

/// Time for which a group's limit is kept while others write.
const BURST: Duration = Duration::from_millis(200);

/// Somebody who wants to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    /// Given by the caller.
    pub(crate) id: u64,
    /// Segment that it writes; within a group the oldest goes first.
    pub(crate) sequence: Sequence,
    /// When the segment has to be at the site.
    pub(crate) due: Option<Timestamp>,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
struct GroupQueue {
    limit: Bucket,
    /// Bytes that its minimum share allows.
    credit: f64,
    waiting: VecDeque<Waiter>,
}

impl GroupQueue {
    fn first(&self) -> Option<(usize, &Waiter)> {
        self.waiting.iter().enumerate().min_by_key(|(_, waiter)| waiter.sequence)
    }

    /// Earliest time at which anything that waits is due; the journal's order puts the oldest first.
    fn due(&self) -> Option<Timestamp> {
        self.waiting.iter().filter_map(|waiter| waiter.due).min()
    }
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// This waiter writes.
    Grant(u64),
    /// Whoever waits may go on then.
    Wait(Instant),
    /// Nobody waits.
    Idle,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Schedule {
    groups: Vec<GroupQueue>,
    /// Bytes on the wire for each byte of a segment.
    overhead: f64,
}

impl Schedule {
    pub(crate) fn new(groups: usize, now: Instant) -> Self {
        let queue =
            || GroupQueue { limit: Bucket::new(None, BURST, now), credit: 0.0, waiting: VecDeque::new() };
        Self { groups: (0..groups).map(|_| queue()).collect(), overhead: 1.04 }
    }

    /// Bytes per second on the wire that a group may use at most.
    pub(crate) fn set_limit(&mut self, group: usize, limit: Option<u64>, now: Instant) {
        self.groups[group].limit.set_rate(limit, now);
    }

    /// What headers and retransmissions add, as measured.
    pub(crate) fn set_overhead(&mut self, overhead: f64) {
        self.overhead = overhead.clamp(1.0, 3.0);
    }

    pub(crate) fn enter(&mut self, group: usize, waiter: Waiter) {
        self.groups[group].waiting.push_back(waiter);
    }

    /// Chooses; whoever is granted is charged for its bytes.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        let mut wait: Option<Instant> = None;
        let mut best: Option<(usize, bool, Option<Timestamp>)> = None;
        for (index, group) in self.groups.iter_mut().enumerate() {
            let Some((_, first)) = group.first() else { continue };
            let starves = group.credit >= first.bytes as f64;
            let due = group.due();
            if let Some(at) = group.limit.ready_at(now) {
                wait = Some(wait.map_or(at, |wait| wait.min(at)));
                continue;
            }
            let key = |starves: bool, due: Option<Timestamp>| (!starves, due.is_none(), due);
            if best
                .is_none_or(|(_, other_starves, other_due)| key(starves, due) < key(other_starves, other_due))
            {
                best = Some((index, starves, due));
            }
        }
        match (best, wait) {
            (Some((group, ..)), _) => self.grant(group, now),
            (None, Some(at)) => Next::Wait(at),
            (None, None) => Next::Idle,
        }
    }

    fn grant(&mut self, chosen: usize, now: Instant) -> Next {
        let overhead = self.overhead;
        let queue = &mut self.groups[chosen];
        let Some(index) = queue.first().map(|(index, _)| index) else { return Next::Idle };
        let Some(waiter) = queue.waiting.remove(index) else { return Next::Idle };
        queue.limit.take(now, (waiter.bytes as f64 * overhead) as u64);
        queue.credit = (queue.credit - waiter.bytes as f64).max(0.0);
        let share = SHARE_MIN.min(SHARES_MAX / self.groups.len() as f64);
        for (index, group) in self.groups.iter_mut().enumerate() {
            if index != chosen && !group.waiting.is_empty() {
                group.credit = (group.credit + waiter.bytes as f64 * share).min(CREDIT_MAX);
            }
        }
        Next::Grant(waiter.id)
    }
}

#[cfg(test)]
mod tests;
