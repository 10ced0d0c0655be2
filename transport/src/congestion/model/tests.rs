use std::collections::{BTreeMap, BinaryHeap};

use super::*;
use crate::congestion::AckPattern;

const MTU: u64 = 1452;
const WIRE: u64 = MTU + 28;
const ACKS: AckPattern = AckPattern { threshold: 20, delay_max: Duration::from_millis(10) };

/// A link with one bottleneck, a tail-drop queue in front of it, and losses behind it.
#[derive(Clone, Copy, Debug)]
struct Path {
    bits_per_second: f64,
    rtt: Duration,
    queue: Duration,
    loss: f64,
    /// Losses come in bursts of about so many packets.
    burst: f64,
    /// Share of packets that come later by up to this.
    late: f64,
    late_by: Duration,
    up: bool,
}

impl Path {
    fn new(megabits: f64, rtt_ms: u64, loss: f64) -> Self {
        let rtt = Duration::from_millis(rtt_ms);
        Self {
            bits_per_second: megabits * 1e6,
            rtt,
            queue: rtt.max(Duration::from_millis(20)),
            loss,
            burst: 1.0,
            late: 0.0,
            late_by: Duration::ZERO,
            up: true,
        }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(u64),
    Acks,
    AckTimer,
    Pace,
    Loss,
}

/// A sender with quinn's window check, pacer and loss detection, and a receiver that acknowledges like quinn's.
struct Flow {
    model: Model,
    path: Path,
    now: Duration,
    epoch: Instant,
    random: u64,
    events: BinaryHeap<std::cmp::Reverse<(Duration, u64, Event)>>,
    number: u64,
    /// Application data to send; none for as much as fits.
    backlog: Option<u64>,
    next_packet: u64,
    sent: BTreeMap<u64, Duration>,
    in_flight: u64,
    srtt: f64,
    tokens: f64,
    paced_at: Duration,
    free_at: Duration,
    in_burst: bool,
    received: Vec<u64>,
    ack_queue: Vec<(Duration, Vec<u64>)>,
    ack_timer: bool,
    loss_timer: Option<Duration>,
    largest_acked: u64,
    last_probe: Duration,
    app_limited: bool,
    delivered: u64,
    lost: u64,
    sent_bytes: u64,
    rtts: Vec<f64>,
}

impl Flow {
    fn new(path: Path, seed: u64) -> Self {
        Self {
            model: Model::new(32 * MTU, MTU as u16, None, ACKS),
            path,
            now: Duration::ZERO,
            epoch: Instant::now(),
            random: seed,
            events: BinaryHeap::new(),
            number: 0,
            backlog: None,
            next_packet: 1,
            sent: BTreeMap::new(),
            in_flight: 0,
            srtt: path.rtt.as_secs_f64(),
            tokens: 10.0 * MTU as f64,
            paced_at: Duration::ZERO,
            free_at: Duration::ZERO,
            in_burst: false,
            received: Vec::new(),
            ack_queue: Vec::new(),
            ack_timer: false,
            loss_timer: None,
            largest_acked: 0,
            last_probe: Duration::ZERO,
            app_limited: false,
            delivered: 0,
            lost: 0,
            sent_bytes: 0,
            rtts: Vec::new(),
        }
    }

    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.number += 1;
        self.events.push(std::cmp::Reverse((time, self.number, event)));
    }

    fn is_lost(&mut self) -> bool {
        let draw = self.fraction();
        self.in_burst = if self.path.burst <= 1.0 {
            draw < self.path.loss
        } else if self.in_burst {
            draw > 1.0 / self.path.burst
        } else {
            draw < self.path.loss / self.path.burst / (1.0 - self.path.loss)
        };
        self.in_burst
    }

    /// Puts one packet onto the link.
    fn transmit(&mut self, bytes: u64) {
        let packet = self.next_packet;
        self.next_packet += 1;
        self.sent.insert(packet, self.now);
        self.in_flight += bytes;
        self.sent_bytes += bytes;
        self.model.handle_sent(self.epoch + self.now, bytes);
        let service = Duration::from_secs_f64((WIRE * 8) as f64 / self.path.bits_per_second);
        let begin = self.free_at.max(self.now);
        if !self.path.up || begin - self.now > self.path.queue {
            return;
        }
        self.free_at = begin + service;
        if self.is_lost() {
            return;
        }
        let mut arrives = self.free_at + self.path.rtt / 2;
        if self.path.late > 0.0 && self.fraction() < self.path.late {
            arrives += self.path.late_by.mul_f64(self.fraction());
        }
        self.at(arrives, Event::Arrive(packet));
    }

