//! How much of a window gets used.
//!
//! quinn's pacer hands out two milliseconds' worth of packets at a time, and what a late timer misses is lost: with timers
//! of a millisecond it lets about four fifths of the window out in a round trip. What is missing is made up for here.

/// The window is made larger by this factor at most: a sender that is slow for other reasons is not to burst later.
const FACTOR_MAX: f64 = 1.5;
/// What is in flight may differ from what is wanted by this share.
const TOLERANCE: f64 = 0.02;

/// The factor by which a window has to be larger than what is wanted in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill(f64);

impl Fill {
    pub(super) fn new() -> Self {
        Self(1.0)
    }

    pub(super) fn factor(self) -> f64 {
        self.0
    }

    /// A round is over in which there was always enough to send. `reached` is the most that was in flight, `wanted` how much
    /// it should have been.
    pub(super) fn handle_round(&mut self, reached: f64, wanted: f64) {
        let share = reached / wanted.max(1.0);
        if (share - 1.0).abs() > TOLERANCE {
            // Half of the way: what is seen now is what was sent a round ago.
            self.0 = (self.0 * (1.0 + 1.0 / share.max(0.5)) / 2.0).clamp(1.0, FACTOR_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In flight after some rounds where the sender uses `used` of the window.
    fn in_flight(used: f64) -> f64 {
        let mut fill = Fill::new();
        for _ in 0..20 {
            fill.handle_round(1000.0 * fill.factor() * used, 1000.0);
        }
        1000.0 * fill.factor() * used
    }

    #[test]
    fn a_window_that_is_used_in_part_becomes_larger_and_one_that_is_used_up_does_not() {
        assert!((970.0..1030.0).contains(&in_flight(0.8)), "{}", in_flight(0.8));
        assert!((970.0..1030.0).contains(&in_flight(0.95)), "{}", in_flight(0.95));
        assert!((in_flight(1.0) - 1000.0).abs() < 1e-6);
    }

    #[test]
    fn a_slow_sender_does_not_raise_it_without_end_and_it_falls_again() {
        let mut fill = Fill::new();
        for _ in 0..50 {
            fill.handle_round(100.0, 1000.0);
        }
        assert!((fill.factor() - FACTOR_MAX).abs() < 1e-6);
        for _ in 0..20 {
            fill.handle_round(1000.0 * fill.factor(), 1000.0);
        }
        assert!(fill.factor() < 1.0 + 2.0 * TOLERANCE);
    }
}
