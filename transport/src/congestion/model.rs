//! What is known of a path, and how much may be in flight on it. A state machine without I/O: time is an argument.
//!
//! **Rate**: the largest delivery rate of the last ten rounds in which there was enough to send. **Round trip**: the
//! shortest of the last 10 to 20 s. **Window**: rate × (1.10 × round trip + a little), so that acknowledgements set the
//! pace and at most a tenth of a round trip waits in a queue.
//!
//! Neither losses nor longer round trips say by themselves that too much is sent: radio links lose, and routes change.
//! When they persist, the model *verifies*: it sends half of what fits for one round, with the queue drained. What stays
//! then is a property of the path, and is accepted; what goes away was made here, and the rate falls to what was
//! delivered meanwhile.
//!
//! A gap in the acknowledgements of packets that were sent is an outage. It never enters the filters, the losses of the
//! rounds behind it are ignored, and the estimate survives it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::AckPattern;
use super::fill::Fill;
use super::filter::{MaxFilter, MinRtt};
use super::round::{Round, Rounds};
use super::sampler::Sampler;

/// Rounds for which a delivery rate counts.
const RATE_ROUNDS: u64 = 10;
/// Share of the round trip that may wait in the queue, and a little time for timers. Where a queue is too short for that,
/// losses lower the share.
const HEADROOM: f64 = 0.10;
const HEADROOM_MIN: f64 = 0.01;
const HEADROOM_LOSS: f64 = 0.02;
const HEADROOM_TIME: f64 = 0.003;
/// A start goes on as long as rounds deliver more by this factor, and ends after so many that do not.
const START_GROWTH: f64 = 1.25;
const START_STALLS_MAX: u32 = 3;
/// Share of losses that ends a start in a round that did not deliver more.
const START_LOSS_MAX: f64 = 0.06;
/// Windows for more than this were never asked for: a start goes no further than so many times what was delivered.
const START_WINDOW: f64 = 2.5;
/// Probing for more: factor, rounds, and rounds from one probe to the next.
const PROBE_GAIN: f64 = 1.25;
const PROBE_ROUNDS: u32 = 2;
const CYCLE_ROUNDS: u32 = 8;
/// Probes that only fill a short queue come more rarely, down to this, and at least so often.
const CYCLE_ROUNDS_MAX: u32 = 64;
const CYCLE_TIME_MAX: Duration = Duration::from_secs(3);
/// Growth in a probe that makes it go on, and probes after which one goes on as if starting.
const PROBE_GROWTH: f64 = 1.08;
const PROBES_TO_RESTART: u32 = 4;
/// Share of losses beyond those of the path that asks for a verification.
const EXCESS_LOSS: f64 = 0.10;
/// Round trips this much longer than what the window can cause ask for one, too.
const EXCESS_RTT: f64 = 1.2;
const EXCESS_RTT_TIME: Duration = Duration::from_millis(4);
/// Rounds in succession that have to ask.
const STRIKES: u32 = 2;
/// Share of the pipe that is filled while verifying, and while only looking at the round trip.
const VERIFY_GAIN: f64 = 0.5;
const GLANCE_GAIN: f64 = 0.9;
/// The least time between two verifications; it doubles while they find nothing.
const VERIFY_PAUSE: Duration = Duration::from_millis(500);
const VERIFY_PAUSE_MAX: Duration = Duration::from_secs(16);
/// Packets that a round needs for its losses to say something.
const LOSS_PACKETS_MIN: u64 = 40;
/// Losses that are made up for by a larger window at most.
const COMPENSATED_LOSS_MAX: f64 = 0.25;
/// An outage is a gap between acknowledgements of more than this and several round trips.
const OUTAGE: Duration = Duration::from_millis(300);
const OUTAGE_ROUNDS: u32 = 3;
/// A round trip counts for one to two of these, and at least so many round trips.
const RTT_SPAN: Duration = Duration::from_secs(10);
const RTT_SPAN_ROUNDS: u32 = 15;
/// How much of a remembered rate a connection begins with.
const SEED_SHARE: f64 = 0.9;
const WINDOW_PACKETS_MIN: u64 = 6;
/// Packets that quinn wants room for before it sends, and that are in its hands.
const SLACK_PACKETS: u64 = 2;
/// Beyond this quinn does not pace.
const WINDOW_BYTES_MAX: f64 = (1u64 << 31) as f64;

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The window doubles each round.
    Start { window: f64, best: f64, stalls: u32 },
    /// Rounds of the cycle that are over.
    Cruise { round: u32, since: Instant },
    /// Asks whether there is more. `before` is the rate when it began, `grown` how often it was answered yes.
    Probe { round: u32, before: f64, grown: u32 },
    /// Looks at the path with the queue drained.
    Verify { gain: f64, target: f64, stage: Stage, before: Round },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Draining,
    Measuring,
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub(super) struct Model {
    mtu: u64,
    acks: AckPattern,
    initial: u64,
    seed: Option<f64>,
    phase: Phase,
    sampler: Sampler,
    rounds: Rounds,
    /// Number of the round; stands still while the application has too little to send.
    age: u64,
    rate: MaxFilter,
    /// Rates of the last rounds, for when the estimate has to fall.
    recent: VecDeque<f64>,
    rtt: MinRtt,
    /// When a round trip near the shortest was last seen.
    rtt_met_at: Option<Instant>,
    /// Share that was lost while nothing waited in a queue.
    base_loss: f64,
    headroom: f64,
    /// Rounds whose losses are not looked at.
    amnesty: u32,
    rtt_strikes: u32,
    loss_strikes: u32,
    /// Rounds since a probe; its losses come one round later.
    since_probe: u32,
    cycle: u32,
    verified_at: Option<Instant>,
    verify_pause: Duration,
    acked_at: Option<Instant>,
    newest_acked: Option<Instant>,
    in_flight: u64,
    fill: Fill,
}