    fn send(&mut self) {
        loop {
            let has_data = self.backlog.is_none_or(|left| left > 0);
            if !has_data {
                self.app_limited = true;
                return;
            }
            self.app_limited = false;
            let window = self.model.window();
            if self.in_flight + MTU >= window {
                return;
            }
            let burst = (window as f64 * 0.002 / self.srtt).clamp((10 * MTU) as f64, (256 * MTU) as f64);
            let passed = (self.now - self.paced_at).as_secs_f64();
            self.paced_at = self.now;
            self.tokens = (self.tokens + window as f64 * 1.25 * passed / self.srtt).min(burst);
            if self.tokens < MTU as f64 {
                let wait = (burst - self.tokens) * self.srtt / (1.25 * window as f64);
                // tokio's timers have a millisecond.
                let wake = (self.now + Duration::from_secs_f64(wait)).as_secs_f64() * 1e3;
                let wake = Duration::from_millis(wake.ceil() as u64).max(self.now + Duration::from_micros(1));
                self.at(wake, Event::Pace);
                return;
            }
            self.tokens -= MTU as f64;
            if let Some(left) = &mut self.backlog {
                *left = left.saturating_sub(MTU);
            }
            self.transmit(MTU);
        }
    }

    fn acknowledge(&mut self) {
        self.ack_timer = false;
        let packets = std::mem::take(&mut self.received);
        if !packets.is_empty() && self.path.up {
            self.ack_queue.push((self.now, packets));
            self.at(self.now + self.path.rtt / 2, Event::Acks);
        }
    }

    fn take_acks(&mut self) {
        let (_, packets) = self.ack_queue.remove(0);
        let now = self.epoch + self.now;
        let mut newest = None;
        let mut any = false;
        for packet in packets {
            let Some(sent) = self.sent.remove(&packet) else { continue };
            any = true;
            self.in_flight -= MTU;
            self.delivered += MTU;
            self.model.handle_ack(now, self.epoch + sent, MTU, self.app_limited);
            if packet > self.largest_acked {
                self.largest_acked = packet;
                newest = Some(sent);
            }
        }
        if !any {
            return;
        }
        self.model.handle_acks_end(now, self.in_flight, self.app_limited);
        if let Some(sent) = newest {
            let rtt = (self.now - sent).as_secs_f64();
            self.srtt = 0.875 * self.srtt + 0.125 * rtt;
            self.rtts.push(rtt);
        }
        self.detect_losses();
    }

    fn detect_losses(&mut self) {
        let delay = Duration::from_secs_f64(self.srtt * 1.125);
        let old: Vec<u64> = self
            .sent
            .range(..self.largest_acked)
            .take_while(|(packet, sent)| self.now >= **sent + delay || **packet + 1000 <= self.largest_acked)
            .map(|(packet, _)| *packet)
            .collect();
        let bytes = old.len() as u64 * MTU;
        for packet in old {
            self.sent.remove(&packet);
        }
        if bytes > 0 {
            self.in_flight -= bytes;
            self.lost += bytes;
            if let Some(left) = &mut self.backlog {
                *left += bytes;
            }
            self.model.handle_lost(bytes);
        }
        if let Some(sent) = self.sent.range(..self.largest_acked).map(|(_, sent)| *sent).next() {
            let due = sent + delay;
            if self.loss_timer.is_none_or(|at| at <= self.now || at > due) {
                self.loss_timer = Some(due);
                self.at(due, Event::Loss);
            }
        }
    }

