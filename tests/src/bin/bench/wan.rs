//! How well a long, lossy link is used: thirdsite's transport and rsync over TCP take turns on the same emulated link, and how old the far copy is
//! under a steady rate of change.
//!
//! All of it runs on this machine: the two ends and the emulator share its processors. `tests/wan-lab/WAN-LAB.md` says when a run can be believed.

#[path = "wan/cell.rs"]
mod cell;
#[path = "wan/lag.rs"]
mod lag;
#[path = "wan/ours.rs"]
mod ours;
#[path = "wan/report.rs"]
mod report;
#[path = "wan/rsync.rs"]
mod rsync;

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde_json::json;
use wan_lab::Rate;

use cell::{Cell, Measured};
use ours::Ours;
use report::Row;
use rsync::{Congestion, Rsync};

/// What is measured.
#[derive(Clone, Debug)]
struct Options {
    cells: Vec<Cell>,
    rate: Rate,
    /// Length of a run on links of up to 100 ms; longer ones get more.
    seconds: u64,
    seed: u64,
    lag: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Option<Options>> {
        let mut options =
            Options { cells: Cell::all(), rate: Rate::mbit(100), seconds: 10, seed: 1, lag: false };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            let number =
                |text: String| text.parse::<u64>().with_context(|| format!("'{text}' is not a number"));
            match argument.as_str() {
                "--json" => {}
                "--lag" => options.lag = true,
                "--quick" => options.cells = Cell::few(),
                "--cells" => {
                    options.cells = value()?.split(',').map(Cell::parse).collect::<Result<_, _>>()?
                }
                "--rate" => options.rate = value()?.parse().map_err(anyhow::Error::msg)?,
                "--seconds" => options.seconds = number(value()?)?,
                "--seed" => options.seed = number(value()?)?,
                "--help" | "-h" => return Ok(None),
                other => bail!("unknown argument '{other}' of wan\n{}", super::USAGE),
            }
        }
        ensure!(options.seconds >= 2, "--seconds {}: a run needs 2 seconds at least", options.seconds);
        Ok(Some(options))
    }
}

pub(super) fn run(arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let Some(options) = Options::parse(arguments)? else {
        println!("{}", super::USAGE);
        return Ok(());
    };
    // Contents and copies in memory where the machine has such a place: a slow disk is not to be measured.
    let memory = Path::new("/dev/shm");
    let mut folder = tempfile::Builder::new();
    folder.prefix("thirdsite-bench-wan-");
    let scratch = if memory.is_dir() { folder.tempdir_in(memory) } else { folder.tempdir() };
    let scratch = scratch.context("cannot make a temporary folder")?;
    let ours = Ours::find(scratch.path())?;
    if options.lag {
        return lag::run(&ours, options.rate, options.seed);
    }
    let longest = options.cells.iter().map(|cell| cell.length(options.seconds)).max().unwrap_or_default();
    let rsync = Rsync::new(scratch.path(), options.rate.bytes_in(longest))?;
    report::head(&options);
    let mut rows = Vec::new();
    for cell in &options.cells {
        let length = cell.length(options.seconds);
        let profile = cell.profile(options.rate);
        let name = format!("{} ms, {} %", cell.rtt_ms, cell.loss_percent);
        let ours =
            believable(&format!("{name}: thirdsite"), || ours.measure(&profile, length, options.seed))?;
        let mut row = Row::new(*cell, length, options.rate, ours);
        for congestion in Congestion::ALL {
            let what = format!("{name}: rsync, {}", congestion.name());
            let measured = believable(&what, || rsync.measure(&profile, length, options.seed, congestion))?;
            row.rsync.push((congestion, measured));
        }
        row.print();
        rows.push(row);
    }
    let rows: Vec<_> = rows.iter().map(Row::json).collect();
    let about = json!({
        "benchmark": "wan", "rate_mbit": options.rate.bits() as f64 / 1e6, "seed": options.seed,
        "rsync": rsync.version(), "build": build(), "cells": rows,
    });
    println!("{about}");
    Ok(())
}

/// A run, and once more if the emulator spoilt it.
fn believable(name: &str, mut measure: impl FnMut() -> anyhow::Result<Measured>) -> anyhow::Result<Measured> {
    eprintln!("{name} (load {})", load());
    let measured = measure().with_context(|| name.to_owned())?;
    let Some(void) = &measured.void else { return Ok(measured) };
    eprintln!("{name}: void, once more: {void}");
    measure().with_context(|| name.to_owned())
}

/// Processes that wanted to run in the last minute, on average.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// How the programs were compiled that are measured.
fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}
