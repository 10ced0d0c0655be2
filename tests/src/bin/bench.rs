//! Benchmarks, that of the tap against the named peers, interleaved with them in one run:
//! `cargo run --release -p tests --bin bench -- NAME [--json] [--seconds N] [--rounds N]`.

#[path = "bench/index.rs"]
mod index;
#[path = "bench/tap.rs"]
mod tap;

use std::process::ExitCode;

use anyhow::{Context, bail};

const USAGE: &str = "usage: bench NAME [--json] [--seconds N] [--rounds N]
       bench index [--json] [--blocks N...]

  tap    random, sequential, flushed and mixed requests through the tap with capture, intent map, sealing and a
         pair's standby, against qemu-nbd, qemu-storage-daemon and nbdkit file
  index  inserts, look-ups and memory of the block index with the blocks of 64 GiB, 256 GiB and 1 TiB, or with as
         many as --blocks says, in a folder below target/

  --json         the last line is one JSON object with every figure (always printed)
  --seconds N    length of one measurement [default: 4]
  --rounds N     measurements of each server [default: 5]
  --medium NAME  only with the files in 'memory', or on 'disk'
  --job NAME     only this pattern of requests";

/// How much is measured.
#[derive(Clone, Debug)]
struct Options {
    seconds: u64,
    rounds: usize,
    medium: Option<String>,
    job: Option<String>,
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
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|name| name == "index").is_some() {
        return index::run(arguments);
    }
    let mut options = Options { seconds: 4, rounds: 5, medium: None, job: None };
    let mut name = None;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        let number = |text: String| text.parse::<u64>().with_context(|| format!("'{text}' is not a number"));
        match argument.as_str() {
            "--json" => {}
            "--seconds" => options.seconds = number(value()?)?,
            "--rounds" => options.rounds = number(value()?)? as usize,
            "--medium" => options.medium = Some(value()?),
            "--job" => options.job = Some(value()?),
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(());
            }
            _ if name.is_none() => name = Some(argument),
            other => bail!("unknown argument '{other}'\n{USAGE}"),
        }
    }
    match name.as_deref() {
        Some("tap") => tap::run(&options),
        Some(other) => bail!("there is no benchmark '{other}'\n{USAGE}"),
        None => bail!("which benchmark?\n{USAGE}"),
    }
}
