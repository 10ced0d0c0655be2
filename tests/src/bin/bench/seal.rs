//! What sealing and receiving cost for content of several kinds, next to bare blake3 and bare zstd of the same bytes in the same run.
//!
//! Everything lies in memory: the leg, the journal and the store are below `/dev/shm`. What the guest writes is captured before the clock
//! starts; what is sealed is read before it is received. CPU time is that of the whole process, the system's part of it included.
//!
//! The bare costs are those on one thread: blake3 of each block, of what a difference is taken from, too; zstd of what has to be compressed, at
//! the same level and in frames of the same size; and writing what was sealed to a file in memory. `of bare` is the sum of the first two
//! divided by the CPU time of sealing on one core, `with write` that of all three. Segments arrive as many at once as there are cores.
//!
//! What known content and differences refer to has arrived in the same round, so that the store takes it for sound and does not hash it again.

#[path = "seal/bare.rs"]
mod bare;
#[path = "seal/input.rs"]
mod input;
#[path = "seal/sites.rs"]
mod sites;

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use bare::Bare;
use input::{Content, INPUTS, Input};
use sites::Sites;

/// Where everything lies.
const MEMORY: &str = "/dev/shm";

/// Numbers of cores to seal and receive on.
const CORES: [usize; 2] = [1, 2];

struct Options {
    bytes: usize,
    rounds: usize,
    inputs: Vec<String>,
}

/// What some work took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    wall_seconds: f64,
    cpu_seconds: f64,
    /// Memory that it took at most beyond what was there, in MiB.
    peak_mib: f64,
}

impl Cost {
    /// Of nothing yet.
    const WORST: Cost =
        Cost { wall_seconds: f64::INFINITY, cpu_seconds: f64::INFINITY, peak_mib: f64::INFINITY };

    /// Other work on the machine only adds.
    fn best(self, other: Cost) -> Cost {
        Cost {
            wall_seconds: self.wall_seconds.min(other.wall_seconds),
            cpu_seconds: self.cpu_seconds.min(other.cpu_seconds),
            peak_mib: self.peak_mib.min(other.peak_mib),
        }
    }

    fn json(self, gigabytes: f64) -> Value {
        json!({
            "gb_per_second": gigabytes / self.wall_seconds, "gb_per_cpu_second": gigabytes / self.cpu_seconds,
            "cpu_seconds_per_gb": self.cpu_seconds / gigabytes, "peak_mib": self.peak_mib,
        })
    }
}

/// Measures `work`.
fn cost<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Cost)> {
    let before_mib = super::index::rss_mib("VmRSS")?;
    super::index::reset_peak()?;
    let (start, cpu_before) = (Instant::now(), process_cpu_seconds());
    let done = work()?;
    let (wall_seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), process_cpu_seconds() - cpu_before);
    let peak_mib = super::index::rss_mib("VmHWM")? - before_mib;
    Ok((done, Cost { wall_seconds, cpu_seconds, peak_mib }))
}

fn process_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// All figures of one input.
struct Figures {
    bare: Bare,
    /// For each of [`CORES`].
    sealing: [Cost; 2],
    receiving: [Cost; 2],
    sealed_bytes: usize,
}

pub(crate) fn run(arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let Some(options) = options(arguments)? else { return Ok(()) };
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= CORES[1], "two cores are needed to see what the second is good for");
    back_memory(options.bytes * 4)?;
    let chosen =
        |input: &&Input| options.inputs.is_empty() || options.inputs.iter().any(|name| name == input.name);
    let inputs: Vec<&Input> = INPUTS.iter().filter(chosen).collect();
    ensure!(!inputs.is_empty(), "there is no such input");
    println!(
        "{:<16}{:>6}{:>8}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}{:>8}{:>7}{:>6}{:>9}{:>8}{:>8}{:>8}{:>7}",
        "input",
        "level",
        "sealed",
        "blake3",
        "zstd",
        "write",
        "seal",
        "of",
        "with",
        "1 core",
        "2 cores",
        "2 to 1",
        "peak",
        "receive",
        "1 core",
        "2 cores",
        "to seal",
        "peak"
    );
    println!(
        "{:<16}{:>6}{:>8}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}{:>8}{:>7}{:>6}{:>9}{:>8}{:>8}{:>8}{:>7}",
        "",
        "",
        "part",
        "CPU s/GB",
        "CPU s/GB",
        "CPU s/GB",
        "CPU s/GB",
        "bare",
        "write",
        "GB/s",
        "GB/s",
        "",
        "MiB",
        "CPU s/GB",
        "GB/s",
        "GB/s",
        "speed",
        "MiB"
    );
    let mut reports = serde_json::Map::new();
    for input in inputs {
        let figures = measure(input, &options).with_context(|| format!("input '{}'", input.name))?;
        reports.insert(input.name.to_owned(), report(input, &figures, options.bytes));
    }
    println!(
        "{}",
        json!({
            "bench": "seal", "input_mib": options.bytes >> 20, "rounds": options.rounds, "inputs": reports,
            "load": std::fs::read_to_string("/proc/loadavg")?.trim(), "machine": super::tap::machine()?,
        })
    );
    Ok(())
}

