//! `thirdsite link-test`: how the path to a recovery site fares, and the settings that follow from it.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use serde::Serialize;
use serde_json::json;
use tokio::runtime::Runtime;
use transport::{Fingerprint, LinkError, LinkMeasurement, LinkOptions, MeasureOptions, measure_link};

use crate::args::LinkTestArgs;
use crate::failure::{Failure, exit};
use crate::identity::parse_fingerprint;
use crate::output::{print_json, progress, size};
use crate::settings::{self, Place, SourceSettings};

const CUT_INTERVAL_MIN: Duration = Duration::from_secs(1);
const JOURNAL_LIMIT_MIN_BYTES: u64 = 64 << 20;
/// The outage that the recommended journal is for.
const OUTAGE: Duration = Duration::from_hours(1);
/// Share of the rate that is left to this link: something else may need the line, and its rate may fall.
const USABLE: f64 = 0.9;
/// Share of one processor from which on it, and not the path, may be what limits.
const CPU_BOUND: f64 = 0.9;
/// Time for asking by TCP whether the host is there at all.
const TCP_TIMEOUT: Duration = Duration::from_secs(3);

/// Measures, reports and recommends.
pub(crate) fn link_test(args: &LinkTestArgs, runtime: &Runtime) -> anyhow::Result<()> {
    let target = target(args)?;
    let identity = Arc::new(crate::identity::load(&target.identity)?);
    let mut options = MeasureOptions::new(LinkOptions::new(&target.address, 0));
    options.bytes_max = args.bytes.as_u64().min(options.bytes_max);
    options.time_max = args.time;
    let progress = progress("measuring");
    let before = (Instant::now(), cpu_time());
    let measured = runtime.block_on(measure_link(options, identity, target.sites, progress));
    let measured = measured.map_err(|error| failure(&error))?;
    // Pings and handshake use next to nothing: what was used was used under load.
    let cpu_share = cpu_time().saturating_sub(before.1).as_secs_f64() / measured.load.as_secs_f64().max(1e-9);
    let change_rate = args.change_rate.as_u64();
    let advice = recommend(measured.rate, measured.rtt_p99, change_rate);
    if args.json {
        return print_json(&describe(&measured, cpu_share, change_rate, &advice));
    }
    print(&measured, cpu_share, change_rate, &advice);
    Ok(())
}

/// What is measured, and as whom.
struct Target {
    address: String,
    sites: Vec<Fingerprint>,
    identity: PathBuf,
}

fn target(args: &LinkTestArgs) -> Result<Target, Failure> {
    if let (Some(address), Some(fingerprint), Some(identity)) =
        (&args.site, &args.fingerprint, &args.identity)
    {
        let sites = vec![parse_fingerprint(fingerprint)?];
        return Ok(Target { address: address.clone(), sites, identity: identity.clone() });
    }
    let hint =
        "give the name of a [[target]] and --config source.toml, or --site, --fingerprint and --identity";
    let (Some(name), Some(config)) = (&args.target, &args.config) else {
        return Err(Failure::invalid("no site is named", hint));
    };
    let settings: SourceSettings = settings::load(config).map_err(|error| {
        Failure::new(exit::INVALID, crate::failure::with_causes(&error), "examples/source.toml is commented")
    })?;
    let found = settings.targets.iter().find(|target| target.name == *name);
    let Some(found) = found else {
        let names: Vec<_> = settings.targets.iter().map(|target| target.name.to_string()).collect();
        let message = format!("'{}' has no target '{name}', but: {}", config.display(), names.join(", "));
        return Err(Failure::invalid(message, hint));
    };
    let Place::Site(site) = found.place() else {
        let hint = "buckets are checked by the agent when it begins; 'thirdsite status' shows what it found";
        return Err(Failure::invalid(format!("target '{name}' is a bucket; link-test is for sites"), hint));
    };
    let fingerprints = [Some(&site.fingerprint), site.next_fingerprint.as_ref()];
    let sites =
        fingerprints.into_iter().flatten().map(|text| parse_fingerprint(text)).collect::<Result<_, _>>()?;
    Ok(Target { address: site.address.clone(), sites, identity: settings.identity.clone() })
}