impl Model {
    /// `seed` is a rate to begin with, in bytes per second.
    pub(super) fn new(initial: u64, mtu: u16, seed: Option<f64>, acks: AckPattern) -> Self {
        Self {
            mtu: u64::from(mtu),
            acks,
            initial,
            seed,
            phase: Phase::Start { window: initial as f64, best: 0.0, stalls: 0 },
            sampler: Sampler::default(),
            rounds: Rounds::default(),
            age: 0,
            rate: MaxFilter::new(RATE_ROUNDS),
            recent: VecDeque::new(),
            rtt: MinRtt::new(),
            rtt_met_at: None,
            base_loss: 0.0,
            headroom: HEADROOM,
            amnesty: 0,
            rtt_strikes: 0,
            loss_strikes: 0,
            since_probe: 0,
            cycle: CYCLE_ROUNDS,
            verified_at: None,
            verify_pause: VERIFY_PAUSE,
            acked_at: None,
            newest_acked: None,
            in_flight: 0,
            fill: Fill::new(),
        }
    }

    /// Bytes per second that the path delivers.
    pub(super) fn rate(&self) -> f64 {
        self.rate.max().unwrap_or(0.0)
    }

    pub(super) fn min_rtt(&self) -> Option<Duration> {
        self.rtt.min()
    }

    /// Whether the rate is that of the path, not that of a start under way.
    pub(super) fn has_settled(&self) -> bool {
        !matches!(self.phase, Phase::Start { .. })
    }

    /// Share that is lost whatever is sent.
    pub(super) fn base_loss(&self) -> f64 {
        self.base_loss
    }

    pub(super) fn handle_mtu(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
    }

    pub(super) fn handle_sent(&mut self, now: Instant, bytes: u64) {
        if self.in_flight == 0 {
            // Silence before it was no outage.
            self.acked_at = Some(now);
        }
        self.in_flight += bytes;
        let round = self.rounds.current();
        round.in_flight = round.in_flight.max(self.in_flight);
        self.sampler.handle_sent(now, bytes);
    }

