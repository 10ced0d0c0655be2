//! Lets the writers of a link take turns, in the order that the schedule decides.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use journal_format::{GroupName, Sequence, Timestamp};
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep_until;

use super::now;
use crate::quic::{piece_bytes, undelivered_max};
use crate::schedule::{Next, Schedule, Waiter};

#[derive(Debug)]
struct State {
    schedule: Schedule,
    /// Somebody is writing.
    busy: bool,
    waiting: HashMap<u64, oneshot::Sender<Turn>>,
    next_id: u64,
    wake_at: Option<Instant>,
    /// Bytes of segments that turns were given for.
    written: u64,
    /// Bytes of pieces that the site's endpoint does not have all of, and how many there may be.
    undelivered: u64,
    undelivered_max: u64,
}

/// Bytes of a piece that are under way; they count until it is dropped.
#[derive(Debug)]
pub(super) struct UnderWay {
    turns: Arc<Turns>,
    bytes: u64,
}

/// The turns of a link.
#[derive(Debug)]
pub(super) struct Turns {
    groups: Vec<GroupName>,
    state: Mutex<State>,
    /// `wake_at` changed.
    changed: Notify,
    /// Pieces begun.
    pieces: AtomicI32,
}

/// The right to write; given on when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Turns>>);

impl Turns {
    pub(super) fn new(groups: Vec<GroupName>) -> Arc<Self> {
        let state = State {
            schedule: Schedule::new(groups.len(), now()),
            busy: false,
            waiting: HashMap::new(),
            next_id: 0,
            wake_at: None,
            written: 0,
            undelivered: 0,
            undelivered_max: undelivered_max(0),
        };
        Arc::new(Self { groups, state: Mutex::new(state), changed: Notify::new(), pieces: AtomicI32::new(0) })
    }

    /// Limits of groups in bytes per second; groups that are not named have none.
    pub(super) fn set_limits(self: &Arc<Self>, limits: &HashMap<GroupName, u64>) {
        let mut state = self.lock();
        for (index, group) in self.groups.iter().enumerate() {
            state.schedule.set_limit(index, limits.get(group).copied(), now());
        }
        self.give(&mut state);
    }

    /// Bytes of pieces that may be under way.
    pub(super) fn set_undelivered_max(self: &Arc<Self>, bytes: u64) {
        let mut state = self.lock();
        state.undelivered_max = bytes;
        self.give(&mut state);
    }

    /// Bytes that a piece should have now.
    pub(super) fn piece_bytes(&self) -> u64 {
        piece_bytes(self.lock().undelivered_max)
    }

    /// Counts what is written of a piece.
    pub(super) fn under_way(self: &Arc<Self>) -> UnderWay {
        UnderWay { turns: self.clone(), bytes: 0 }
    }

    /// Priority of the next piece, below that of all before it: what was begun first is complete first. quinn's own order without
    /// fairness would let control wait behind the piece that is being sent.
    pub(super) fn next_priority(&self) -> i32 {
        -self.pieces.fetch_add(1, Ordering::Relaxed).saturating_abs()
    }

    /// What headers and retransmissions add.
    pub(super) fn set_overhead(&self, overhead: f64) {
        self.lock().schedule.set_overhead(overhead);
    }

    /// Bytes of segments that turns were given for so far.
    pub(super) fn written(&self) -> u64 {
        self.lock().written
    }

    /// Waits until this group may write `bytes` of a segment; none if the link is ending.
    ///
    /// # Cancel safety
    /// Cancel safe: a turn that nobody takes goes to the next.
    pub(super) async fn turn(
        self: &Arc<Self>,
        group: &GroupName,
        sequence: Sequence,
        due: Option<Timestamp>,
        bytes: u64,
    ) -> Option<Turn> {
        let index = self.groups.iter().position(|other| other == group)?;
        let receiver = {
            let mut state = self.lock();
            let (sender, receiver) = oneshot::channel();
            let id = state.next_id;
            state.next_id += 1;
            state.waiting.insert(id, sender);
            state.schedule.enter(index, Waiter { id, sequence, due, bytes });
            self.give(&mut state);
            receiver
        };
        let turn = receiver.await.ok()?;
        self.lock().written += bytes;
        Some(turn)
    }

    /// Gives turns when limits allow them again; never ends.
    pub(super) async fn run(self: &Arc<Self>) {
        loop {
            let wake_at = self.lock().wake_at.unwrap_or_else(|| now() + Duration::from_secs(3600));
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(wake_at.into()) => self.give(&mut self.lock()),
            }
        }
    }

    fn give(self: &Arc<Self>, state: &mut State) {
        state.wake_at = None;
        while !state.busy && state.undelivered < state.undelivered_max {
            match state.schedule.next(now()) {
                Next::Grant(id) => {
                    let Some(sender) = state.waiting.remove(&id).filter(|sender| !sender.is_closed()) else {
                        continue;
                    };
                    state.busy = true;
                    match sender.send(Turn(Some(self.clone()))) {
                        Ok(()) => {}
                        Err(mut turn) => {
                            // Nothing is to be given on: the lock is held here.
                            turn.0 = None;
                            state.busy = false;
                        }
                    }
                }
                Next::Wait(at) => {
                    state.wake_at = Some(at);
                    self.changed.notify_one();
                    return;
                }
                Next::Idle => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.turns.lock().undelivered += bytes;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.undelivered -= self.bytes;
        self.turns.give(&mut state);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            let mut state = turns.lock();
            state.busy = false;
            turns.give(&mut state);
        }
    }
}
