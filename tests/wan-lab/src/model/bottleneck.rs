//! The bottleneck: a queue with a bounded length that is emptied at a rate, on a virtual clock without rounding errors.

use std::collections::VecDeque;

use crate::profile::Rate;

const NANOSECOND_BITS: u128 = 8_000_000_000;

#[derive(Debug, Default)]
pub(super) struct Bottleneck {
    /// When each packet has left, and its length.
    leaving: VecDeque<(u64, u32)>,
    backlog_bytes: u64,
    /// When the last packet has left.
    free_at_ns: u64,
    /// What of a nanosecond `free_at_ns` is short of, in units of 1/rate.
    remainder: u64,
}

impl Bottleneck {
    /// Takes a packet in and says when it has left; `None` if it does not fit.
    pub(super) fn pass(&mut self, now_ns: u64, length: u32, rate: Rate, queue_bytes: u64) -> Option<u64> {
        let backlog = self.backlog_bytes(now_ns);
        if backlog > 0 && backlog + u64::from(length) > queue_bytes {
            return None;
        }
        if self.free_at_ns < now_ns {
            (self.free_at_ns, self.remainder) = (now_ns, 0);
        }
        let rate = u128::from(rate.bits());
        let work = u128::from(length) * NANOSECOND_BITS + u128::from(self.remainder);
        self.free_at_ns += u64::try_from(work / rate).unwrap_or(u64::MAX / 4);
        self.remainder = u64::try_from(work % rate).expect("is less than the rate");
        self.leaving.push_back((self.free_at_ns, length));
        self.backlog_bytes += u64::from(length);
        Some(self.free_at_ns)
    }

    /// The remainder counts in units of the rate, so it cannot be carried over to another one.
    pub(super) fn rate_changed(&mut self) {
        self.remainder = 0;
    }

    /// Bytes of packets that have not left.
    pub(super) fn backlog_bytes(&mut self, now_ns: u64) -> u64 {
        while let Some(&(left_at, length)) = self.leaving.front() {
            if left_at > now_ns {
                break;
            }
            self.leaving.pop_front();
            self.backlog_bytes -= u64::from(length);
        }
        self.backlog_bytes
    }
}
