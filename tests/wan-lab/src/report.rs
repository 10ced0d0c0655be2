//! What a run over a link was like: samples over time, sums, and a picture of them.

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::Serialize;

use crate::health::Health;
use crate::model::{Counters, DropCause};
use crate::plot::{Band, Line, Panel, Plot};
use crate::profile::{LinkProfile, Outage, Rate, Way};

/// What was seen within an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// End of the interval, in seconds from the start of the run.
    pub seconds: f64,
    /// Payload that arrived at the site, in 10^6 bits per second.
    pub goodput_mbit: f64,
    /// Age of the oldest data that is not confirmed.
    pub lag_seconds: f64,
    /// What a loss of the source would lose now, as far as the source knows: the age of the newest point that the site has confirmed.
    pub rpo_seconds: f64,
    /// The same as the site knows it: the age of the newest point that is whole there.
    pub site_rpo_seconds: f64,
    /// Packets of the direction of the data that were lost or dropped within the interval.
    pub lost_packets: u64,
    /// Bytes before the bottleneck of the direction of the data.
    pub queue_bytes: u64,
}

/// How soon data arrived again after an outage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recovery {
    /// The outage.
    pub outage: Outage,
    /// From its end to the end of the first interval in which payload arrived; `None` if none did.
    pub seconds: Option<f64>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the profile.
    pub profile: String,
    /// Which engine carried the packets.
    pub engine: String,
    /// Seed of the model.
    pub seed: u64,
    /// Length of the run.
    pub seconds: f64,
    /// Payload that arrived in the run.
    pub arrived_bytes: u64,
    /// Of it what was confirmed: whole segments, in order.
    pub confirmed_bytes: u64,
    /// Payload that arrived over the length of the run, in 10^6 bits per second.
    pub goodput_mbit: f64,
    /// What the link could have carried, headers included, in 10^6 bits per second of the run; outages are not counted.
    /// `None` if the rate is unlimited.
    pub capacity_mbit: Option<f64>,
    /// Half of the time the lag was not more than this.
    pub lag_p50_seconds: f64,
    /// 99 % of the time the lag was not more than this.
    pub lag_p99_seconds: f64,
    /// Longest lag.
    pub lag_max_seconds: f64,
    /// Age of the newest point that the site has confirmed, as the source knows it.
    pub rpo_seconds: Quantiles,
    /// Age of the newest point that is whole at the site.
    pub site_rpo_seconds: Quantiles,
    /// What happened to the packets from source to site.
    pub up: PacketSums,
    /// What happened to the packets from site to source.
    pub down: PacketSums,
    /// Recovery from each outage.
    pub recoveries: Vec<Recovery>,
    /// CPU time by who used it, in seconds.
    pub cpu_seconds: Vec<CpuTime>,
    /// What the engine says of itself.
    pub emulator: EmulatorReport,
    /// Why the run says nothing about the link.
    pub void: Option<String>,
    /// The course of the run.
    pub samples: Vec<Sample>,
}

/// How a figure of the samples is distributed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half of the samples are not above this.
    pub p50: f64,
    /// 99 % of the samples are not above this.
    pub p99: f64,
    /// The highest.
    pub max: f64,
}

impl Quantiles {
    fn of(values: impl Iterator<Item = f64>) -> Quantiles {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&values, share));
        Quantiles { p50, p99, max }
    }
}

/// CPU time of a part of the program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CpuTime {
    /// Who.
    pub part: String,
    /// Seconds of CPU time.
    pub seconds: f64,
}

/// Packets of a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PacketSums {
    /// Packets that were sent.
    pub offered: u64,
    /// Their bytes with IP headers.
    pub offered_bytes: u64,
    /// Packets that arrived.
    pub delivered: u64,
    /// Dropped at the tail of the queue.
    pub dropped_queue: u64,
    /// Lost at random.
    pub dropped_loss: u64,
    /// Lost in bursts.
    pub dropped_burst: u64,
    /// Longer than the MTU.
    pub dropped_mtu: u64,
    /// Sent while the link was down.
    pub dropped_down: u64,
    /// Came twice.
    pub duplicated: u64,
    /// Were overtaken on purpose.
    pub reordered: u64,
}

impl From<&Counters> for PacketSums {
    fn from(counters: &Counters) -> Self {
        let dropped = |cause| counters.dropped_for(cause).packets;
        PacketSums {
            offered: counters.offered.packets,
            offered_bytes: counters.offered.bytes,
            delivered: counters.delivered.packets,
            dropped_queue: dropped(DropCause::Queue),
            dropped_loss: dropped(DropCause::Loss),
            dropped_burst: dropped(DropCause::Burst),
            dropped_mtu: dropped(DropCause::Mtu),
            dropped_down: dropped(DropCause::Down),
            duplicated: counters.duplicated.packets,
            reordered: counters.reordered.packets,
        }
    }
}

impl PacketSums {
    /// All drops together.
    pub fn dropped(&self) -> u64 {
        self.dropped_queue + self.dropped_loss + self.dropped_burst + self.dropped_mtu + self.dropped_down
    }
}

/// What an engine says of itself, for a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmulatorReport {
    /// Packets that it lost itself.
    pub overload_packets: u64,
    /// Whether its threads had a realtime priority.
    pub realtime: bool,
    /// Lateness of packets up: p50, p99 and maximum, in milliseconds.
    pub lateness_up_ms: [f64; 3],
    /// The same down.
    pub lateness_down_ms: [f64; 3],
}

impl From<&Health> for EmulatorReport {
    fn from(health: &Health) -> Self {
        let milliseconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let [up, down] =
            health.lateness.map(|summary| [summary.p50, summary.p99, summary.max].map(milliseconds));
        EmulatorReport {
            overload_packets: health.overload_packets,
            realtime: health.realtime,
            lateness_up_ms: up,
            lateness_down_ms: down,
        }
    }
}

