//! Lets the writers of a link take turns, in the order that the schedule decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use journal_format::{GroupName, Sequence, Timestamp};
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep_until;

use super::now;
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
}

/// The turns of a link.
#[derive(Debug)]
pub(super) struct Turns {
    groups: Vec<GroupName>,
    state: Mutex<State>,
    /// `wake_at` changed.
    changed: Notify,
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
        };
        Arc::new(Self { groups, state: Mutex::new(state), changed: Notify::new() })
    }

    /// Limits of groups in bytes per second; groups that are not named have none.
    pub(super) fn set_limits(self: &Arc<Self>, limits: &HashMap<GroupName, u64>) {
        let mut state = self.lock();
        for (index, group) in self.groups.iter().enumerate() {
            state.schedule.set_limit(index, limits.get(group).copied(), now());
        }
        self.give(&mut state);
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
        while !state.busy {
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
                Next::Idle => {
                    state.wake_at = None;
                    return;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
