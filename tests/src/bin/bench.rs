//! Benchmarks, those that have peers interleaved with them in one run:
//! `cargo run --release -p tests --bin bench -- NAME [--json] [OPTIONS]`.

#[path = "bench/index.rs"]
mod index;
#[path = "bench/seal.rs"]
mod seal;
#[path = "bench/tap.rs"]
mod tap;
#[path = "bench/wan.rs"]
mod wan;
#[path = "bench/wire.rs"]
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};

const USAGE: &str = "usage: bench NAME [--json] [OPTIONS]

  tap    random, sequential, flushed and mixed requests through the tap with capture, intent map, sealing, with
         and without the index of known blocks and a pair's standby, against qemu-nbd, qemu-storage-daemon and nbdkit file
  wire   bytes, CPU time and memory for a file-system image of Debian packages and eight generations of change,
         against restic, borg, desync, qemu-img and rsync; tests/bench-setup installs what it needs
  index  inserts, look-ups and memory of the block index with the blocks of 64 GiB, 256 GiB and 1 TiB
  seal   CPU time, speed and memory of sealing and of receiving, for zeroes, known, compressible, incompressible and
         database-like content, next to bare blake3 and bare zstd of the same bytes
  wan    goodput on emulated links of 20 to 600 ms and 0 to 3 % loss, against rsync over TCP with CUBIC and with BBR, and the
         age of the newest point at the site under a steady rate of change; as root

  --json         the last line is one JSON object with every figure (always printed)

of tap:
  --seconds N    length of one measurement [default: 4]
  --rounds N     measurements of each server [default: 5]
  --medium NAME  only with the files in 'memory', or on 'disk'
  --job NAME     only this pattern of requests

of index:
  --blocks N...  with so many blocks, in a folder below target/

of seal:
  --mib N        size of each input [default: 512]
  --rounds N     measurements of each input, of which the best counts [default: 3]
  --input NAME   only this input; may be repeated

of wan:
  --cells LIST   only these links: round trips in ms and losses in %, like 20x0,300x0.1
  --quick        only 20 and 300 ms with 0 and 1 % loss
  --rate RATE    of the link, which this machine has to carry with ease [default: 100mbit]
  --seconds N    length of a run up to 100 ms; twice as long up to 300 ms, four times above [default: 10]
  --seed N       what the link's losses are drawn from [default: 1]
  --lag          instead: age of the newest point at 300 ms, 1 % loss and a change rate of 70 % of the link, for 60 s

of wire:
  --small        an image of 256 MiB instead of 1.9 GiB
  --seed N       what the changes are drawn from [default: 1]
  --work DIR     where the images are made, or found, and everything is written [default: target/bench-wire]
  --peer NAME    only this peer beside thirdsite; may be repeated; 'none' for none
  --rate N       MB that the guest writes in a second at most [default: 50]";

/// How much is measured.
#[derive(Clone, Debug)]
struct Options {
    seconds: u64,
    rounds: usize,
    medium: Option<String>,
    job: Option<String>,
    wire: wire::Options,
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
    if arguments.next_if(|name| name == "seal").is_some() {
        return seal::run(arguments);
    }
    if arguments.next_if(|name| name == "wan").is_some() {
        return wan::run(arguments);
    }
    let mut options =
        Options { seconds: 4, rounds: 5, medium: None, job: None, wire: wire::Options::default() };
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
            "--small" => options.wire.small = true,
            "--seed" => options.wire.seed = number(value()?)?,
            "--work" => options.wire.work = PathBuf::from(value()?),
            "--peer" => options.wire.peers.push(value()?),
            "--rate" => options.wire.megabytes_per_second = number(value()?)?,
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
        Some("wire") => wire::run(&options.wire),
        Some(other) => bail!("there is no benchmark '{other}'\n{USAGE}"),
        None => bail!("which benchmark?\n{USAGE}"),
    }
}
