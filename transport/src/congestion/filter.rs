//! Filters over rounds and over time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The largest value of the last `span` rounds.
#[derive(Clone, Debug)]
pub(super) struct MaxFilter {
    span: u64,
    /// Rounds and values; both fall and rise strictly: what is older and smaller never counts again.
    entries: VecDeque<(u64, f64)>,
}

impl MaxFilter {
    pub(super) fn new(span: u64) -> Self {
        Self { span, entries: VecDeque::new() }
    }

    pub(super) fn insert(&mut self, round: u64, value: f64) {
        while self.entries.back().is_some_and(|(_, last)| *last <= value) {
            self.entries.pop_back();
        }
        self.entries.push_back((round, value));
    }

    /// Forgets what is older than the span; the newest value stays whatever its age.
    pub(super) fn age(&mut self, round: u64) {
        while self.entries.len() > 1 && self.entries[0].0 + self.span < round {
            self.entries.pop_front();
        }
    }

    pub(super) fn max(&self) -> Option<f64> {
        self.entries.front().map(|(_, value)| *value)
    }

    /// Forgets everything but `value`.
    pub(super) fn reset(&mut self, round: u64, value: f64) {
        self.entries = VecDeque::from([(round, value)]);
    }
}

/// The shortest round trip of the last one to two spans.
///
/// Two buckets that take turns: a value that is never met again is forgotten, and there is always one.
#[derive(Clone, Debug)]
pub(super) struct MinRtt {
    old: Option<Duration>,
    new: Option<Duration>,
    turned_at: Option<Instant>,
}

impl MinRtt {
    pub(super) fn new() -> Self {
        Self { old: None, new: None, turned_at: None }
    }

    pub(super) fn insert(&mut self, now: Instant, rtt: Duration, span: Duration) {
        let turned_at = *self.turned_at.get_or_insert(now);
        if now.saturating_duration_since(turned_at) >= span {
            self.old = self.new.take().or(self.old);
            self.turned_at = Some(now);
        }
        self.new = Some(self.new.map_or(rtt, |new| new.min(rtt)));
    }

    pub(super) fn min(&self) -> Option<Duration> {
        self.old.into_iter().chain(self.new).min()
    }

    /// The path has another round trip now.
    pub(super) fn reset(&mut self, now: Instant, rtt: Duration) {
        *self = Self { old: None, new: Some(rtt), turned_at: Some(now) };
    }
}
