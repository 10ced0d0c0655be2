//! How a line fares, over all connections of a link.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::ConnectionStats;

use crate::congestion::PathMemory;

/// Time over which the overhead is measured.
const OVERHEAD_SPAN: Duration = Duration::from_secs(1);
/// Bytes without which it says nothing.
const OVERHEAD_BYTES_MIN: u64 = 100_000;

/// How a link's line fares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinkStats {
    /// Bytes per second that the path delivers, as last measured.
    pub rate: Option<u64>,
    /// Smoothed round trip of the connection in use; none without one.
    pub rtt: Option<Duration>,
    /// Shortest round trip of late.
    pub rtt_min: Option<Duration>,
    /// Share of packets that the path loses whatever is sent, from 0 to 1.
    pub path_loss: f64,
    /// Bytes that one packet carries at most, by the connection in use.
    pub packet_bytes_max: Option<u16>,
    /// Packets sent since the link was started.
    pub sent_packets: u64,
    /// Of these, packets that were lost.
    pub lost_packets: u64,
    /// Bytes sent since the link was started, with the headers of IP and UDP.
    pub sent_bytes: u64,
    /// Share of the bytes that were sent again, from 0 to 1.
    pub retransmitted_share: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    sent_packets: u64,
    lost_packets: u64,
    sent_bytes: u64,
    lost_bytes: u64,
}

impl Totals {
    fn of(stats: &ConnectionStats) -> Self {
        Self {
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            lost_bytes: stats.path.lost_bytes,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            sent_packets: self.sent_packets + other.sent_packets,
            lost_packets: self.lost_packets + other.lost_packets,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            lost_bytes: self.lost_bytes + other.lost_bytes,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Of connections that ended.
    past: Totals,
    present: Totals,
    rtt: Option<Duration>,
    packet_bytes_max: Option<u16>,
    /// When the overhead was last measured, and what had been sent and written then.
    measured: Option<(Instant, u64, u64)>,
}

/// Keeps what [`LinkStats`] tells.
#[derive(Debug, Default)]
pub(super) struct StatsKeeper(Mutex<State>);

impl StatsKeeper {
    /// Takes in how the connection in use fares. Answers the overhead if it was measured: bytes on the wire for each byte of
    /// segments.
    pub(super) fn observe(
        &self,
        stats: &ConnectionStats,
        sent: u64,
        written: u64,
        now: Instant,
    ) -> Option<f64> {
        let mut state = self.lock();
        state.present = Totals::of(stats);
        state.rtt = Some(stats.path.rtt);
        state.packet_bytes_max = Some(stats.path.current_mtu);
        let (at, sent_before, written_before) = *state.measured.get_or_insert((now, sent, written));
        if now.saturating_duration_since(at) < OVERHEAD_SPAN {
            return None;
        }
        state.measured = Some((now, sent, written));
        let written = written - written_before;
        (written >= OVERHEAD_BYTES_MIN).then(|| (sent - sent_before) as f64 / written as f64)
    }

    /// The connection in use ended.
    pub(super) fn ended(&self) {
        let mut state = self.lock();
        state.past = state.past.plus(state.present);
        state.present = Totals::default();
        state.rtt = None;
        state.packet_bytes_max = None;
    }

    pub(super) fn read(&self, memory: &PathMemory, sent_bytes: u64) -> LinkStats {
        let state = self.lock();
        let totals = state.past.plus(state.present);
        LinkStats {
            rate: memory.rate(),
            rtt: state.rtt,
            rtt_min: memory.min_rtt(),
            path_loss: memory.loss(),
            packet_bytes_max: state.packet_bytes_max,
            sent_packets: totals.sent_packets,
            lost_packets: totals.lost_packets,
            sent_bytes,
            retransmitted_share: totals.lost_bytes as f64 / totals.sent_bytes.max(1) as f64,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
