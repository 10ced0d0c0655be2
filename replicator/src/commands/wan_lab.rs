//! `thirdsite wan-lab`: the product's transport over an emulated link (`tests/wan-lab/WAN-LAB.md`).

mod cpu;
mod inbox;
mod link;
mod outbox;
mod run;

use std::fs;

use serde_json::json;
use wan_lab::profile::BUILT_IN;
use wan_lab::report::PacketSums;
use wan_lab::{LinkProfile, ProfileError, Rate, Report, Share, Way};

use crate::args::WanLabRunArgs;
use crate::failure::{Failure, exit, with_causes};
use crate::output::{print_json, print_table, size};

/// Runs the transport over a link and reports. A run that the emulator spoilt is a failure, after it has been reported.
pub(crate) fn run_wan_lab(args: &WanLabRunArgs) -> anyhow::Result<()> {
    let profile = LinkProfile::find(&args.profile).map_err(|error| profile_failure(&error))?;
    let report = run::run(&profile, args)?;
    if let Some(path) = &args.svg {
        fs::write(path, report.plot(&profile).to_svg()).map_err(|error| {
            let message = format!("the picture cannot be written to '{}': {error}", path.display());
            Failure::new(exit::FAILED, message, "check --svg")
        })?;
    }
    match args.json {
        true => print_json(&report)?,
        false => print(&report),
    }
    match &report.void {
        None => Ok(()),
        Some(reason) => {
            let hint =
                "run it again on a quiet machine, as root for a realtime priority, or with a slower link";
            Err(Failure::new(exit::FAILED, format!("the run is void: {reason}"), hint).into())
        }
    }
}

/// Lists the built-in profiles, or prints one.
pub(crate) fn list_profiles(name: Option<&str>, json: bool) -> anyhow::Result<()> {
    let names = name.map_or_else(|| BUILT_IN.to_vec(), |name| vec![name]);
    let profiles: Result<Vec<_>, _> = names.into_iter().map(LinkProfile::built_in).collect();
    let profiles = profiles.map_err(|error| profile_failure(&error))?;
    if json {
        return print_json(&json!({"profiles": profiles.iter().map(describe).collect::<Vec<_>>()}));
    }
    if let (Some(_), Some(profile)) = (name, profiles.first()) {
        print!("{}", profile.to_toml());
        return Ok(());
    }
    let row = |profile: &LinkProfile| {
        vec![
            profile.name.clone(),
            rate(profile.up.rate),
            rate(profile.down.rate),
            humantime::format_duration(profile.round_trip()).to_string(),
            loss(profile).to_string(),
            profile.description.clone(),
        ]
    };
    let rows: Vec<_> = profiles.iter().map(row).collect();
    print_table(&["NAME", "UP", "DOWN", "RTT", "LOSS UP", "WHAT IT IS"], &rows);
    Ok(())
}

fn describe(profile: &LinkProfile) -> serde_json::Value {
    json!({
        "name": profile.name,
        "description": profile.description,
        "rate_up_bits": profile.up.rate.map(Rate::bits),
        "rate_down_bits": profile.down.rate.map(Rate::bits),
        "round_trip_ms": profile.round_trip().as_secs_f64() * 1e3,
        "queue_up_bytes": profile.queue_bytes(Way::Up),
        "toml": profile.to_toml(),
    })
}

fn rate(rate: Option<Rate>) -> String {
    rate.map_or_else(|| "unlimited".to_owned(), |rate| rate.to_string())
}

/// Share of packets that is lost on the way up, at random and in bursts.
fn loss(profile: &LinkProfile) -> Share {
    let bursts = profile.up.burst_loss.as_ref().map_or(0.0, |burst| burst.share.get());
    Share::new(1.0 - (1.0 - profile.up.loss.get()) * (1.0 - bursts))
}

fn profile_failure(error: &ProfileError) -> Failure {
    Failure::invalid(with_causes(error), error.hint())
}

fn print(report: &Report) {
    let line = |what: &str, text: String| println!("{what:<13}{text}");
    println!(
        "link '{}', engine {}, seed {}, {:.1} s",
        report.profile, report.engine, report.seed, report.seconds
    );
    let capacity =
        report.capacity_mbit.filter(|capacity| *capacity > 0.0).map_or_else(String::new, |capacity| {
            format!(" of the link's {capacity:.1} ({:.1} %)", 100.0 * report.goodput_mbit / capacity)
        });
    line("goodput", format!("{:.1} Mbit/s{capacity}", report.goodput_mbit));
    line("confirmed", size(report.confirmed_bytes));
    line(
        "lag",
        format!(
            "p50 {:.2} s, p99 {:.2} s, max {:.2} s",
            report.lag_p50_seconds, report.lag_p99_seconds, report.lag_max_seconds
        ),
    );
    for (what, age) in [("RPO", report.rpo_seconds), ("RPO at site", report.site_rpo_seconds)] {
        line(what, format!("p50 {:.2} s, p99 {:.2} s, max {:.2} s", age.p50, age.p99, age.max));
    }
    line("packets up", packets(&report.up));
    line("packets down", packets(&report.down));
    for recovery in &report.recoveries {
        let outage = &recovery.outage;
        let again = recovery.seconds.map_or_else(
            || "no data came again".to_owned(),
            |seconds| format!("data again after {seconds:.2} s"),
        );
        let (from, until) = (outage.from_seconds, outage.until_seconds);
        line("outage", format!("{from:.1} s to {until:.1} s ({}): {again}", outage.state));
    }
    let cpu = report.cpu_seconds.iter().map(|time| format!("{} {:.2} s", time.part, time.seconds));
    line("CPU", cpu.collect::<Vec<_>>().join(", "));
    let emulator = &report.emulator;
    let late = |[p50, p99, max]: [f64; 3]| format!("p50 {p50:.3}, p99 {p99:.3}, max {max:.3} ms");
    line("late up", late(emulator.lateness_up_ms));
    line("late down", late(emulator.lateness_down_ms));
    let priority = if emulator.realtime { "realtime" } else { "normal" };
    line("emulator", format!("{priority} priority, lost {} packets itself", emulator.overload_packets));
}

fn packets(sums: &PacketSums) -> String {
    let causes = [
        ("queue", sums.dropped_queue),
        ("loss", sums.dropped_loss),
        ("burst", sums.dropped_burst),
        ("mtu", sums.dropped_mtu),
        ("link down", sums.dropped_down),
    ];
    let causes: Vec<_> =
        causes.iter().filter(|(_, lost)| *lost > 0).map(|(cause, lost)| format!("{cause} {lost}")).collect();
    let causes = if causes.is_empty() { String::new() } else { format!(" ({})", causes.join(", ")) };
    format!("{} sent, {} lost{causes}", sums.offered, sums.dropped())
}
