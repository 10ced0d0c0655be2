//! Congestion control for long, lossy links that one flow should fill: quinn's side of the [`model`].
//!
//! quinn asks for nothing but a window, and paces at 1.25 windows per smoothed round trip, or less where timers are late.
//! The model therefore keeps what is in flight close to rate × shortest round trip, where acknowledgements set the pace and
//! queues stay short; [`fill`] makes up for what the pacer withholds. Losses alone mean nothing: see [`model`] for what does.

mod fill;
mod filter;
mod model;
mod round;
mod sampler;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use model::Model;

/// Packets that a connection sends at most before the first acknowledgement.
const INITIAL_PACKETS: u64 = 32;

/// What is known of the path to a site; outlives connections, so that the next one begins at the rate of the last.
#[derive(Debug, Default)]
pub(crate) struct PathMemory {
    rate: AtomicU64,
    min_rtt_micros: AtomicU64,
    loss_millionths: AtomicU64,
}

impl PathMemory {
    /// With the rate of an earlier process, in bytes per second.
    pub(crate) fn with_rate(rate: Option<u64>) -> Self {
        Self { rate: AtomicU64::new(rate.unwrap_or(0)), ..Self::default() }
    }

    /// The rate that the path last delivered, in bytes per second; none before the first measurement.
    pub(crate) fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// The shortest round trip of late; none before the first.
    pub(crate) fn min_rtt(&self) -> Option<Duration> {
        let micros = self.min_rtt_micros.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    /// Share of packets that the path loses whatever is sent, from 0 to 1.
    pub(crate) fn loss(&self) -> f64 {
        self.loss_millionths.load(Ordering::Relaxed) as f64 / 1e6
    }

    fn remember(&self, model: &Model) {
        let Some(min_rtt) = model.min_rtt() else { return };
        // What a start has reached so far says little; the rate of the last connection is the better guess.
        if model.has_settled() {
            self.rate.store(model.rate() as u64, Ordering::Relaxed);
        }
        self.min_rtt_micros.store(min_rtt.as_micros().max(1) as u64, Ordering::Relaxed);
        self.loss_millionths.store((model.base_loss() * 1e6) as u64, Ordering::Relaxed);
    }
}

/// Makes controllers that share the memory of their path.
#[derive(Debug)]
pub(crate) struct RateControl {
    /// None at the site, which sends next to nothing.
    pub(crate) memory: Option<Arc<PathMemory>>,
    pub(crate) acks: AckPattern,
}

/// How the other side acknowledges, which bounds how little may be in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckPattern {
    /// Packets after which it acknowledges.
    pub(crate) threshold: u64,
    /// Time after which it does so at the latest.
    pub(crate) delay_max: Duration,
}

impl ControllerFactory for RateControl {
    fn build(self: Arc<Self>, _now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let seed = self.memory.as_ref().and_then(|memory| memory.rate());
        let initial = INITIAL_PACKETS * u64::from(current_mtu);
        let model = Model::new(initial, current_mtu, seed.map(|rate| rate as f64), self.acks);
        Box::new(RateController { model, initial, memory: self.memory.clone() })
    }
}

#[derive(Clone, Debug)]
struct RateController {
    model: Model,
    initial: u64,
    memory: Option<Arc<PathMemory>>,
}

impl Controller for RateController {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        self.model.handle_sent(now, bytes);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _rtt: &RttEstimator) {
        self.model.handle_ack(now, sent, bytes, app_limited);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        if self.model.handle_acks_end(now, in_flight, app_limited)
            && let Some(memory) = &self.memory
        {
            memory.remember(&self.model);
        }
    }

    fn on_congestion_event(
        &mut self,
        _now: Instant,
        _sent: Instant,
        _is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.model.handle_lost(lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.model.handle_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        self.model.window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests;
