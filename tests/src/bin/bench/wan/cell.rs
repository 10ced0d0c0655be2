//! The links, and what a run over one of them gives.

use std::time::Duration;

use anyhow::{Context, ensure};
use wan_lab::{LinkProfile, Rate, Share};

/// Round trips in milliseconds.
const ROUND_TRIPS: [u64; 4] = [20, 100, 300, 600];
/// Packets lost of a hundred, in each direction.
const LOSSES: [f64; 4] = [0.0, 0.1, 1.0, 3.0];

/// Payload of a full TCP segment with time stamps, of a packet of 1500 bytes.
const PAYLOAD_SHARE: f64 = 1448.0 / 1500.0;

/// A link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    pub(super) rtt_ms: u64,
    pub(super) loss_percent: f64,
}

impl Cell {
    pub(super) fn all() -> Vec<Cell> {
        let with = |rtt_ms| LOSSES.map(move |loss_percent| Cell { rtt_ms, loss_percent });
        ROUND_TRIPS.into_iter().flat_map(with).collect()
    }

    pub(super) fn few() -> Vec<Cell> {
        let with = |rtt_ms| [0.0, 1.0].map(move |loss_percent| Cell { rtt_ms, loss_percent });
        [20, 300].into_iter().flat_map(with).collect()
    }

    /// Reads `RTTxLOSS`, for example `300x0.1`.
    pub(super) fn parse(text: &str) -> anyhow::Result<Cell> {
        let wrong = || {
            format!(
                "--cells '{text}' is not a round trip in milliseconds and a loss in percent, like 300x0.1"
            )
        };
        let (rtt, loss) = text.split_once('x').with_context(wrong)?;
        let rtt_ms: u64 = rtt.parse().ok().with_context(wrong)?;
        let loss_percent: f64 = loss.trim_end_matches('%').parse().ok().with_context(wrong)?;
        ensure!((1..=5000).contains(&rtt_ms) && (0.0..100.0).contains(&loss_percent), wrong());
        Ok(Cell { rtt_ms, loss_percent })
    }

    /// Length of a run, so that the start does not dominate.
    pub(super) fn length(self, seconds: u64) -> Duration {
        let factor = match self.rtt_ms {
            0..=100 => 1,
            101..=300 => 2,
            _ => 4,
        };
        Duration::from_secs(seconds * factor)
    }

    /// The link with a queue of one bandwidth-delay product, the same in both directions.
    pub(super) fn profile(self, rate: Rate) -> LinkProfile {
        let delay = Duration::from_micros(self.rtt_ms * 500);
        let mut profile = LinkProfile::symmetric("bench", rate, delay);
        profile.up.loss = Share::percent(self.loss_percent);
        profile.down.loss = profile.up.loss;
        profile
    }

    /// Payload that a sender without faults gets across, in 10^6 bits per second: what is lost has used its share of the rate.
    pub(super) fn capacity_mbit(self, rate: Rate) -> f64 {
        rate.bits() as f64 / 1e6 * PAYLOAD_SHARE * (1.0 - self.loss_percent / 100.0)
    }
}

/// What a run gave.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Payload that arrived over the length of the run, its start included, in 10^6 bits per second.
    pub(super) mean_mbit: f64,
    /// The same of the second half.
    pub(super) steady_mbit: f64,
    /// Bytes that were sent up with headers for each byte of payload that arrived.
    pub(super) sent_per_byte: f64,
    /// Packets on the way up that did not fit into the link's queue.
    pub(super) lost_in_queue: u64,
    /// Packets on the way up that the link lost.
    pub(super) lost_at_random: u64,
    pub(super) source_cpu_seconds_per_gb: f64,
    pub(super) site_cpu_seconds_per_gb: f64,
    /// Packets up were handed over at most so late, 99 of 100.
    pub(super) late_p99_ms: f64,
    /// Why the run says nothing about the link.
    pub(super) void: Option<String>,
}