    pub(super) fn handle_ack(&mut self, now: Instant, sent: Instant, bytes: u64, limited: bool) {
        let rtt = now.saturating_duration_since(sent).max(Duration::from_micros(1));
        self.look_for_outage(now, rtt);
        self.acked_at = Some(now);
        let span = RTT_SPAN.max(self.rtt.min().unwrap_or_default() * RTT_SPAN_ROUNDS);
        self.rtt.insert(now, rtt, span);
        if self.rtt.min().is_some_and(|min| rtt <= min + min / 20 + Duration::from_millis(1)) {
            self.rtt_met_at = Some(now);
        }
        self.begin_seeded(now);
        self.newest_acked = Some(self.newest_acked.map_or(sent, |newest| newest.max(sent)));
        self.sampler.handle_ack(sent, bytes);
        let round = self.rounds.current();
        round.acked += bytes;
        round.rtt = Some(round.rtt.map_or(rtt, |min| min.min(rtt)));
        if let Phase::Start { window, .. } = &mut self.phase
            && !limited
        {
            *window += bytes as f64;
        }
    }

    /// Losses are told when acknowledgements show them.
    pub(super) fn handle_lost(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.sampler.handle_lost(bytes);
        if self.amnesty == 0 {
            self.rounds.current().lost += bytes;
        }
    }

    /// A batch of acknowledgements is complete. Answers whether a round ended with it.
    pub(super) fn handle_acks_end(&mut self, now: Instant, in_flight: u64, limited: bool) -> bool {
        self.in_flight = in_flight;
        let age = self.age;
        let sample = self.sampler.handle_acks_end(now, in_flight, limited);
        let current = self.rounds.current();
        current.limited |= limited;
        if let Some(sample) = sample {
            current.limited |= sample.limited;
            current.rate = current.rate.max(sample.rate);
            if !sample.limited || sample.rate > self.rate.max().unwrap_or(0.0) {
                self.rate.insert(age, sample.rate);
            }
        }
        let Some(newest) = self.newest_acked.take() else { return false };
        if let Phase::Verify { stage: stage @ Stage::Draining, target, .. } = &mut self.phase {
            if in_flight as f64 <= *target + 2.0 * self.mtu as f64 || limited {
                *stage = Stage::Measuring;
                self.rounds.restart(now);
            }
            return false;
        }
        match self.rounds.poll_end(now, newest) {
            Some(round) => {
                self.end_round(now, round);
                true
            }
            None => false,
        }
    }

    /// Ack-eliciting bytes that may be in flight.
    pub(super) fn window(&self) -> u64 {
        let window = match self.phase {
            Phase::Start { window, .. } => match self.rtt.min().filter(|_| self.age > 0) {
                Some(rtt) => {
                    let delivered = self.rate() * (rtt.as_secs_f64() + HEADROOM_TIME);
                    window.min((START_WINDOW * delivered).max(self.initial as f64))
                }
                None => window,
            },
            Phase::Cruise { .. } => self.fill.factor() * self.pipe(1.0 + self.headroom),
            Phase::Probe { .. } => self.fill.factor() * PROBE_GAIN * self.pipe(1.0 + self.headroom),
            Phase::Verify { target, .. } => target,
        };
        (window.min(WINDOW_BYTES_MAX) as u64 + SLACK_PACKETS * self.mtu).max(WINDOW_PACKETS_MIN * self.mtu)
    }

    /// What fits into `round_trips` of the path, with what is under way to be lost, and what the other side collects
    /// before it acknowledges.
    fn pipe(&self, round_trips: f64) -> f64 {
        let rate = self.rate();
        let Some(rtt) = self.rtt.min() else { return self.initial as f64 };
        let kept = 1.0 - self.base_loss.min(COMPENSATED_LOSS_MAX);
        rate * (rtt.as_secs_f64() * round_trips + HEADROOM_TIME + self.ack_time()) / kept
    }

    /// How long the other side collects packets before it acknowledges.
    fn ack_time(&self) -> f64 {
        let collect = (self.acks.threshold * self.mtu) as f64 / self.rate().max(1.0);
        collect.min(self.acks.delay_max.as_secs_f64())
    }

    fn begin_seeded(&mut self, now: Instant) {
        if let Some(seed) = self.seed.take() {
            self.rate.insert(self.age, seed * SEED_SHARE);
            self.cruise(now, 0);
        }
    }

