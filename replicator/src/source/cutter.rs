//! The thread that ends a group's epochs on time.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use journal::{CutRequest, Group};
use schedules::{CutTimer, OpenEpoch};

/// Cuts a group by its timer until dropped.
pub(super) struct Cutter {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Cutter {
    /// Starts the thread. An epoch of a quarter of the memory budget is ended before its time.
    pub(super) fn start(group: Arc<Group>, interval: Duration, budget_bytes: u64) -> io::Result<Cutter> {
        let (stop, stopped) = mpsc::channel::<()>();
        let name = format!("cut {}", group.name());
        let thread = Builder::new().name(name).spawn(move || {
            let start = Instant::now();
            let mut timer = CutTimer::new(interval, budget_bytes / 4, Duration::ZERO);
            while stopped.recv_timeout(timer.wait(start.elapsed())) == Err(RecvTimeoutError::Timeout) {
                let epoch = OpenEpoch { changed: group.wants_cut(), payload_bytes: group.open_bytes() };
                if timer.poll(start.elapsed(), epoch) {
                    drop(group.cut(CutRequest::default()));
                }
            }
        })?;
        Ok(Cutter { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been reported by its hook.
            let _ = thread.join();
        }
    }
}
