//! Samples of the rate at which the path delivers, as in draft-cheng-iccrg-delivery-rate-estimation-02: what was
//! acknowledged between the sending of a packet and its acknowledgement, by the longer of the times in which that was
//! sent and in which it was acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Shortest stretch that a sample covers. quinn's timers have a millisecond, so that shorter ones measure bursts.
const SPAN_MIN: Duration = Duration::from_millis(10);

/// Where acknowledgements stood at some instant.
#[derive(Clone, Copy, Debug)]
struct Mark {
    delivered: u64,
    delivered_at: Instant,
    /// When the newest packet was sent that was acknowledged then.
    sent_at: Instant,
}

/// Packets that were sent at one instant.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    mark: Mark,
    limited: bool,
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Bytes per second.
    pub(super) rate: f64,
    /// The application had less to send than would have fitted, so that the path may deliver more.
    pub(super) limited: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Sampler {
    delivered: u64,
    mark: Option<Mark>,
    sent: VecDeque<Sent>,
    in_flight: u64,
    /// When the application last had nothing to send; cleared when everything sent before is acknowledged.
    limited_at: Option<Instant>,
    newest_acked: Option<Instant>,
}

impl Sampler {
    pub(super) fn handle_sent(&mut self, now: Instant, bytes: u64) {
        let mark = match self.mark {
            Some(mark) if self.in_flight > 0 => mark,
            // Idle time belongs to no sample.
            _ => Mark { delivered: self.delivered, delivered_at: now, sent_at: now },
        };
        self.mark = Some(mark);
        self.in_flight += bytes;
        let limited = self.limited_at.is_some();
        match self.sent.back_mut() {
            Some(last) if last.at == now => last.limited |= limited,
            _ => self.sent.push_back(Sent { at: now, mark, limited }),
        }
    }

    pub(super) fn handle_ack(&mut self, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.newest_acked = Some(self.newest_acked.map_or(sent, |newest| newest.max(sent)));
    }

    pub(super) fn handle_lost(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// A batch of acknowledgements is complete.
    pub(super) fn handle_acks_end(&mut self, now: Instant, in_flight: u64, limited: bool) -> Option<Sample> {
        self.in_flight = in_flight;
        if limited {
            self.limited_at = Some(now);
        }
        let newest = self.newest_acked.take()?;
        if !limited && self.limited_at.is_some_and(|at| newest > at) {
            self.limited_at = None;
        }
        while self.sent.front().is_some_and(|sent| sent.at < newest) {
            self.sent.pop_front();
        }
        let sent = *self.sent.front().filter(|sent| sent.at == newest)?;
        let acked_in = now.saturating_duration_since(sent.mark.delivered_at);
        let sent_in = sent.at.saturating_duration_since(sent.mark.sent_at);
        if self.mark.is_none_or(|mark| now.saturating_duration_since(mark.delivered_at) >= SPAN_MIN) {
            self.mark = Some(Mark { delivered: self.delivered, delivered_at: now, sent_at: newest });
        }
        let span = acked_in.max(sent_in);
        let bytes = self.delivered - sent.mark.delivered;
        (span >= SPAN_MIN / 2)
            .then(|| Sample { rate: bytes as f64 / span.as_secs_f64(), limited: sent.limited || limited })
    }
}