    fn look_for_outage(&mut self, now: Instant, rtt: Duration) {
        let (Some(acked_at), Some(min)) = (self.acked_at, self.rtt.min()) else { return };
        let gap = now.saturating_duration_since(acked_at);
        // A batch that comes late after one long round trip is a queue, not an outage.
        if gap > OUTAGE.max(3 * min) && gap > rtt / 2 {
            self.amnesty = OUTAGE_ROUNDS;
            self.rtt_strikes = 0;
            self.loss_strikes = 0;
            self.rounds.restart(now);
            if matches!(self.phase, Phase::Verify { .. } | Phase::Probe { .. }) {
                self.cruise(now, 0);
            }
        }
    }

    fn end_round(&mut self, now: Instant, round: Round) {
        let forgiven = self.amnesty > 0;
        self.amnesty = self.amnesty.saturating_sub(1);
        self.since_probe = self.since_probe.saturating_add(1);
        if let Phase::Verify { gain, before, .. } = self.phase {
            return self.verified(now, gain, &before, &round);
        }
        if round.limited || forgiven {
            // Nothing is learnt from it; a probe would ask in vain.
            if let Phase::Probe { .. } = self.phase {
                self.cruise(now, 0);
            }
            return;
        }
        if let Phase::Cruise { .. } = self.phase
            && self.since_probe > 2
        {
            self.fill.handle_round(round.in_flight as f64, self.pipe(1.0 + self.headroom));
        }
        self.age += 1;
        self.rate.age(self.age);
        self.recent.push_back(round.rate);
        if self.recent.len() > 3 {
            self.recent.pop_front();
        }
        let excess = round.loss() - self.base_loss;
        self.note_loss(&round, excess);
        match self.phase {
            Phase::Start { window, best, stalls } => self.start_round(now, &round, window, best, stalls),
            Phase::Cruise { round: number, since } => {
                if !self.verify_if_due(now, &round, excess) {
                    self.cruise_round(now, number + 1, since);
                }
            }
            Phase::Probe { round: number, before, grown } => {
                self.probe_round(now, excess, number + 1, before, grown);
            }
            Phase::Verify { .. } => unreachable!("it was handled"),
        }
    }

    /// Loss of the path that has become less is seen in every round; more is only found by verifying.
    fn note_loss(&mut self, round: &Round, excess: f64) {
        let enough = round.acked + round.lost >= LOSS_PACKETS_MIN * self.mtu;
        if enough && excess < 0.0 {
            self.base_loss += excess / 4.0;
        }
        if enough && self.has_settled() && self.since_probe > 2 {
            let overflows = excess > HEADROOM_LOSS;
            let headroom = if overflows { self.headroom * 0.75 } else { self.headroom + 0.004 };
            self.headroom = headroom.clamp(HEADROOM_MIN, HEADROOM);
        }
    }

    fn start_round(&mut self, now: Instant, round: &Round, window: f64, best: f64, stalls: u32) {
        let grew = self.rate() >= best * START_GROWTH;
        let stalls = if grew { 0 } else { stalls + 1 };
        let best = if grew { self.rate() } else { best };
        let queue = self
            .rtt
            .min()
            .zip(round.rtt)
            .is_some_and(|(min, rtt)| rtt > min + min / 4 + Duration::from_millis(8));
        let lossy = !grew && round.loss() > START_LOSS_MAX;
        if stalls >= START_STALLS_MAX || queue || lossy {
            self.since_probe = 0;
            self.cruise(now, 0);
        } else {
            self.phase = Phase::Start { window, best, stalls };
        }
    }

    fn cruise(&mut self, now: Instant, round: u32) {
        self.phase = Phase::Cruise { round, since: now };
    }

    fn cruise_round(&mut self, now: Instant, round: u32, since: Instant) {
        let long = now.saturating_duration_since(since) >= CYCLE_TIME_MAX;
        if round + PROBE_ROUNDS >= self.cycle || (long && round + PROBE_ROUNDS >= CYCLE_ROUNDS) {
            self.phase = Phase::Probe { round: 0, before: self.rate(), grown: 0 };
        } else {
            self.phase = Phase::Cruise { round, since };
        }
    }

