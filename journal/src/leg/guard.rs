//! Notices that a leg was changed past its tap: while no client had the tap open, or before a client that had opened it wrote through it.
//!
//! QEMU opens the tap before it lets the VM's writes go there, so a client counts from its first write on, not from its connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Leg, LegStamp};

struct State {
    /// Connections to the tap.
    clients: u32,
    /// The leg as it was when writes through the tap were last the only ones.
    noted: Option<LegStamp>,
}

/// What is known of one leg.
pub(crate) struct LegGuard {
    /// The next write through the tap has to look first.
    due: AtomicBool,
    state: Mutex<State>,
}

impl LegGuard {
    /// Begins with the leg as it is now.
    pub(crate) fn new(leg: &dyn Leg) -> LegGuard {
        LegGuard { due: AtomicBool::new(true), state: Mutex::new(State { clients: 0, noted: leg.stamp() }) }
    }

    /// Called before each write through the tap. Calls `changed` before it returns, and before any other write goes on, if the leg is not what it was.
    pub(crate) fn check(&self, leg: &dyn Leg, changed: impl FnOnce()) {
        if !self.due.load(Ordering::Acquire) {
            return;
        }
        let state = self.lock();
        if !self.due.load(Ordering::Acquire) {
            return;
        }
        // A medium that cannot tell has no stamps at all.
        if state.noted.is_some() && state.noted != leg.stamp() {
            changed();
        }
        self.due.store(false, Ordering::Release);
    }

    /// A client has opened the tap.
    pub(crate) fn opened(&self) {
        self.lock().clients += 1;
    }

    /// A client that had opened it is gone, and all of its requests are done.
    pub(crate) fn closed(&self, leg: &dyn Leg) {
        let mut state = self.lock();
        state.clients = state.clients.saturating_sub(1);
        // If nobody wrote through the tap, what was noted before still counts.
        if state.clients == 0 && !self.due.load(Ordering::Acquire) {
            state.noted = leg.stamp();
            self.due.store(true, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::simulated::{Power, SimulatedLeg};

    /// Whether a write through the tap finds the leg changed.
    fn finds(guard: &LegGuard, leg: &SimulatedLeg) -> bool {
        let mut found = false;
        guard.check(leg, || found = true);
        leg.write(0, &[1; 512]).unwrap();
        found
    }

    fn leg() -> SimulatedLeg {
        SimulatedLeg::new(Arc::new(Power::default()), vec![0; 4096])
    }

    #[test]
    fn writes_through_the_tap_are_no_change() {
        let leg = leg();
        let guard = LegGuard::new(&leg);
        for _client in 0..3 {
            guard.opened();
            assert!(!finds(&guard, &leg) && !finds(&guard, &leg));
            guard.closed(&leg);
        }
    }

    #[test]
    fn a_change_between_two_clients_is_found_once() {
        let leg = leg();
        let guard = LegGuard::new(&leg);
        guard.opened();
        assert!(!finds(&guard, &leg));
        guard.closed(&leg);
        leg.write_behind_our_back(0, &[2; 512]);
        guard.opened();
        assert!(finds(&guard, &leg));
        assert!(!finds(&guard, &leg));
    }

    #[test]
    fn a_change_after_the_opening_and_before_the_first_write_is_found() {
        let leg = leg();
        let guard = LegGuard::new(&leg);
        guard.opened();
        leg.write_behind_our_back(0, &[2; 512]);
        assert!(finds(&guard, &leg));
    }

    #[test]
    fn a_client_that_only_looks_does_not_hide_a_change() {
        let leg = leg();
        let guard = LegGuard::new(&leg);
        leg.write_behind_our_back(0, &[2; 512]);
        guard.opened();
        guard.closed(&leg);
        assert!(finds(&guard, &leg));
    }
}
