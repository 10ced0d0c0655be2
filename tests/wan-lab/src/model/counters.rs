//! What happened to the packets of a direction.

use std::ops::AddAssign;

use super::DropCause;

/// Sums since the start. `offered` is `delivered` plus the drops plus what is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that were offered.
    pub offered: Tally,
    /// Packets that arrive, duplicates not counted.
    pub delivered: Tally,
    /// Dropped at the tail of the queue.
    pub dropped_queue: Tally,
    /// Lost at random.
    pub dropped_loss: Tally,
    /// Lost in bursts.
    pub dropped_burst: Tally,
    /// Longer than the MTU.
    pub dropped_mtu: Tally,
    /// Offered while the link was down.
    pub dropped_down: Tally,
    /// Packets that arrive a second time.
    pub duplicated: Tally,
    /// Packets that were made late, to be overtaken.
    pub reordered: Tally,
    /// Packets that were kept for a while by a link on hold.
    pub held: Tally,
}

/// A number of packets, with their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
}

impl Tally {
    pub(crate) fn count(&mut self, length: u32) {
        self.packets += 1;
        self.bytes += u64::from(length);
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl Counters {
    /// All drops together.
    pub fn dropped(&self) -> Tally {
        let mut sum = Tally::default();
        for cause in DropCause::ALL {
            sum += self.dropped_for(cause);
        }
        sum
    }

    /// The drops of one cause.
    pub fn dropped_for(&self, cause: DropCause) -> Tally {
        match cause {
            DropCause::Queue => self.dropped_queue,
            DropCause::Loss => self.dropped_loss,
            DropCause::Burst => self.dropped_burst,
            DropCause::Mtu => self.dropped_mtu,
            DropCause::Down => self.dropped_down,
        }
    }

    pub(super) fn count_drop(&mut self, cause: DropCause, length: u32) {
        let tally = match cause {
            DropCause::Queue => &mut self.dropped_queue,
            DropCause::Loss => &mut self.dropped_loss,
            DropCause::Burst => &mut self.dropped_burst,
            DropCause::Mtu => &mut self.dropped_mtu,
            DropCause::Down => &mut self.dropped_down,
        };
        tally.count(length);
    }
}