/// What is known at the end of a run, besides its samples.
#[derive(Clone, Debug)]
pub struct RunEnd {
    /// Which engine carried the packets.
    pub engine: String,
    /// Seed of the model.
    pub seed: u64,
    /// Length of the run.
    pub length: Duration,
    /// Payload that arrived.
    pub arrived_bytes: u64,
    /// Of it what was confirmed.
    pub confirmed_bytes: u64,
    /// Counters of the link, up first.
    pub counters: [Counters; 2],
    /// CPU time by who used it.
    pub cpu_seconds: Vec<CpuTime>,
    /// What the engine says of itself.
    pub health: Health,
}

impl Report {
    /// Sums a run up.
    pub fn new(profile: &LinkProfile, end: RunEnd, samples: Vec<Sample>) -> Report {
        let seconds = end.length.as_secs_f64();
        let capacity = profile.capacity_bytes(Way::Up, end.length);
        let lag = Quantiles::of(samples.iter().map(|sample| sample.lag_seconds));
        let recoveries = profile.outages(end.length).into_iter().map(|outage| recovery(outage, &samples));
        Report {
            profile: profile.name.clone(),
            engine: end.engine,
            seed: end.seed,
            seconds,
            arrived_bytes: end.arrived_bytes,
            confirmed_bytes: end.confirmed_bytes,
            goodput_mbit: megabits(end.arrived_bytes as f64, seconds),
            capacity_mbit: capacity.map(|bytes| megabits(bytes, seconds)),
            lag_p50_seconds: lag.p50,
            lag_p99_seconds: lag.p99,
            lag_max_seconds: lag.max,
            rpo_seconds: Quantiles::of(samples.iter().map(|sample| sample.rpo_seconds)),
            site_rpo_seconds: Quantiles::of(samples.iter().map(|sample| sample.site_rpo_seconds)),
            up: PacketSums::from(&end.counters[Way::Up as usize]),
            down: PacketSums::from(&end.counters[Way::Down as usize]),
            recoveries: recoveries.collect(),
            cpu_seconds: end.cpu_seconds,
            emulator: EmulatorReport::from(&end.health),
            void: end.health.void(),
            samples,
        }
    }

    /// Draws the course of the run: goodput and the link's rate, lag, lost packets, queue; outages are shaded.
    pub fn plot(&self, profile: &LinkProfile) -> Plot {
        let length = Duration::from_secs_f64(self.seconds);
        let line = |name: &str, value: fn(&Sample) -> f64| {
            Line::new(name, self.samples.iter().map(|sample| (sample.seconds, value(sample))).collect())
        };
        let mut goodput = vec![line("arrived at the site", |sample| sample.goodput_mbit)];
        let rates = profile.rates(Way::Up, length);
        if rates.iter().all(|(_, rate)| rate.is_some()) {
            goodput.push(Line::new("link's rate", steps(&rates, self.seconds)).dashed());
        }
        let panel = |title: &str, lines| Panel { title: title.to_owned(), lines };
        let panels = vec![
            panel("Goodput, Mbit/s", goodput),
            panel("Lag, s", vec![line("age of the oldest unconfirmed data", |sample| sample.lag_seconds)]),
            panel(
                "Lost packets per interval",
                vec![line("lost on the way up", |sample| sample.lost_packets as f64)],
            ),
            panel(
                "Queue, KiB",
                vec![line("before the bottleneck, up", |sample| sample.queue_bytes as f64 / 1024.0)],
            ),
        ];
        let bands = self.recoveries.iter().map(|recovery| Band {
            from: recovery.outage.from_seconds,
            until: recovery.outage.until_seconds,
            label: recovery.outage.state.to_owned(),
        });
        Plot {
            title: format!("Link '{}', engine {}, seed {}", self.profile, self.engine, self.seed),
            subtitle: self.subtitle(),
            x_title: "Seconds from the start".to_owned(),
            x_max: self.seconds,
            panels,
            bands: bands.collect(),
        }
    }

    fn subtitle(&self) -> String {
        let share =
            self.capacity_mbit.filter(|capacity| *capacity > 0.0).map_or_else(String::new, |capacity| {
                format!(" of the link's {capacity:.1} ({:.0} %)", 100.0 * self.goodput_mbit / capacity)
            });
        let void = if self.void.is_some() { " · VOID: the emulator was too slow" } else { "" };
        format!(
            "goodput {:.1} Mbit/s{share} · lag p50 {:.2} s, p99 {:.2} s, max {:.2} s · {} of {} packets lost{void}",
            self.goodput_mbit,
            self.lag_p50_seconds,
            self.lag_p99_seconds,
            self.lag_max_seconds,
            self.up.dropped(),
            self.up.offered
        )
    }
}

fn megabits(bytes: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes * 8.0 / 1e6 / seconds } else { 0.0 }
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
}

fn recovery(outage: Outage, samples: &[Sample]) -> Recovery {
    let after = samples.iter().filter(|sample| sample.seconds > outage.until_seconds);
    let first = after.into_iter().find(|sample| sample.goodput_mbit > 0.0);
    let seconds = first.map(|sample| sample.seconds - outage.until_seconds);
    Recovery { outage, seconds }
}

fn steps(rates: &[(Duration, Option<Rate>)], until: f64) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    for (index, (from, rate)) in rates.iter().enumerate() {
        let end = rates.get(index + 1).map_or(until, |(next, _)| next.as_secs_f64());
        let mbit = rate.map_or(0.0, |rate| rate.bits() as f64 / 1e6);
        points.extend([(from.as_secs_f64(), mbit), (end, mbit)]);
    }
    points
}
