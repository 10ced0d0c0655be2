//! How long to wait before the next attempt.

use std::time::Duration;

/// Doubles from a minimum to a maximum, with jitter, so that many sources do not return to a site all at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    state: u64,
}

impl Backoff {
    /// `seed` decides the jitter.
    pub fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, next: min, state: seed }
    }

    /// The next pause: between a half and the whole of a value that doubles each time.
    pub fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        whole / 2 + whole.mul_f64(self.fraction() / 2.0)
    }

    /// Begins again at the minimum.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// SplitMix64 (Steele, Lea, Flood 2014), as a number from 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
