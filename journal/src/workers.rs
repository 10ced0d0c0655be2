//! The threads of a group: one seals, some sweep, one writes the intent maps, one takes marks out of them.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tracing::{error, warn};

use crate::group::{Group, SweepStep};

/// Taps and VMs go first: what cannot be sealed in time is read again later. On Linux a thread has a nice value of its own.
const BACKGROUND_NICE: i32 = 10;

/// Regions are compared by so many threads at once, so that the way to the site is used while an answer travels.
const SWEEPERS: usize = 4;
/// A resync that had to wait looks again after this long, if nothing wakes it before.
const SWEEP_PAUSE: Duration = Duration::from_millis(100);

/// Runs a group's sealing, resync and marking until stopped.
pub struct Workers {
    group: Arc<Group>,
    stopping: Arc<Stopping>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts the threads; marks that can be taken away are looked for every `clear_interval`.
    ///
    /// # Errors
    /// If the host gives no more threads.
    pub fn start(group: Arc<Group>, clear_interval: Duration) -> io::Result<Workers> {
        let mut workers = Workers { group, stopping: Arc::default(), threads: Vec::new() };
        workers.spawn("mark", 0, |group, _| group.intents().run_writer())?;
        workers.spawn("seal", BACKGROUND_NICE, seal_loop)?;
        workers.spawn("clear", BACKGROUND_NICE, move |group, stopping| {
            while !stopping.wait(clear_interval) {
                group.clear_marks();
            }
        })?;
        (0..SWEEPERS).try_for_each(|_| workers.spawn("sweep", BACKGROUND_NICE, sweep_loop))?;
        Ok(workers)
    }

    /// Stops the threads when they have finished what they are at.
    pub fn stop(self) {
        self.stopping.stop();
        self.group.signal().raise();
        self.group.intents().stop();
        for thread in self.threads {
            if thread.join().is_err() {
                error!(group = %self.group.name(), "a thread of the group ended by a panic");
            }
        }
    }

    fn spawn(
        &mut self,
        role: &str,
        nice: i32,
        work: impl FnOnce(&Group, &Stopping) + Send + 'static,
    ) -> io::Result<()> {
        let (group, stopping) = (self.group.clone(), self.stopping.clone());
        let thread = Builder::new().name(format!("{role} {}", group.name()));
        self.threads.push(thread.spawn(move || {
            if let Err(error) = rustix::process::nice(nice) {
                warn!(group = %group.name(), %error, "the thread runs at the priority of the taps");
            }
            work(&group, &stopping);
        })?);
        Ok(())
    }
}

fn seal_loop(group: &Group, stopping: &Stopping) {
    loop {
        let seen = group.signal().seen();
        while group.seal_next() {}
        if stopping.is_set() {
            return;
        }
        group.signal().wait(seen);
    }
}

fn sweep_loop(group: &Group, stopping: &Stopping) {
    while !stopping.is_set() {
        let seen = group.signal().seen();
        match group.sweep_step() {
            SweepStep::Progress => {}
            SweepStep::Wait => group.signal().wait_at_most(seen, SWEEP_PAUSE),
            SweepStep::Idle => group.signal().wait(seen),
        }
    }
}

/// Tells threads to end.
#[derive(Default)]
struct Stopping {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Stopping {
    fn stop(&self) {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn is_set(&self) -> bool {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits; tells whether it is time to end.
    fn wait(&self, patience: Duration) -> bool {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(set, patience, |set| !*set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
