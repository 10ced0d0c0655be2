//! Whether a run in real time can be believed.

use std::time::Duration;

use crate::lateness::Lateness;
use crate::profile::Way;

/// Lateness below this is noise, however short the link.
const LATENESS_MIN: Duration = Duration::from_millis(1);

/// What an engine says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Packets that got lost in queues before or behind the model because the engine was too slow.
    pub overload_packets: u64,
    /// Whether the threads ran with a realtime priority.
    pub realtime: bool,
    /// How late packets were handed over, up first.
    pub lateness: [LatenessSummary; 2],
    /// Round trip of the profile, for comparison.
    pub round_trip: Duration,
}

/// How late the packets of a direction were handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatenessSummary {
    /// Half of them at most.
    pub p50: Duration,
    /// 99 % of them at most.
    pub p99: Duration,
    /// The latest.
    pub max: Duration,
}

impl LatenessSummary {
    pub(crate) fn of(lateness: &Lateness) -> LatenessSummary {
        LatenessSummary { p50: lateness.quantile(0.5), p99: lateness.quantile(0.99), max: lateness.max() }
    }
}

impl Health {
    /// Why the run says nothing about the link; `None` if it can be believed.
    ///
    /// Packets lost by the engine make it void, and so does a p99 of lateness above a tenth of the round trip.
    pub fn void(&self) -> Option<String> {
        if self.overload_packets > 0 {
            return Some(format!(
                "the emulator was too slow and lost {} packets itself",
                self.overload_packets
            ));
        }
        let limit = (self.round_trip / 10).max(LATENESS_MIN);
        let (way, worst) = Way::BOTH.into_iter().zip(self.lateness).max_by_key(|(_, summary)| summary.p99)?;
        (worst.p99 > limit).then(|| {
            format!(
                "one packet of a hundred on the way {} was more than {} late; {} is the limit for this link",
                way.name(),
                humantime::format_duration(microseconds(worst.p99)),
                humantime::format_duration(limit)
            )
        })
    }
}

fn microseconds(time: Duration) -> Duration {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(overload_packets: u64, p99_ms: u64) -> Health {
        let late = Duration::from_millis(p99_ms);
        let lateness = [LatenessSummary { p50: Duration::ZERO, p99: late, max: late }; 2];
        Health { overload_packets, realtime: true, lateness, round_trip: Duration::from_millis(100) }
    }

    #[test]
    fn lost_and_late_packets_make_a_run_void() {
        assert_eq!(health(0, 10).void(), None);
        assert!(health(1, 0).void().is_some_and(|reason| reason.contains("lost 1 packets")));
        assert!(health(0, 11).void().is_some_and(|reason| reason.contains("11ms late; 10ms")));
    }
}
