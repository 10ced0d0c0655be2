//! Whether a connection has fallen silent. Without I/O: time is an argument.

use std::time::{Duration, Instant};

use quinn::ConnectionStats;

/// Silence is at least this long, and so many round trips.
const SILENCE_MIN: Duration = Duration::from_secs(1);
const SILENCE_ROUND_TRIPS: u32 = 4;

/// Looks at what a connection sent that wants an answer, and at what it received.
#[derive(Debug, Default)]
pub(super) struct Silence {
    asked: u64,
    received: u64,
    /// When something was sent that nothing has been received after.
    unanswered_since: Option<Instant>,
}

impl Silence {
    /// To be called every now and then.
    pub(super) fn observe(&mut self, now: Instant, stats: &ConnectionStats) {
        let frames = &stats.frame_tx;
        // Acknowledgements want no answer.
        let asked = [
            frames.stream,
            frames.ping,
            frames.crypto,
            frames.max_data,
            frames.max_stream_data,
            frames.max_streams_uni,
            frames.reset_stream,
            frames.stop_sending,
            frames.path_challenge,
        ];
        self.note(now, asked.iter().sum(), stats.udp_rx.datagrams);
    }

    fn note(&mut self, now: Instant, asked: u64, received: u64) {
        if received != self.received {
            self.unanswered_since = None;
        } else if asked != self.asked {
            self.unanswered_since.get_or_insert(now);
        }
        (self.asked, self.received) = (asked, received);
    }

    /// Whether an answer is overdue.
    pub(super) fn is_silent(&self, now: Instant, rtt: Duration) -> bool {
        let patience = SILENCE_MIN.max(rtt * SILENCE_ROUND_TRIPS);
        self.unanswered_since.is_some_and(|since| now.saturating_duration_since(since) >= patience)
    }
}

#[cfg(test)]
mod tests;
