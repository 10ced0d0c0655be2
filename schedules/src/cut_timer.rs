//! When a group's epoch ends.

use std::time::Duration;

/// What the decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct OpenEpoch {
    /// Whether a cut would carry anything that the last one did not.
    pub changed: bool,
    /// Payload in the open epoch, in bytes.
    pub payload_bytes: u64,
}

/// Ends an epoch when the interval is over and something has changed, or at once when the epoch grows large. Times are on any
/// monotonic clock, as the duration since its start.
#[derive(Clone, Debug)]
pub struct CutTimer {
    interval: Duration,
    large_bytes: u64,
    due: Duration,
}

impl CutTimer {
    /// A timer whose first cut is due at `now`. An epoch of `large_bytes` of payload is ended before its time, so that sealing
    /// begins while the guest still writes.
    pub fn new(interval: Duration, large_bytes: u64, now: Duration) -> Self {
        CutTimer { interval, large_bytes, due: now }
    }

    /// Whether to cut now. If the answer is yes, the next cut is due one interval later. A timer that was held up does not make
    /// up for the cuts that it missed.
    pub fn poll(&mut self, now: Duration, epoch: OpenEpoch) -> bool {
        let cut = epoch.changed && (now >= self.due || epoch.payload_bytes >= self.large_bytes);
        if cut {
            self.due = now + self.interval;
        }
        cut
    }

    /// How long to wait before the next call of [`CutTimer::poll`]: a quarter of the interval at most, so that a large epoch is
    /// noticed and a change after a pause is cut soon.
    pub fn wait(&self, now: Duration) -> Duration {
        let step = (self.interval / 4).max(Duration::from_millis(1));
        self.due.checked_sub(now).filter(|left| !left.is_zero()).map_or(step, |left| left.min(step))
    }
}

#[cfg(test)]
mod tests;