fn options(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Option<Options>> {
    let mut options = Options { bytes: 512 << 20, rounds: 3, inputs: Vec::new() };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        let number =
            |text: String| text.parse::<usize>().with_context(|| format!("'{text}' is not a number"));
        match argument.as_str() {
            "--json" => {}
            "--mib" => options.bytes = number(value()?)? << 20,
            "--rounds" => options.rounds = number(value()?)?,
            "--input" => options.inputs.push(value()?),
            "--help" | "-h" => {
                println!("{}", super::USAGE);
                return Ok(None);
            }
            other => bail!("unknown argument '{other}'\n{}", super::USAGE),
        }
    }
    ensure!(options.bytes > 0 && options.rounds > 0, "there is nothing to measure");
    Ok(Some(options))
}

/// Takes memory and gives it back, so that on a virtual machine nothing pays for pages that the host has to back first.
fn back_memory(bytes: usize) -> anyhow::Result<()> {
    let mut file = tempfile::tempfile_in(MEMORY)?;
    let zeroes = vec![0; 1 << 20];
    (0..bytes >> 20).try_for_each(|_| file.write_all(&zeroes)).context("no room in /dev/shm")
}

fn measure(input: &Input, options: &Options) -> anyhow::Result<Figures> {
    let content = input.content(options.bytes);
    let mut figures = Figures {
        bare: Bare::WORST,
        sealing: [Cost::WORST; 2],
        receiving: [Cost::WORST; 2],
        sealed_bytes: 0,
    };
    for _ in 0..options.rounds {
        figures.bare = figures.bare.best(Bare::measure(input, &content)?);
        for (place, cores) in CORES.into_iter().enumerate() {
            let round = on_cores(cores, || Round::measure(input, &content, cores))?;
            figures.bare.write_seconds = figures.bare.write_seconds.min(round.write_seconds);
            figures.sealing[place] = figures.sealing[place].best(round.sealing);
            figures.receiving[place] = figures.receiving[place].best(round.receiving);
            figures.sealed_bytes = round.sealed_bytes;
        }
    }
    Ok(figures)
}

/// What sealing and receiving once cost.
struct Round {
    sealing: Cost,
    receiving: Cost,
    write_seconds: f64,
    sealed_bytes: usize,
}

impl Round {
    /// With new sites. So many segments arrive at once.
    fn measure(input: &Input, content: &Content, at_once: usize) -> anyhow::Result<Round> {
        let sites = Sites::open(input.level, content.data.len())?;
        if let Some(before) = &content.before {
            sites.write(before)?;
            sites.seal()?;
            sites.receive(&sites.sealed()?, 1)?;
        }
        sites.write(&content.data)?;
        let ((), sealing) = cost(|| sites.seal())?;
        let segments = sites.sealed()?;
        let write_seconds = Bare::write_seconds(&segments)?;
        let ((), receiving) = cost(|| sites.receive(&segments, at_once))?;
        let sealed_bytes = segments.iter().map(|segment| segment.bytes.len()).sum();
        Ok(Round { sealing, receiving, write_seconds, sealed_bytes })
    }
}

/// Does `work` on so many cores, with all threads that it starts.
fn on_cores<T>(cores: usize, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let all = rustix::thread::sched_getaffinity(None)?;
    let mut some = CpuSet::new();
    (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).take(cores).for_each(|cpu| some.set(cpu));
    rustix::thread::sched_setaffinity(None, &some)?;
    let done = work();
    rustix::thread::sched_setaffinity(None, &all)?;
    done
}

fn report(input: &Input, figures: &Figures, bytes: usize) -> Value {
    let gigabytes = bytes as f64 / 1e9;
    let Figures { bare, sealing: [one, two], receiving, sealed_bytes } = figures;
    let part = *sealed_bytes as f64 / bytes as f64;
    let of_bare = bare.seconds() / one.cpu_seconds;
    let with_write = (bare.seconds() + bare.write_seconds) / one.cpu_seconds;
    let scaling = one.wall_seconds / two.wall_seconds;
    let [receiving_one, receiving_two] = receiving;
    let to_seal = two.wall_seconds / receiving_two.wall_seconds;
    println!(
        "{:<16}{:>6}{part:>8.3}{:>9.3}{:>9.3}{:>9.3}{:>9.3}{of_bare:>8.2}{with_write:>8.2}{:>8.2}{:>8.2}{scaling:>7.2}{:>6.0}{:>9.3}{:>8.2}{:>8.2}{to_seal:>8.2}{:>7.0}",
        input.name,
        input.level,
        bare.blake3_seconds / gigabytes,
        bare.zstd_seconds / gigabytes,
        bare.write_seconds / gigabytes,
        one.cpu_seconds / gigabytes,
        gigabytes / one.wall_seconds,
        gigabytes / two.wall_seconds,
        two.peak_mib,
        receiving_one.cpu_seconds / gigabytes,
        gigabytes / receiving_one.wall_seconds,
        gigabytes / receiving_two.wall_seconds,
        receiving_two.peak_mib,
    );
    json!({
        "level": input.level, "sealed_part": part,
        "bare_blake3_cpu_seconds_per_gb": bare.blake3_seconds / gigabytes,
        "bare_zstd_cpu_seconds_per_gb": bare.zstd_seconds / gigabytes,
        "bare_write_cpu_seconds_per_gb": bare.write_seconds / gigabytes,
        "seal_1_core": one.json(gigabytes), "seal_2_cores": two.json(gigabytes),
        "of_bare": of_bare, "of_bare_with_write": with_write, "scaling": scaling,
        "receive_1_core": receiving_one.json(gigabytes), "receive_2_cores": receiving_two.json(gigabytes),
        "receive_speed_to_seal": to_seal, "receive_cpu_to_seal": one.cpu_seconds / receiving_one.cpu_seconds,
    })
}