/// What keeps the path from being measured, and what may be between.
fn failure(error: &LinkError) -> Failure {
    let message = crate::failure::with_causes(error);
    match error {
        LinkError::Unreachable { address } => Failure::unreachable(message, by_tcp(*address)),
        LinkError::Resolve { .. } | LinkError::Lost { .. } | LinkError::SiteStopped => {
            Failure::unreachable(message, "")
        }
        LinkError::Limit { .. } => {
            let hint = "a source measures once at a time, 64 MiB and 30 s at most; wait, and run it again";
            Failure::new(exit::FULL, message, hint)
        }
        _ => Failure::of(error, error.kind(), ""),
    }
}

/// What an attempt by TCP says of a host that does not answer by UDP.
fn by_tcp(address: SocketAddr) -> &'static str {
    let connected = TcpStream::connect_timeout(&address, TCP_TIMEOUT);
    match connected.map(drop).map_err(|error| error.kind()) {
        Ok(()) | Err(io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) => {
            "the host answers TCP at once, so it is there: either no site daemon runs on that port, or UDP is blocked on the way"
        }
        Err(_) => {
            "the host does not answer TCP on that port either: it may be off, or a firewall drops everything; UDP may be blocked"
        }
    }
}

/// CPU time of this process until now.
fn cpu_time() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let on_cpu = tasks.filter_map(|task| {
        let statistics = fs::read_to_string(task.path().join("schedstat")).ok()?;
        statistics.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    });
    on_cpu.sum()
}

/// Settings that follow from what was measured.
#[derive(Debug, PartialEq, Serialize)]
struct Advice {
    /// Whether the link carries the changes at all.
    keeps_up: bool,
    /// `rate_max` of the target, in bytes per second.
    rate_max: u64,
    cut_interval_seconds: u64,
    rpo_seconds: u64,
    /// `journal_limit`, for an outage of an hour.
    journal_limit: u64,
    /// Until everything has arrived after such an outage; none if the link does not keep up.
    catch_up_seconds: Option<u64>,
}

/// Settings for a group, or all of them, that changes `change_rate` bytes in a second.
fn recommend(rate: f64, rtt: Duration, change_rate: u64) -> Advice {
    let (usable, changes) = (rate * USABLE, change_rate as f64);
    let keeps_up = changes < usable;
    // A cut costs a segment and a receipt; one that is younger than some round trips is not older at the site for it.
    let interval = CUT_INTERVAL_MIN.max(rtt * 10).as_secs_f64().ceil();
    // The oldest change waits for its cut, for its bytes and for the receipt; twice that, since lines and loads vary.
    let shipping = interval * (changes / usable.max(1.0)).min(1.0) + 2.0 * rtt.as_secs_f64();
    let journal = (changes * OUTAGE.as_secs_f64() * 1.25) as u64;
    Advice {
        keeps_up,
        rate_max: usable as u64 >> 10 << 10,
        cut_interval_seconds: interval as u64,
        rpo_seconds: (2.0 * (interval + shipping)).ceil().max(5.0) as u64,
        journal_limit: journal.div_ceil(JOURNAL_LIMIT_MIN_BYTES).max(1) * JOURNAL_LIMIT_MIN_BYTES,
        catch_up_seconds: keeps_up
            .then(|| (changes * OUTAGE.as_secs_f64() / (usable - changes)).ceil() as u64),
    }
}

fn loss(measured: &LinkMeasurement) -> f64 {
    measured.lost_packets as f64 / measured.sent_packets.max(1) as f64
}

