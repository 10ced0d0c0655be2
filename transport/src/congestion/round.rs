//! Rounds: a round ends when a packet is acknowledged that was sent after it began.

use std::time::{Duration, Instant};

/// A round on a short path is as long as this, so that it has enough packets to say something.
const ROUND_MIN: Duration = Duration::from_millis(20);

/// What happened in a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Round {
    pub(super) acked: u64,
    pub(super) lost: u64,
    /// Shortest round trip in it.
    pub(super) rtt: Option<Duration>,
    /// Largest rate that was delivered.
    pub(super) rate: f64,
    /// The most that was in flight.
    pub(super) in_flight: u64,
    /// The application did not fill the window.
    pub(super) limited: bool,
}

impl Round {
    /// Share of what was sent that was lost.
    pub(super) fn loss(&self) -> f64 {
        let sent = self.acked + self.lost;
        if sent == 0 { 0.0 } else { self.lost as f64 / sent as f64 }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Rounds {
    begun_at: Option<Instant>,
    current: Round,
}

impl Rounds {
    pub(super) fn current(&mut self) -> &mut Round {
        &mut self.current
    }

    /// Answers the round if it ended. `sent` is when the newest packet was sent that was acknowledged now.
    pub(super) fn poll_end(&mut self, now: Instant, sent: Instant) -> Option<Round> {
        let begun_at = *self.begun_at.get_or_insert(now);
        if sent < begun_at || now.saturating_duration_since(begun_at) < ROUND_MIN {
            return None;
        }
        self.begun_at = Some(now);
        Some(std::mem::take(&mut self.current))
    }

    /// Begins a round now, and forgets what the one so far has seen.
    pub(super) fn restart(&mut self, now: Instant) {
        *self = Self { begun_at: Some(now), current: Round::default() };
    }
}
