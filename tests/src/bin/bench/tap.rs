//! The tap against other NBD servers, on the same file, in memory and on a disk, driven by fio.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tests::lab::Lab;

use super::Options;

const FILE_BYTES: u64 = 512 << 20;

/// A pattern of requests.
struct Job {
    name: &'static str,
    /// What fio is told.
    arguments: &'static str,
}

const JOBS: [Job; 7] = [
    Job { name: "4k-random-qd1", arguments: "--rw=randwrite --bs=4k --iodepth=1" },
    Job { name: "4k-random-qd16", arguments: "--rw=randwrite --bs=4k --iodepth=16" },
    Job { name: "4k-random-qd32", arguments: "--rw=randwrite --bs=4k --iodepth=32" },
    Job { name: "4k-flush-qd1", arguments: "--rw=randwrite --bs=4k --iodepth=1 --fsync=1" },
    Job { name: "4k-mixed-70-30-qd16", arguments: "--rw=randrw --rwmixread=70 --bs=4k --iodepth=16" },
    Job { name: "64k-sequential-qd4", arguments: "--rw=write --bs=64k --iodepth=4" },
    Job { name: "1m-sequential-qd4", arguments: "--rw=write --bs=1m --iodepth=4" },
];

/// Where the files lie.
struct Medium {
    name: &'static str,
    folder: &'static str,
}

const MEDIA: [Medium; 2] =
    [Medium { name: "memory", folder: "/dev/shm" }, Medium { name: "disk", folder: "/var/tmp" }];