fn describe(
    measured: &LinkMeasurement,
    cpu_share: f64,
    change_rate: u64,
    advice: &Advice,
) -> serde_json::Value {
    json!({
        "address": measured.address.to_string(),
        "udp": true,
        "connect_seconds": measured.connect.as_secs_f64(),
        "rtt_min_seconds": measured.rtt_min.as_secs_f64(),
        "rtt_mean_seconds": measured.rtt_mean.as_secs_f64(),
        "rtt_p99_seconds": measured.rtt_p99.as_secs_f64(),
        "pings_lost": measured.pings_lost,
        "rate_up_bytes": measured.rate as u64,
        "arrived_bytes": measured.arrived_bytes,
        "load_seconds": measured.load.as_secs_f64(),
        "loss": loss(measured),
        "packet_bytes_max": measured.packet_bytes_max,
        "survives_new_port": measured.survives_new_port,
        "cpu_share": cpu_share,
        "cpu_bound": cpu_share >= CPU_BOUND,
        "change_rate_bytes": change_rate,
        "recommended": advice,
    })
}

fn print(measured: &LinkMeasurement, cpu_share: f64, change_rate: u64, advice: &Advice) {
    let line = |what: &str, text: String| println!("{what:<13}{text}");
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    line("site", format!("{}, UDP passes, connected after {}", measured.address, ms(measured.connect)));
    line(
        "round trip",
        format!(
            "min {}, mean {}, p99 {}, {} pings lost",
            ms(measured.rtt_min),
            ms(measured.rtt_mean),
            ms(measured.rtt_p99),
            measured.pings_lost
        ),
    );
    let bound = if cpu_share >= CPU_BOUND { "; this host's CPU may be what limits it" } else { "" };
    line(
        "rate up",
        format!(
            "{}/s ({:.1} Mbit/s), {} in {:.1} s, {:.0} % of a CPU{bound}",
            size(measured.rate as u64),
            measured.rate * 8e-6,
            size(measured.arrived_bytes),
            measured.load.as_secs_f64(),
            100.0 * cpu_share
        ),
    );
    line("loss", format!("{:.2} % of packets", 100.0 * loss(measured)));
    line("packets", format!("up to {} bytes", measured.packet_bytes_max));
    match measured.survives_new_port {
        Some(true) => line("new port", "the connection goes on".to_owned()),
        Some(false) => {
            line("new port", "the connection does not go on; it is made anew after silence".to_owned())
        }
        None => {}
    }
    println!("\nfor changes of {}/s:", size(change_rate));
    if !advice.keeps_up {
        println!("  the link is too slow for them: points fall behind for as long as the changes go on");
    }
    line("  rate_max", format!("\"{}KiB\"", advice.rate_max >> 10));
    line("  cut_interval", format!(" \"{}s\"", advice.cut_interval_seconds));
    line("  rpo", format!("\"{}s\"", advice.rpo_seconds));
    line("  journal_limit", format!(" \"{}MiB\", for an outage of an hour", advice.journal_limit >> 20));
    if let Some(seconds) = advice.catch_up_seconds {
        let time = humantime::format_duration(Duration::from_secs(seconds));
        line("  catching up", format!(" {time} after such an outage"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn settings_follow_from_the_path_and_the_changes() {
        let advice = recommend(10.0 * MIB as f64, Duration::from_millis(50), 2 * MIB);
        let expected = Advice {
            keeps_up: true,
            rate_max: 9 * MIB,
            cut_interval_seconds: 1,
            rpo_seconds: 5,
            journal_limit: 9024 * MIB,
            catch_up_seconds: Some(1029),
        };
        assert_eq!(advice, expected);
    }

    #[test]
    fn a_link_that_is_too_slow_is_told() {
        let advice = recommend(MIB as f64, Duration::from_millis(600), 2 * MIB);
        assert_eq!((advice.keeps_up, advice.catch_up_seconds), (false, None));
        assert_eq!((advice.cut_interval_seconds, advice.rpo_seconds), (6, 27));
    }
}
