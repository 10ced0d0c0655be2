//! The fate of packets on one direction of a link: no I/O, no clock, every random draw from a seed.
//!
//! The steps and their order are defined in `WAN-LAB.md`. Times are nanoseconds since the start of the run and must not
//! go back from call to call.

mod bottleneck;
mod counters;
mod random;

#[cfg(test)]
mod tests;

use std::time::Duration;

use bottleneck::Bottleneck;
pub use counters::{Counters, Tally};
use random::Random;

use crate::profile::{Change, DirectionSettings, JitterShape, LinkProfile, LinkState, Way};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It never arrives.
    Drop(DropCause),
    /// The caller keeps it and hands it to [`Direction::release`] when the link is up again, in order.
    Hold,
    /// It arrives.
    Deliver {
        /// When, in nanoseconds since the start.
        at_ns: u64,
        /// When it arrives a second time, not before `at_ns`.
        duplicate_at_ns: Option<u64>,
    },
}

/// Why a packet never arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropCause {
    /// The queue before the bottleneck is full.
    Queue,
    /// Lost at random.
    Loss,
    /// Lost in a burst.
    Burst,
    /// Longer than the MTU.
    Mtu,
    /// The link is down.
    Down,
}

impl DropCause {
    /// All of them.
    pub const ALL: [DropCause; 5] =
        [DropCause::Queue, DropCause::Loss, DropCause::Burst, DropCause::Mtu, DropCause::Down];

    /// A word for tables and files.
    pub fn name(self) -> &'static str {
        match self {
            DropCause::Queue => "queue",
            DropCause::Loss => "loss",
            DropCause::Burst => "burst",
            DropCause::Mtu => "mtu",
            DropCause::Down => "down",
        }
    }
}

/// One direction of a link.
#[derive(Debug)]
pub struct Direction {
    settings: DirectionSettings,
    /// Fixed from the start, as that of a router.
    queue_bytes: u64,
    link: LinkState,
    bottleneck: Bottleneck,
    /// Whether the burst-loss chain is in its bad state.
    in_burst: bool,
    /// When the packet that the chain was asked about last has left the bottleneck.
    last_left_ns: u64,
    held_bytes: u64,
    /// Nothing that keeps its order arrives before this.
    last_arrival_ns: u64,
    random: Random,
    counters: Counters,
}

impl Direction {
    /// A direction of a profile, its link up. The same seed may be used for both directions.
    pub fn new(profile: &LinkProfile, way: Way, seed: u64) -> Direction {
        let stream = match way {
            Way::Up => 0,
            Way::Down => 1 << 63,
        };
        Direction {
            settings: profile.direction(way).clone(),
            queue_bytes: profile.queue_bytes(way).unwrap_or(u64::MAX),
            link: LinkState::Up,
            bottleneck: Bottleneck::default(),
            in_burst: false,
            last_left_ns: 0,
            held_bytes: 0,
            last_arrival_ns: 0,
            random: Random::new(seed ^ stream),
            counters: Counters::default(),
        }
    }

    /// Takes a packet of `length` bytes, IP header included.
    pub fn offer(&mut self, now_ns: u64, length: u32) -> Verdict {
        self.counters.offered.count(length);
        match self.link {
            LinkState::Down => self.drop(DropCause::Down, length),
            LinkState::Hold if self.held_bytes + u64::from(length) > self.queue_bytes => {
                self.drop(DropCause::Queue, length)
            }
            LinkState::Hold => {
                self.held_bytes += u64::from(length);
                self.counters.held.count(length);
                Verdict::Hold
            }
            LinkState::Up => self.transmit(now_ns, length),
        }
    }

    /// Takes back a packet that was held; to be called for all of them, in order, when the link is no longer on hold.
    pub fn release(&mut self, now_ns: u64, length: u32) -> Verdict {
        self.held_bytes = self.held_bytes.saturating_sub(u64::from(length));
        match self.link {
            LinkState::Up => self.transmit(now_ns, length),
            LinkState::Down | LinkState::Hold => self.drop(DropCause::Down, length),
        }
    }

    /// Takes a piece of a byte stream, which is never lost and never overtaken, and says when it arrives.
    ///
    /// The state of the link is not looked at: who calls this waits while it is not up.
    pub fn carry(&mut self, now_ns: u64, length: u32) -> u64 {
        self.counters.offered.count(length);
        self.counters.delivered.count(length);
        let left_ns = match self.settings.rate {
            None => now_ns,
            Some(rate) => self.bottleneck.pass(now_ns, length, rate, u64::MAX).unwrap_or(now_ns),
        };
        let at_ns = (left_ns + nanoseconds(self.settings.delay) + self.jitter_ns()).max(self.last_arrival_ns);
        self.last_arrival_ns = at_ns;
        at_ns
    }