/// Measurements by medium, job and server.
type Samples = BTreeMap<(&'static str, &'static str, &'static str), Vec<Sample>>;

/// The servers, in the order of the table; ours first: alone, alone without an index of known blocks, and with a standby.
const SERVERS: [&str; 6] =
    [USUAL, WITHOUT_DEDUP, "thirdsite-pair", "qemu-nbd", "qemu-storage-daemon", "nbdkit"];
/// Of these, ours.
const OURS: usize = 3;
const USUAL: &str = "thirdsite";
const WITHOUT_DEDUP: &str = "thirdsite-no-dedup";

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Sample {
    operations_per_second: f64,
    megabytes_per_second: f64,
    /// CPU time of the whole server for one operation, in microseconds.
    cpu_us: f64,
    /// CPU time of the threads that serve connections, in microseconds; the whole server's for the peers.
    serving_cpu_us: f64,
    /// Latencies of writes at the median, at 99 % and at 99.9 %, in microseconds.
    latency_us: [f64; 3],
}

/// A server under test.
struct Running {
    id: u32,
    uri: String,
    /// Ends the server when dropped.
    _guard: Box<dyn Any>,
}

struct Peer {
    child: Child,
    /// Removed with the server.
    _folder: tempfile::TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    for tool in ["fio", "qemu-nbd", "qemu-storage-daemon", "nbdkit"] {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.with_context(|| format!("'{tool}' is missing; .ci/setup installs it"))?;
    }
    let chosen = |name: &str, only: &Option<String>| only.as_deref().is_none_or(|only| name == only);
    let jobs: Vec<&Job> = JOBS.iter().filter(|job| chosen(job.name, &options.job)).collect();
    let media: Vec<&Medium> = MEDIA.iter().filter(|medium| chosen(medium.name, &options.medium)).collect();
    ensure!(!jobs.is_empty(), "there is no such job; the jobs are {}", JOBS.map(|job| job.name).join(", "));
    ensure!(!media.is_empty(), "there is no such medium; the media are memory and disk");
    let mut samples = Samples::new();
    for round in 0..options.rounds {
        for medium in &media {
            for job in &jobs {
                for place in 0..SERVERS.len() {
                    // The order rotates, so that no server always has the quiet moment.
                    let server = SERVERS[(place + round) % SERVERS.len()];
                    eprintln!(
                        "round {} of {}: {} {} {server}",
                        round + 1,
                        options.rounds,
                        medium.name,
                        job.name
                    );
                    let sample = measure(server, job, Path::new(medium.folder), options.seconds)?;
                    samples.entry((medium.name, job.name, server)).or_default().push(sample);
                }
            }
        }
    }
    let mut reports = serde_json::Map::new();
    for medium in &media {
        println!("\n{} ({})", medium.name, medium.folder);
        reports.insert(medium.name.to_owned(), report(&samples, medium, &jobs));
    }
    let line = json!({
        "bench": "tap", "seconds": options.seconds, "rounds": options.rounds, "media": reports,
        "load": fs::read_to_string("/proc/loadavg")?.trim(), "machine": machine()?,
    });
    println!("{line}");
    Ok(())
}

fn measure(server: &str, job: &Job, place: &Path, seconds: u64) -> anyhow::Result<Sample> {
    let running = start(server, place)?;
    back_memory()?;
    let (cpu_before, serving_before) = cpu_seconds(running.id)?;
    let output = Command::new("fio")
        .args(["--name=job", "--ioengine=nbd", "--output-format=json", "--randrepeat=1", "--time_based=1"])
        .args([format!("--uri={}", running.uri), format!("--runtime={seconds}")])
        .args(job.arguments.split(' '))
        .args([format!("--size={FILE_BYTES}"), "--buffer_compress_percentage=50".to_owned()])
        .output()?;
    ensure!(output.status.success(), "fio failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let (cpu, serving) = cpu_seconds(running.id)?;
    let text = String::from_utf8(output.stdout)?;
    let answer: Value = serde_json::from_str(&text[text.find('{').context("fio printed no JSON")?..])?;
    let done = &answer["jobs"][0];
    let sum =
        |key: &str| done["read"][key].as_f64().unwrap_or(0.0) + done["write"][key].as_f64().unwrap_or(0.0);
    let operations = sum("total_ios");
    ensure!(operations > 0.0, "fio wrote nothing");
    let percentiles = &done["write"]["clat_ns"]["percentile"];
    let latency = |key: &str| percentiles[key].as_f64().unwrap_or(f64::NAN) / 1e3;
    Ok(Sample {
        operations_per_second: sum("iops"),
        megabytes_per_second: sum("bw_bytes") / 1e6,
        cpu_us: (cpu - cpu_before) * 1e6 / operations,
        serving_cpu_us: (serving - serving_before) * 1e6 / operations,
        latency_us: [latency("50.000000"), latency("99.000000"), latency("99.900000")],
    })
}

/// Takes memory and gives it back, so that on a virtual machine no server pays for pages that the host has to back first.
fn back_memory() -> anyhow::Result<()> {
    let file = tempfile::NamedTempFile::new_in("/dev/shm")?;
    allocate(file.path(), 2 << 30)
}

fn start(server: &str, place: &Path) -> anyhow::Result<Running> {
    if server.starts_with("thirdsite") {
        return start_ours(server, place);
    }
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(place)?;
    let (file, socket) = (folder.path().join("disk.raw"), folder.path().join("nbd.sock"));
    allocate(&file, FILE_BYTES)?;
    let mut command = Command::new(server);
    match server {
        "qemu-nbd" => command.args(["--format=raw", "--persistent", "--shared=8", "--cache=writeback"]),
        "qemu-storage-daemon" => command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,filename={}", file.display()))
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", socket.display()))
            .args(["--export", "type=nbd,id=disk,node-name=disk,name=,writable=on"]),
        "nbdkit" => command.args(["--foreground", "--unix"]).arg(&socket).arg("file"),
        _ => bail!("unknown server {server}"),
    };
    if server == "qemu-nbd" {
        command.arg("--socket").arg(&socket);
    }
    if server != "qemu-storage-daemon" {
        command.arg(&file);
    }
    let child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let id = child.id();
    let peer = Peer { child, _folder: folder };
    tests::lab::wait_for_socket(&socket)?;
    Ok(Running { id, uri: uri("", &socket), _guard: Box::new(peer) })
}

/// The agent as it runs in production: capture, intent map, cuts every second, sealing into a journal, and, with `pair`, a standby that gets marks and
/// segments. The recovery site goes away when the first sync is done: sending to it is not measured here.
fn start_ours(server: &str, place: &Path) -> anyhow::Result<Running> {
    let pair = server == "thirdsite-pair";
    let mut lab =
        if pair { Lab::pair_in(place, FILE_BYTES, "")? } else { Lab::demo_in(place, &[FILE_BYTES])? };
    if server == WITHOUT_DEDUP {
        let mut settings = fs::OpenOptions::new().append(true).open(lab.path("source.toml"))?;
        settings.write_all(b"\n[dedup]\ncovers = \"0B\"\n")?;
    }
    allocate(&lab.leg("demo", "disk0"), FILE_BYTES)?;
    lab.start_site()?;
    let standby = match pair {
        true => {
            let standby = lab.daemon("standby", &["source", "run", "--config"], "b-source.toml")?;
            standby.wait_for("standing by")?;
            Some(standby)
        }
        false => None,
    };
    lab.start_source()?;
    lab.wait_until_swept("demo")?;
    if pair {
        lab.eventually("the standby's being in step", |lab| {
            Ok(lab.source_status("demo")?["pair"]["state"] == "in-step")
        })?;
    }
    lab.kill_site();
    let id = lab.source.as_ref().context("the agent runs")?.id();
    let uri = uri("demo/disk0", &lab.tap());
    Ok(Running { id, uri, _guard: Box::new((standby, lab)) })
}

/// Written and not only allocated, so that no server has to make room, nor a resync to look at holes.
fn allocate(file: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut written = fs::File::create(file)?;
    let zeroes = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        written.write_all(&zeroes).with_context(|| format!("no room for {}", file.display()))?;
    }
    Ok(())
}

fn uri(export: &str, socket: &Path) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

/// Threads of the agent that do not serve connections, by the beginning of their names.
const BACKGROUND: [&str; 7] = ["seal", "sweep", "cut", "tokio", "mark", "clear", "pair"];

/// CPU seconds of a process, threads that have ended among them, and the same without its background threads.
pub(super) fn cpu_seconds(id: u32) -> anyhow::Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name of the program, in brackets, may hold spaces.
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    let all = ticks / rustix::param::clock_ticks_per_second() as f64;
    let mut background = 0.0;
    for thread in fs::read_dir(format!("/proc/{id}/task"))? {
        let thread = thread?.path();
        // A thread may end while the folder is read.
        let Ok(schedule) = fs::read_to_string(thread.join("schedstat")) else { continue };
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
        if BACKGROUND.iter().any(|prefix| name.starts_with(prefix)) {
            background += schedule.split(' ').next().context("empty schedstat")?.parse::<f64>()? / 1e9;
        }
    }
    Ok((all, all - background))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints the table of one medium and answers its figures.
fn report(samples: &Samples, medium: &Medium, jobs: &[&Job]) -> Value {
    println!(
        "{:<21}{:<20}{:>9}{:>8}{:>11}{:>19}{:>9}{:>9}{:>9}",
        "job", "server", "ops/s", "MB/s", "CPU us/op", "serving CPU us/op", "p50 us", "p99 us", "p99.9 us"
    );
    let report_of = |job: &&Job| (job.name.to_owned(), report_job(samples, medium, job));
    jobs.iter().map(report_of).collect::<serde_json::Map<_, _>>().into()
}

fn report_job(samples: &Samples, medium: &Medium, job: &Job) -> Value {
    let mut servers = serde_json::Map::new();
    for server in SERVERS {
        let of = |field: &dyn Fn(&Sample) -> f64| {
            median(samples[&(medium.name, job.name, server)].iter().map(field))
        };
        let (ops, mb) = (of(&|s| s.operations_per_second), of(&|s| s.megabytes_per_second));
        let (cpu, serving) = (of(&|s| s.cpu_us), of(&|s| s.serving_cpu_us));
        let [p50, p99, p999] = [0, 1, 2].map(|place| of(&|s| s.latency_us[place]));
        println!(
            "{:<21}{server:<20}{ops:>9.0}{mb:>8.0}{cpu:>11.1}{serving:>19.1}{p50:>9.0}{p99:>9.0}{p999:>9.0}",
            job.name
        );
        let figures = json!({
            "ops_per_second": ops, "mb_per_second": mb, "cpu_us": cpu, "serving_cpu_us": serving,
            "p50_us": p50, "p99_us": p99, "p999_us": p999,
        });
        servers.insert(server.to_owned(), figures);
    }
    let value = |server: &str, key: &str| servers[server][key].as_f64().unwrap_or(f64::NAN);
    let best = |key: &str, pick: fn(f64, f64) -> f64| {
        SERVERS[OURS..].iter().map(|server| value(server, key)).reduce(pick).unwrap_or(f64::NAN)
    };
    let mut ratios = serde_json::Map::new();
    for ours in &SERVERS[..OURS] {
        let speed = value(ours, "ops_per_second") / best("ops_per_second", f64::max);
        let cpu = value(ours, "cpu_us") / best("cpu_us", f64::min);
        let serving = value(ours, "serving_cpu_us") / best("cpu_us", f64::min);
        let p99 = value(ours, "p99_us") / best("p99_us", f64::min);
        println!(
            "{:<21}{ours:<20}to the best peer: speed {speed:.2}, CPU {cpu:.2}, serving CPU {serving:.2}, p99 {p99:.2}",
            job.name
        );
        let figures = json!({"speed": speed, "cpu": cpu, "serving_cpu": serving, "p99": p99});
        ratios.insert((*ours).to_owned(), figures);
    }
    ratios.insert("dedup".to_owned(), dedup_ratios(job, &value));
    json!({"servers": servers, "ratios": ratios})
}

/// What the index of known blocks costs: figures with it, divided by those without.
fn dedup_ratios(job: &Job, value: &dyn Fn(&str, &str) -> f64) -> Value {
    let ratio = |key: &str| value(USUAL, key) / value(WITHOUT_DEDUP, key);
    let (speed, p50, p99) = (ratio("ops_per_second"), ratio("p50_us"), ratio("p99_us"));
    let (cpu, serving) = (ratio("cpu_us"), ratio("serving_cpu_us"));
    println!(
        "{:<21}{USUAL:<20}with dedup to without: speed {speed:.2}, CPU {cpu:.2}, serving CPU {serving:.2}, p50 {p50:.2}, p99 {p99:.2}",
        job.name
    );
    json!({"speed": speed, "cpu": cpu, "serving_cpu": serving, "p50": p50, "p99": p99})
}

pub(super) fn machine() -> anyhow::Result<Value> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches([' ', '\t', ':']);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    Ok(json!({"cpu": model, "cpus": count, "kernel": kernel.trim()}))
}
