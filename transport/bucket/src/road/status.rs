//! What a link says of its groups.

use std::sync::{Mutex, PoisonError};

use journal_format::{Generation, GroupName, Position, Timestamp};

use crate::keys::ClaimNumber;

/// How a group fares in its bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketGroupStatus {
    /// The group.
    pub group: GroupName,
    /// Generation that the newest session wrote.
    pub generation: Option<Generation>,
    /// The start that is written under; none while no session is open.
    pub claim: Option<ClaimNumber>,
    /// Everything up to here is in the bucket.
    pub head: Option<Position>,
    /// Everything up to here is received.
    pub received: Option<Position>,
    /// Segments that are being put, or wait for their turn.
    pub puts_under_way: usize,
    /// What failed last, since the newest session began.
    pub last_error: Option<String>,
    /// The source's time in the newest heartbeat that was put.
    pub heartbeat_at: Option<Timestamp>,
}

/// Where a group's task writes it.
#[derive(Debug)]
pub(super) struct GroupReport(Mutex<BucketGroupStatus>);

impl GroupReport {
    pub(super) fn new(group: GroupName) -> Self {
        Self(Mutex::new(BucketGroupStatus {
            group,
            generation: None,
            claim: None,
            head: None,
            received: None,
            puts_under_way: 0,
            last_error: None,
            heartbeat_at: None,
        }))
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut BucketGroupStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn failed(&self, error: String) {
        self.change(|status| status.last_error = Some(error));
    }

    pub(super) fn read(&self) -> BucketGroupStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
