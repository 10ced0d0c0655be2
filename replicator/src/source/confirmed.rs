//! Which cuts the recovery site has confirmed: for lag, and for those who wait.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use journal::SealedCut;
use journal_format::{Position, Sequence, Timestamp};

/// Points remembered until they are confirmed. Beyond it the oldest is forgotten: lag is then known from the next receipt on.
const REMEMBERED_MAX: usize = 100_000;

#[derive(Default)]
struct State {
    sealed: VecDeque<SealedCut>,
    newest: Option<SealedCut>,
    covered: Sequence,
    /// Counts the times that the chain went back to what the site has: sequences of before mean nothing then.
    timeline: u64,
}

/// How waiting for a receipt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// A receipt covers it.
    Covered,
    /// The chain went back behind it: what was cut is not shipped any more.
    Rebased,
    /// Time ran out.
    TimedOut,
}

/// Points that were sealed, matched with receipts.
#[derive(Default)]
pub(super) struct Confirmed {
    state: Mutex<State>,
    changed: Condvar,
}

impl Confirmed {
    /// A point was sealed.
    pub(super) fn sealed(&self, cut: SealedCut) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if cut.position.sequence <= state.covered {
            // It was shipped and confirmed before this call came.
            state.newest = Some(cut);
            return;
        }
        if state.sealed.len() == REMEMBERED_MAX {
            state.sealed.pop_front();
        }
        state.sealed.push_back(cut);
    }

    /// The time of the cut that a segment, which waits for its receipt, ends with or goes before.
    pub(super) fn time_of(&self, sequence: Sequence) -> Option<Timestamp> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let place = state.sealed.partition_point(|cut| cut.position.sequence < sequence);
        state.sealed.get(place).map(|cut| cut.time)
    }

    /// A receipt came.
    pub(super) fn receipt(&self, position: Position) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.covered = state.covered.max(position.sequence);
        while state.sealed.front().is_some_and(|cut| cut.position.sequence <= position.sequence) {
            state.newest = state.sealed.pop_front();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The timeline went back to what the site has.
    pub(super) fn rebased(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { timeline: state.timeline + 1, ..State::default() };
        drop(state);
        self.changed.notify_all();
    }

    /// The chain's timeline, to be asked for before a cut that is waited for.
    pub(super) fn timeline(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).timeline
    }

    /// Newest confirmed point since the start.
    pub(super) fn newest(&self) -> Option<SealedCut> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).newest
    }

    /// Waits for a receipt, or for a change of the timeline.
    pub(super) fn wait_for_news(&self, patience: Duration) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until receipts cover `sequence` of a timeline.
    pub(super) fn wait(&self, timeline: u64, sequence: Sequence, patience: Duration) -> Waited {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |state: &mut State| state.timeline == timeline && state.covered < sequence;
        let waited = self.changed.wait_timeout_while(state, patience, waiting);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match (state.timeline == timeline, state.covered >= sequence) {
            (false, _) => Waited::Rebased,
            (true, true) => Waited::Covered,
            (true, false) => Waited::TimedOut,
        }
    }
}
