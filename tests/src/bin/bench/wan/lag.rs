//! How old the newest point at the site is while data changes steadily.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use wan_lab::Rate;

use super::cell::Cell;
use super::ours::{Ours, number, samples, void};

const LINK: Cell = Cell { rtt_ms: 300, loss_percent: 1.0 };
const LENGTH: Duration = Duration::from_secs(60);
/// The connection is made and finds its rate.
const START_SECONDS: f64 = 10.0;
/// Share of the link's rate that changes.
const CHANGE_PERCENT: u64 = 70;
/// `wan-lab run` cuts this often.
const EPOCH_SECONDS: f64 = 1.0;
/// Besides an epoch and two round trips.
const ALLOWANCE_SECONDS: f64 = 1.0;

pub(super) fn run(ours: &Ours, rate: Rate, seed: u64) -> anyhow::Result<()> {
    let profile = LINK.profile(rate);
    let change = format!("{}bit", rate.bits() / 100 * CHANGE_PERCENT);
    let arguments = ["--rate".to_owned(), change];
    let bound = EPOCH_SECONDS + 2.0 * profile.round_trip().as_secs_f64() + ALLOWANCE_SECONDS;
    println!(
        "{} ms, {} % loss, {rate}: {CHANGE_PERCENT} % of it changes, a cut each {EPOCH_SECONDS} s, {} s; epoch + 2 RTT + {ALLOWANCE_SECONDS} s = {bound:.1} s",
        LINK.rtt_ms,
        LINK.loss_percent,
        LENGTH.as_secs()
    );
    let mut report = Value::Null;
    for attempt in ["lag", "lag, once more"] {
        eprintln!("{attempt} (load {})", super::load());
        report = ours.run(&profile, LENGTH, seed, &arguments)?;
        match void(&report) {
            Some(reason) => eprintln!("{attempt}: void: {reason}"),
            None => break,
        }
    }
    let mut figures = serde_json::Map::new();
    for (title, key) in [("at the source", "rpo_seconds"), ("at the site", "site_rpo_seconds")] {
        for (part, from) in [("whole run", 0.0), ("after the start", START_SECONDS)] {
            let ages = ages(&report, key, from)?;
            let at = |share: f64| ages[((ages.len() as f64 * share).ceil() as usize).max(1) - 1];
            let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
            let within = ages.iter().filter(|age| **age <= bound).count() as f64 / ages.len() as f64;
            println!(
                "RPO {title:<14} {part:<16} p50 {p50:.2} s, p99 {p99:.2} s, max {max:.2} s; {:.1} % of the time within {bound:.1} s",
                within * 100.0
            );
            let name = format!("{key} {part}").replace(' ', "_");
            figures.insert(name, json!({"p50": p50, "p99": p99, "max": max, "share_within_bound": within}));
        }
    }
    if let Some(reason) = void(&report) {
        println!("VOID: {reason}");
    }
    let about = json!({
        "benchmark": "wan lag", "rate_mbit": rate.bits() as f64 / 1e6, "bound_seconds": bound, "seed": seed,
        "void": void(&report), "build": super::build(), "rpo": figures,
    });
    println!("{about}");
    Ok(())
}

/// Ages of the newest point from a time on, ascending.
fn ages(report: &Value, key: &str, from: f64) -> anyhow::Result<Vec<f64>> {
    let mut ages = Vec::new();
    for sample in samples(report)? {
        if number(sample, "/seconds")? >= from {
            ages.push(number(sample, &format!("/{key}"))?);
        }
    }
    ages.sort_by(f64::total_cmp);
    ages.first().context("the run was too short for a sample")?;
    Ok(ages)
}
