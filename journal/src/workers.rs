//! The threads of a group: one seals, one sweeps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use tracing::{error, warn};

use crate::group::{Group, SweepStep};

/// Taps and VMs go first: what cannot be sealed in time is read again later. On Linux a thread has a nice value of its own.
const BACKGROUND_NICE: i32 = 10;

/// Runs a group's sealing and resync until stopped.
pub struct Workers {
    group: Arc<Group>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the host gives no more threads.
    pub fn start(group: Arc<Group>) -> io::Result<Workers> {
        let stopping = Arc::new(AtomicBool::new(false));
        let mut workers = Workers { group, stopping, threads: Vec::new() };
        workers.spawn("seal", seal_loop)?;
        workers.spawn("sweep", sweep_loop)?;
        Ok(workers)
    }

    /// Stops the threads when they have finished what they are at.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.group.signal().raise();
        for thread in self.threads {
            if thread.join().is_err() {
                error!(group = %self.group.name(), "a thread of the group ended by a panic");
            }
        }
    }

    fn spawn(&mut self, role: &str, work: fn(&Group, &AtomicBool)) -> io::Result<()> {
        let (group, stopping) = (self.group.clone(), self.stopping.clone());
        let thread = Builder::new().name(format!("{role} {}", group.name()));
        self.threads.push(thread.spawn(move || {
            if let Err(error) = rustix::process::nice(BACKGROUND_NICE) {
                warn!(group = %group.name(), %error, "the thread runs at the priority of the taps");
            }
            work(&group, &stopping);
        })?);
        Ok(())
    }
}

fn seal_loop(group: &Group, stopping: &AtomicBool) {
    loop {
        let seen = group.signal().seen();
        while group.seal_next() {}
        if stopping.load(Ordering::SeqCst) {
            return;
        }
        group.signal().wait(seen);
    }
}

fn sweep_loop(group: &Group, stopping: &AtomicBool) {
    while !stopping.load(Ordering::SeqCst) {
        let seen = group.signal().seen();
        match group.sweep_step() {
            SweepStep::Progress => {}
            SweepStep::Wait | SweepStep::Idle => group.signal().wait(seen),
        }
    }
}
