//! Which cuts the recovery site has confirmed: for lag, and for those who wait.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use journal::SealedCut;
use journal_format::{Position, Sequence};

/// Points remembered until they are confirmed. Beyond it the oldest is forgotten: lag is then known from the next receipt on.
const REMEMBERED_MAX: usize = 100_000;

#[derive(Default)]
struct State {
    sealed: VecDeque<SealedCut>,
    newest: Option<SealedCut>,
    covered: Sequence,
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
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
    }

    /// Newest confirmed point since the start.
    pub(super) fn newest(&self) -> Option<SealedCut> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).newest
    }

    /// Waits until receipts cover `sequence`; false if time runs out.
    pub(super) fn wait(&self, sequence: Sequence, patience: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(state, patience, |state| state.covered < sequence);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}