    fn probe_round(&mut self, now: Instant, excess: f64, round: u32, before: f64, grown: u32) {
        self.since_probe = 0;
        let futile = excess > EXCESS_LOSS / 2.0;
        if round < PROBE_ROUNDS && !futile {
            self.phase = Phase::Probe { round, before, grown };
        } else if self.rate() >= before * PROBE_GROWTH && !futile {
            self.cycle = CYCLE_ROUNDS;
            if grown + 1 >= PROBES_TO_RESTART {
                let window = self.window() as f64;
                self.phase = Phase::Start { window, best: self.rate(), stalls: 0 };
            } else {
                // The next round shows what this one brought.
                self.phase = Phase::Probe { round: round - 1, before: self.rate(), grown: grown + 1 };
            }
        } else {
            self.cycle = if futile { (self.cycle * 2).min(CYCLE_ROUNDS_MAX) } else { CYCLE_ROUNDS };
            self.cruise(now, 0);
        }
    }

    /// Begins to verify if something asks for it.
    fn verify_if_due(&mut self, now: Instant, round: &Round, excess: f64) -> bool {
        let (Some(min), Some(rtt)) = (self.rtt.min(), round.rtt) else { return false };
        let own = min.as_secs_f64() * (1.0 + HEADROOM) + HEADROOM_TIME + self.ack_time();
        let own = if self.since_probe <= 2 { own * PROBE_GAIN } else { own };
        let inflated = rtt > Duration::from_secs_f64(own * EXCESS_RTT) + EXCESS_RTT_TIME;
        let lossy = excess > EXCESS_LOSS && self.since_probe > 2;
        self.rtt_strikes = if inflated { self.rtt_strikes + 1 } else { 0 };
        self.loss_strikes = if lossy { self.loss_strikes + 1 } else { 0 };
        let since = |at: Option<Instant>| at.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        let asked = self.rtt_strikes >= STRIKES || self.loss_strikes >= STRIKES;
        if asked && since(self.verified_at) >= self.verify_pause.max(4 * min) {
            let recent = self.recent.iter().copied().fold(0.0, f64::max);
            self.verify(now, VERIFY_GAIN, recent.min(self.rate()), *round);
            return true;
        }
        let span = RTT_SPAN.max(min * RTT_SPAN_ROUNDS);
        let unknown = since(self.rtt_met_at) >= span / 2 || (excess > HEADROOM_LOSS && self.since_probe > 2);
        if unknown && since(self.verified_at) >= span / 2 {
            self.verify(now, GLANCE_GAIN, self.rate(), *round);
            return true;
        }
        false
    }

    fn verify(&mut self, now: Instant, gain: f64, rate: f64, before: Round) {
        let rtt = self.rtt.min().unwrap_or_default().as_secs_f64();
        let target = gain * rate * rtt / (1.0 - self.base_loss.min(COMPENSATED_LOSS_MAX));
        self.rtt_strikes = 0;
        self.loss_strikes = 0;
        self.rounds.restart(now);
        self.phase = Phase::Verify { gain, target, stage: Stage::Draining, before };
    }

    fn verified(&mut self, now: Instant, gain: f64, before: &Round, round: &Round) {
        self.verified_at = Some(now);
        self.since_probe = self.since_probe.max(3);
        if let Some(rtt) = round.rtt {
            let enough = round.acked + round.lost >= LOSS_PACKETS_MIN / 4 * self.mtu;
            if gain < GLANCE_GAIN {
                let was = before.rtt.unwrap_or(rtt);
                let queue = was > rtt + rtt / 5 + EXCESS_RTT_TIME;
                let own_losses = enough && before.loss() > round.loss() + EXCESS_LOSS / 2.0;
                if queue || own_losses {
                    let recent = self.recent.iter().copied().fold(0.0, f64::max);
                    self.rate.reset(self.age, recent.max(self.mtu as f64));
                    self.recent.clear();
                    self.verify_pause = VERIFY_PAUSE;
                } else if rtt > self.rtt.min().unwrap_or(rtt).mul_f64(1.1) {
                    self.verify_pause = VERIFY_PAUSE;
                } else {
                    self.verify_pause = (self.verify_pause * 2).min(VERIFY_PAUSE_MAX);
                }
            }
            if enough {
                self.base_loss = round.loss();
            }
            self.rtt.reset(now, rtt);
            self.rtt_met_at = Some(now);
        }
        self.cruise(now, PROBE_ROUNDS);
    }
}

#[cfg(test)]
mod tests;
