//! How late an engine was: a histogram that threads fill without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets grow by a quarter of a power of two.
const PER_OCTAVE: u64 = 4;
/// The last one begins at 2^40 ns, about 18 minutes.
const BUCKETS: usize = 40 * PER_OCTAVE as usize;

/// Times from when a packet was due until it was handed over.
#[derive(Debug)]
pub struct Lateness {
    buckets: [AtomicU64; BUCKETS],
    max_ns: AtomicU64,
}

impl Default for Lateness {
    fn default() -> Self {
        Lateness { buckets: std::array::from_fn(|_| AtomicU64::new(0)), max_ns: AtomicU64::new(0) }
    }
}

impl Lateness {
    pub(crate) fn record(&self, late_ns: u64) {
        self.buckets[bucket(late_ns)].fetch_add(1, Ordering::Relaxed);
        self.max_ns.fetch_max(late_ns, Ordering::Relaxed);
    }

    /// Packets that were recorded.
    pub fn packets(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The longest of all.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns.load(Ordering::Relaxed))
    }

    /// What a share of the packets (0.99 for p99) did not exceed; up to 19 % more than the true value, never less.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.packets() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Ordering::Relaxed);
            if seen >= wanted.max(1) {
                return Duration::from_nanos(bucket_end(index)).min(self.max());
            }
        }
        self.max()
    }
}

fn bucket(late_ns: u64) -> usize {
    let late_ns = late_ns.max(PER_OCTAVE);
    let octave = u64::from(late_ns.ilog2());
    let quarter = (late_ns >> (octave - 2)) - PER_OCTAVE;
    ((octave * PER_OCTAVE + quarter) as usize).min(BUCKETS - 1)
}

fn bucket_end(index: usize) -> u64 {
    let (octave, quarter) = (index as u64 / PER_OCTAVE, index as u64 % PER_OCTAVE);
    if octave < 2 { PER_OCTAVE } else { (PER_OCTAVE + quarter + 1) << (octave - 2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_not_less_than_the_truth_and_at_most_a_quarter_more() {
        let lateness = Lateness::default();
        (1..=100_000).for_each(|number| lateness.record(number * 100));
        for (share, truth_ns) in [(0.5, 5_000_000_u128), (0.99, 9_900_000), (0.999, 9_990_000)] {
            let found = lateness.quantile(share).as_nanos();
            assert!((truth_ns..truth_ns * 5 / 4).contains(&found), "{share} {found}");
        }
        assert_eq!(lateness.max(), Duration::from_millis(10));
        assert_eq!(lateness.packets(), 100_000);
    }

    #[test]
    fn nothing_recorded_is_nothing_late() {
        assert_eq!(Lateness::default().quantile(0.99), Duration::ZERO);
    }
}