    /// Runs until `until`; a lost connection is probed twice a second.
    fn run(&mut self, until: Duration) {
        self.send();
        while self.now < until {
            let probe = (self.last_probe + Duration::from_millis(500)).max(self.now);
            let next = self.events.peek().map_or(Duration::MAX, |event| event.0.0);
            if next > probe.min(until) {
                self.now = probe.min(until);
                if self.now == probe {
                    self.last_probe = probe;
                    if self.in_flight > 0 {
                        self.transmit(MTU);
                    }
                }
                continue;
            }
            let std::cmp::Reverse((time, _, event)) = self.events.pop().unwrap();
            self.now = time;
            match event {
                Event::Arrive(packet) => {
                    self.received.push(packet);
                    if self.received.len() as u64 >= ACKS.threshold {
                        self.acknowledge();
                    } else if !self.ack_timer {
                        self.ack_timer = true;
                        self.at(self.now + ACKS.delay_max, Event::AckTimer);
                    }
                }
                Event::AckTimer if self.ack_timer => self.acknowledge(),
                Event::Acks => {
                    self.last_probe = self.now;
                    self.take_acks();
                }
                Event::Loss => self.detect_losses(),
                Event::AckTimer | Event::Pace => {}
            }
            self.send();
        }
    }

    /// Share of the link that was used from now on for `seconds`.
    fn utilisation(&mut self, seconds: f64) -> f64 {
        let before = self.delivered;
        let end = self.now + Duration::from_secs_f64(seconds);
        self.rtts.clear();
        self.run(end);
        let payload = self.path.bits_per_second / 8.0 * MTU as f64 / WIRE as f64;
        (self.delivered - before) as f64 / seconds / payload
    }

