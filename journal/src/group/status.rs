//! What a group says of itself.

use std::sync::atomic::Ordering;

use journal_format::{Epoch, Position};
use serde::Serialize;

use super::{Group, ResyncStatus, SealedCut};
use crate::intent::MarkCounters;
use crate::seal::SealCounters;

/// State of a group on the protected site.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// The epoch that takes in writes now.
    pub open_epoch: Epoch,
    /// Newest position that is sealed.
    pub head: Option<Position>,
    /// Newest position that a receipt covers, since the start.
    pub acknowledged: Option<Position>,
    /// Newest cut that was sealed as a point, since the start.
    pub last_point: Option<SealedCut>,
    /// Whether the next cut is a point.
    pub whole: bool,
    /// For each volume whether points do not hold it yet.
    pub joining: Vec<bool>,
    /// The resync under way.
    pub resync: Option<ResyncStatus>,
    /// Figures of the intent maps.
    pub marks: MarkCounters,
    /// How what was sealed since the start is carried.
    pub sealed: SealCounters,
    /// Counters.
    pub counters: Counters,
}

/// Numbers of a group.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counters {
    /// Regions that a resync has still to read, in bytes.
    pub dirty_bytes: u64,
    /// Payload held in memory, in bytes.
    pub held_bytes: u64,
    /// Sealed segments that no receipt covers.
    pub backlog_segments: u64,
    /// Their size in bytes.
    pub backlog_bytes: u64,
    /// Size of the journal on disk in bytes.
    pub journal_bytes: u64,
    /// Its limit in bytes.
    pub journal_limit_bytes: u64,
    /// Payload dropped for want of memory since the start, in bytes.
    pub dropped_bytes: u64,
    /// Cuts dropped for want of journal space since the start.
    pub lost_cuts: u64,
}

impl Group {
    /// The group's state now.
    pub fn status(&self) -> GroupStatus {
        let last_point = *self.lock(&self.last_point);
        let resync = self.resync_status();
        let chain = self.lock(&self.chain);
        let (backlog_segments, backlog_bytes) = chain.backlog();
        let dirty_bytes = self.capture.dirty_bytes();
        GroupStatus {
            open_epoch: self.capture.open_epoch(),
            head: chain.head(),
            acknowledged: chain.acknowledged(),
            last_point,
            whole: self.capture.is_whole(),
            joining: self.capture.joining(),
            resync,
            marks: self.intents.counters(),
            sealed: *self.lock(&self.sealed),
            counters: Counters {
                dirty_bytes,
                held_bytes: self.capture.held_bytes(),
                backlog_segments,
                backlog_bytes,
                journal_bytes: chain.bytes(),
                journal_limit_bytes: chain.limit_bytes(),
                dropped_bytes: self.capture.dropped_bytes(),
                lost_cuts: self.lost_cuts.load(Ordering::Relaxed),
            },
        }
    }
}