    /// Changes the link from now on.
    pub fn apply(&mut self, change: &Change) {
        if let Some(link) = change.link {
            self.link = link;
        }
        if let Some(rate) = change.rate {
            self.settings.rate = rate;
            self.bottleneck.rate_changed();
        }
        if let Some(delay) = change.delay {
            self.settings.delay = delay;
        }
        if let Some(loss) = change.loss {
            self.settings.loss = loss;
        }
    }

    /// Whether packets pass now.
    pub fn link(&self) -> LinkState {
        self.link
    }

    /// The settings as they are now.
    pub fn settings(&self) -> &DirectionSettings {
        &self.settings
    }

    /// Sums since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Bytes that the queue holds.
    pub fn queue_bytes(&self) -> u64 {
        self.queue_bytes
    }

    /// Bytes that wait before the bottleneck or are held.
    pub fn backlog_bytes(&mut self, now_ns: u64) -> u64 {
        self.bottleneck.backlog_bytes(now_ns) + self.held_bytes
    }

    fn drop(&mut self, cause: DropCause, length: u32) -> Verdict {
        self.counters.count_drop(cause, length);
        Verdict::Drop(cause)
    }

    fn transmit(&mut self, now_ns: u64, length: u32) -> Verdict {
        if length > self.settings.mtu {
            return self.drop(DropCause::Mtu, length);
        }
        let left_ns = match self.settings.rate {
            None => now_ns,
            Some(rate) => match self.bottleneck.pass(now_ns, length, rate, self.queue_bytes) {
                Some(left_ns) => left_ns,
                None => return self.drop(DropCause::Queue, length),
            },
        };
        if let Some(cause) = self.lost(left_ns) {
            return self.drop(cause, length);
        }
        self.counters.delivered.count(length);
        let at_ns = self.arrival(left_ns, length);
        let twice = self.random.happens(self.settings.duplicate.get());
        if twice {
            self.counters.duplicated.count(length);
        }
        Verdict::Deliver { at_ns, duplicate_at_ns: twice.then_some(at_ns) }
    }

    fn lost(&mut self, left_ns: u64) -> Option<DropCause> {
        if let Some(burst) = &self.settings.burst_loss {
            // The two-state chain, any number of steps at once: the share that it tends to, and how much of where it was
            // is left. Steps are packets of the MTU at the link's rate, so that a burst ends when nobody sends as well.
            let share = burst.share.get();
            let leave = 1.0 / burst.mean_packets;
            let enter = share * leave / (1.0 - share);
            let steps = self.settings.rate.map_or(1.0, |rate| {
                let passed = left_ns.saturating_sub(self.last_left_ns) as f64;
                passed * rate.bits() as f64 / (8e9 * f64::from(self.settings.mtu))
            });
            let left = (1.0 - leave - enter).max(0.0).powf(steps);
            let in_bad = if self.in_burst { share + (1.0 - share) * left } else { share * (1.0 - left) };
            self.last_left_ns = left_ns;
            self.in_burst = self.random.happens(in_bad);
            if self.in_burst {
                return Some(DropCause::Burst);
            }
        }
        self.random.happens(self.settings.loss.get()).then_some(DropCause::Loss)
    }

    /// When a packet that has left the bottleneck arrives.
    fn arrival(&mut self, left_ns: u64, length: u32) -> u64 {
        let at_ns = left_ns + nanoseconds(self.settings.delay) + self.jitter_ns();
        if let Some(reorder) = &self.settings.reorder
            && self.random.happens(reorder.share.get())
        {
            self.counters.reordered.count(length);
            return at_ns + nanoseconds(reorder.extra);
        }
        if self.settings.jitter.as_ref().is_some_and(|jitter| !jitter.keeps_order) {
            return at_ns;
        }
        self.last_arrival_ns = at_ns.max(self.last_arrival_ns);
        self.last_arrival_ns
    }

    fn jitter_ns(&mut self) -> u64 {
        let Some(jitter) = &self.settings.jitter else { return 0 };
        let amount = jitter.amount.as_nanos() as f64;
        let added = match jitter.shape {
            JitterShape::Uniform => 2.0 * amount * self.random.unit(),
            JitterShape::Normal => amount * self.random.normal().abs(),
        };
        added as u64
    }
}

/// A duration on the model's clock.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
