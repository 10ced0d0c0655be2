//! Benchmarks against the named peers, interleaved with them in one run:
//! `cargo run --release -p tests --bin bench -- NAME [--json] [--seconds N] [--rounds N]`.

#[path = "bench/tap.rs"]
mod tap;

use std::process::ExitCode;

use anyhow::{Context, bail};

const USAGE: &str = "usage: bench NAME [--json] [--seconds N] [--rounds N]

  tap    4 KiB random writes at queue depth 16 and 1 MiB sequential writes through the tap with
         capture on, against qemu-nbd and nbdkit file

  --json       the last line is one JSON object with every figure (always printed)
  --seconds N  length of one measurement [default: 4]
  --rounds N   measurements of each server [default: 5]";

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Options {
    seconds: u64,
    rounds: usize,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options { seconds: 4, rounds: 5 };
    let mut name = None;
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().context("a number is missing")?.parse().context("not a number");
        match argument.as_str() {
            "--json" => {}
            "--seconds" => options.seconds = number()?,
            "--rounds" => options.rounds = number()? as usize,
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(());
            }
            _ if name.is_none() => name = Some(argument),
            other => bail!("unknown argument '{other}'\n{USAGE}"),
        }
    }
    match name.as_deref() {
        Some("tap") => tap::run(options),
        Some(other) => bail!("there is no benchmark '{other}'\n{USAGE}"),
        None => bail!("which benchmark?\n{USAGE}"),
    }
}