    fn median_rtt(&mut self) -> f64 {
        self.rtts.sort_by(f64::total_cmp);
        self.rtts[self.rtts.len() / 2]
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Time to settle, then the share of the link that is used.
fn settled(path: Path) -> Flow {
    let mut flow = Flow::new(path, 7);
    flow.run(seconds(3.0) + 15 * path.rtt);
    flow
}

/// Whether every combination is tried.
fn is_full() -> bool {
    std::env::var_os("THIRDSITE_TEST_SCALE").is_some_and(|scale| scale == "full")
}

#[test]
fn a_link_is_filled_whatever_its_round_trip_and_losses() {
    let (megabits, losses): (f64, &[f64]) =
        if is_full() { (50.0, &[0.0, 0.001, 0.01, 0.03, 0.05]) } else { (10.0, &[0.0, 0.01, 0.05]) };
    for rtt in [1, 20, 100, 300, 600] {
        for &loss in losses {
            let mut flow = settled(Path::new(megabits, rtt, loss));
            let used = flow.utilisation(8.0);
            let target = if loss == 0.0 { 0.95 } else { 0.91 - loss };
            eprintln!("rtt {rtt} ms, loss {loss}: {used:.3}, median {:.1} ms", flow.median_rtt() * 1e3);
            assert!(used >= target, "rtt {rtt} ms, loss {loss}: {used:.3} of the link");
        }
    }
}

#[test]
fn queues_stay_short() {
    for rtt in [20, 100, 300] {
        let mut flow = settled(Path::new(20.0, rtt, 0.0));
        flow.utilisation(8.0);
        let inflation = flow.median_rtt() * 1e3 - rtt as f64;
        assert!(
            inflation <= 0.15 * rtt as f64 + 10.0,
            "rtt {rtt} ms: the median is {inflation:.1} ms longer"
        );
    }
}

#[test]
fn heavy_losses_do_not_stop_it() {
    for loss in [0.08, 0.12, 0.16, 0.20] {
        let mut flow = settled(Path::new(20.0, 100, loss));
        let used = flow.utilisation(8.0);
        eprintln!("loss {loss}: {used:.3}");
        assert!(used >= 0.6 * (1.0 - loss), "loss {loss}: {used:.3} of the link");
    }
}

#[test]
fn a_slow_link_is_filled_too() {
    for megabits in [1.0, 5.0] {
        let mut flow = settled(Path::new(megabits, 40, 0.0));
        let used = flow.utilisation(8.0);
        eprintln!("{megabits} Mbit/s: {used:.3}, median {:.1} ms", flow.median_rtt() * 1e3);
        assert!(used >= 0.93, "{megabits} Mbit/s: {used:.3} of the link");
    }
}

#[test]
fn a_short_queue_is_no_obstacle() {
    let path = Path { queue: Duration::from_millis(10), ..Path::new(50.0, 100, 0.0) };
    let mut flow = settled(path);
    let (lost, sent) = (flow.lost, flow.sent_bytes);
    let used = flow.utilisation(8.0);
    let lost = (flow.lost - lost) as f64 / (flow.sent_bytes - sent) as f64;
    eprintln!("short queue: {used:.3}, lost {lost:.4}");
    assert!(used >= 0.90, "{used:.3} of the link");
    assert!(lost <= 0.07, "{lost:.3} of the packets were lost");
}

#[test]
fn bursts_of_losses_and_late_packets_are_no_obstacle() {
    let mut flow = settled(Path { burst: 20.0, ..Path::new(20.0, 100, 0.01) });
    let used = flow.utilisation(8.0);
    assert!(used >= 0.90, "bursts: {used:.3} of the link");
    let mut flow =
        settled(Path { late: 0.25, late_by: Duration::from_millis(12), ..Path::new(20.0, 100, 0.0) });
    let used = flow.utilisation(8.0);
    assert!(used >= 0.92, "late packets: {used:.3} of the link");
}

#[test]
fn a_longer_route_is_taken_for_one() {
    for (before, after) in [(50, 150), (20, 300), (150, 50)] {
        let mut flow = settled(Path::new(20.0, before, 0.0));
        flow.path.rtt = Duration::from_millis(after);
        flow.run(flow.now + seconds(1.5) + 2 * flow.path.rtt);
        let used = flow.utilisation(5.0);
        eprintln!("{before} -> {after}: {used:.3}");
        assert!(used >= 0.90, "{before} -> {after} ms: {used:.3} of the link");
    }
}

#[test]
fn a_slower_link_is_met_and_a_faster_one_found() {
    for rtt in [50, 100, 300] {
        let mut flow = settled(Path::new(50.0, rtt, 0.0));
        flow.path.bits_per_second = 10e6;
        flow.run(flow.now + seconds(2.0) + 8 * flow.path.rtt);
        let used = flow.utilisation(5.0);
        let inflation = flow.median_rtt() / flow.path.rtt.as_secs_f64();
        eprintln!("slower, rtt {rtt}: {used:.3}, rtt x {inflation:.2}");
        assert!(used >= 0.90, "rtt {rtt} ms, slower: {used:.3} of the link");
        assert!(inflation <= 1.5, "rtt {rtt} ms, slower: round trips are {inflation:.2} times as long");
        flow.path.bits_per_second = 50e6;
        flow.run(flow.now + seconds(2.0) + 14 * flow.path.rtt);
        let used = flow.utilisation(5.0);
        eprintln!("faster, rtt {rtt}: {used:.3}");
        assert!(used >= 0.90, "rtt {rtt} ms, faster: {used:.3} of the link");
    }
}

#[test]
fn an_outage_is_survived_by_the_estimate() {
    for (rtt, outage) in [(20, 0.5), (100, 3.0), (100, 600.0), (600, 30.0)] {
        let mut flow = settled(Path::new(20.0, rtt, 0.01));
        let before = flow.model.rate();
        flow.path.up = false;
        flow.run(flow.now + seconds(outage));
        flow.path.up = true;
        flow.run(flow.now + seconds(0.6) + 3 * flow.path.rtt);
        let ratio = flow.model.rate() / before;
        assert!((0.85..1.3).contains(&ratio), "rtt {rtt} ms, {outage} s: the estimate changed by {ratio:.2}");
        let used = flow.utilisation(5.0);
        eprintln!("outage {outage} rtt {rtt}: {used:.3}");
        assert!(used >= 0.87, "rtt {rtt} ms, {outage} s: {used:.3} of the link");
    }
}

#[test]
fn an_idle_connection_keeps_its_rate() {
    let mut flow = settled(Path::new(20.0, 100, 0.0));
    flow.backlog = Some(0);
    flow.run(flow.now + seconds(2.0));
    for _ in 0..200 {
        flow.backlog = Some(flow.backlog.unwrap() + 3000);
        flow.run(flow.now + seconds(0.3));
    }
    flow.backlog = None;
    let used = flow.utilisation(2.0);
    assert!(used >= 0.88, "{used:.3} of the link");
}
