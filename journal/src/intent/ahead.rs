//! How far ahead to mark.

use std::ops::Range;

use journal_format::Timestamp;

/// Regions marked at least for a write to a region that is not marked.
const AHEAD_MIN: u64 = 16;
/// Regions marked at most.
const AHEAD_MAX: u64 = 4096;
/// Marks that follow each other faster than this make the next one larger, in nanoseconds.
const BUSY_NS: i64 = 1_000_000_000;

/// The recent need for marks of one volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    limits: (u64, u64),
    regions: u64,
    last: Option<Timestamp>,
}

impl Default for Ahead {
    fn default() -> Self {
        Ahead { limits: (AHEAD_MIN, AHEAD_MAX), regions: AHEAD_MIN, last: None }
    }
}

impl Ahead {
    /// Marks only what is written, so that volumes of few regions have some that are not marked.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Ahead { limits: (1, 1), regions: 1, last: None }
    }

    /// The aligned block of regions to mark around `wanted`, in a volume of `regions`. Aligned, it serves writers that go up, down and
    /// anywhere.
    pub(super) fn around(&mut self, wanted: Range<u64>, regions: u64, now: Timestamp) -> Range<u64> {
        let busy = self.last.is_some_and(|last| now.0 - last.0 < BUSY_NS);
        self.regions =
            if busy { self.regions * 2 } else { self.regions / 2 }.clamp(self.limits.0, self.limits.1);
        self.last = Some(now);
        let start = wanted.start / self.regions * self.regions;
        start..wanted.end.next_multiple_of(self.regions).min(regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp(milliseconds * 1_000_000)
    }

    #[test]
    fn blocks_grow_while_marks_follow_each_other_and_shrink_afterwards() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.around(17..18, 1 << 20, at(0)), 16..32);
        assert_eq!(ahead.around(40..41, 1 << 20, at(10)), 32..64);
        assert_eq!(ahead.around(100..101, 1 << 20, at(20)), 64..128);
        let last = (0..20).map(|step| ahead.around(50_000..50_001, 1 << 20, at(30 + step))).last();
        assert_eq!(last, Some(49_152..53_248));
        assert_eq!(ahead.around(0..1, 1 << 20, at(5000)), 0..2048);
    }

    #[test]
    fn a_block_holds_the_write_and_ends_with_the_volume() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.around(15..40, 45, at(0)), 0..45);
        assert_eq!(ahead.around(44..45, 45, at(1)), 32..45);
    }
}
