//! One run: site and source in this process, the link between them, a generator of segments, samples.

use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use journal_format::GroupName;
use tokio::runtime::Runtime;
use transport::{
    EnrolledPeer, Enrolment, Identity, LinkOptions, Outbox, PeerName, SiteOptions, SiteServer, SourceLink,
};
use wan_lab::{LinkProfile, Report, RunEnd, Sample, Side, Way};

use super::cpu;
use super::inbox::CountingInbox;
use super::link::Link;
use super::outbox::SyntheticOutbox;
use crate::args::WanLabRunArgs;
use crate::failure::{Failure, exit, with_causes};
use crate::output::size;

const GROUP: &str = "wan-lab";
/// How often the generator and the sampler look.
const TICK: Duration = Duration::from_millis(20);
const SAMPLE_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Samples of a run, about.
const SAMPLES: u32 = 600;
/// Changed data is sealed this often.
const CUT_INTERVAL: Duration = Duration::from_secs(1);
/// Segments that wait when the link is to be full, besides two bandwidth-delay products: more than are sent at once.
const FULL_SEGMENTS: u64 = 12;
const SEGMENT_BYTES_MIN: u64 = 4 << 10;
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const DURATION_MIN: Duration = Duration::from_secs(1);
/// So that threads that read files are still there when their CPU time is asked for.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(3600);

/// Runs and sums up.
pub(super) fn run(profile: &LinkProfile, args: &WanLabRunArgs) -> Result<Report, Failure> {
    check(args)?;
    let folder = tempfile::Builder::new().prefix("thirdsite-wan-lab-").tempdir();
    let folder = folder.map_err(|error| io_failure("make a temporary folder", &error))?;
    let mut link = Link::new(args.engine, profile, args.seed)?;
    let ends = Ends::start(&mut link, profile, args, folder.path())?;
    let mut sampler = Sampler::new(args.duration);
    let mut generator = Generator::new(profile, args);
    let progress = Progress::new(args);
    while sampler.started.elapsed() < args.duration && !ends.interrupted.load(Ordering::Relaxed) {
        generator.fill(&ends.outbox, sampler.started.elapsed());
        std::thread::sleep(TICK);
        sampler.look(&link, &ends);
        progress.show(&sampler, &ends);
        if args.bytes.is_some_and(|bytes| ends.outbox.confirmed_bytes() >= bytes.as_u64()) {
            break;
        }
    }
    sampler.sample(&link, &ends);
    progress.0.finish_and_clear();
    let end = RunEnd {
        engine: args.engine.name().to_owned(),
        seed: args.seed,
        length: sampler.started.elapsed(),
        arrived_bytes: ends.inbox.arrived_bytes(),
        confirmed_bytes: ends.outbox.confirmed_bytes(),
        counters: Way::BOTH.map(|way| link.counters(way)),
        cpu_seconds: cpu::by_part(),
        health: link.health()?,
    };
    let problem = ends.outbox.problem();
    ends.stop();
    if end.arrived_bytes == 0 {
        let problem = problem.map_or_else(String::new, |problem| format!("; last problem: {problem}"));
        let message = format!("nothing arrived in {:.1} s over this link{problem}", end.length.as_secs_f64());
        let hint =
            "give it more time with --duration; see whether the profile's script takes the link down at once";
        return Err(Failure::new(exit::TIMEOUT, message, hint));
    }
    Ok(Report::new(profile, end, sampler.samples))
}

fn check(args: &WanLabRunArgs) -> Result<(), Failure> {
    if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&args.segment.as_u64()) {
        let (least, most) = (size(SEGMENT_BYTES_MIN), size(SEGMENT_BYTES_MAX));
        return Err(Failure::invalid(
            format!("--segment {} is outside of {least} to {most}", args.segment),
            "",
        ));
    }
    if args.bytes.is_some_and(|bytes| bytes.as_u64() == 0) {
        return Err(Failure::invalid("--bytes 0 ships nothing", "give the size of what is to be shipped"));
    }
    if args.duration < DURATION_MIN {
        return Err(Failure::invalid(
            "--duration is less than a second",
            "a run needs a few round trips at least",
        ));
    }
    Ok(())
}

fn io_failure(action: &str, error: &std::io::Error) -> Failure {
    Failure::new(exit::FAILED, format!("cannot {action}: {error}"), "")
}

/// Site and source, each with a runtime of its own.
struct Ends {
    site_runtime: Runtime,
    source_runtime: Runtime,
    server: SiteServer,
    source: SourceLink,
    inbox: CountingInbox,
    outbox: Arc<SyntheticOutbox>,
    interrupted: Arc<AtomicBool>,
}

impl Ends {
    fn start(
        link: &mut Link,
        profile: &LinkProfile,
        args: &WanLabRunArgs,
        folder: &Path,
    ) -> Result<Ends, Failure> {
        let group: GroupName = GROUP.parse().expect("is a name");
        let identity = |name: &str| -> Result<Arc<Identity>, Failure> {
            let peer: PeerName = name.parse().expect("is a name");
            let made = Identity::create(&folder.join(name), &peer);
            made.map(Arc::new).map_err(|error| Failure::of(&error, error.kind(), ""))
        };
        let (site, source) = (identity("site")?, identity("source")?);
        let enrolled = folder.join("enrolled.toml");
        let name = source.name().clone();
        let peer = EnrolledPeer {
            name,
            fingerprint: source.fingerprint(),
            next_fingerprint: None,
            groups: vec![group.clone()],
        };
        Enrolment::add(&enrolled, peer).map_err(|error| Failure::of(&error, error.kind(), ""))?;
        let outbox = SyntheticOutbox::new(group, folder, args.segment.as_u64());
        let outbox = Arc::new(outbox.map_err(|error| io_failure("make a temporary file", &error))?);

        let inbox = CountingInbox::default();
        let options = SiteOptions::new(link.listen_address(), enrolled);
        let (store, pinned) = (inbox.clone(), site.fingerprint());
        let (site_runtime, server) = link.run(Side::Site, move || {
            let runtime = runtime(cpu::SITE_THREADS)?;
            let server = SiteServer::bind(options, site, Arc::new(store), runtime.handle());
            let server = server.map_err(|error| Failure::of(&error, error.kind(), ""))?;
            Ok::<_, Failure>((runtime, server))
        })??;

        let address = link.open(profile, args.seed, server.local_addr())?;
        let options = LinkOptions::new(address.to_string(), args.seed);
        let outboxes = vec![outbox.clone() as Arc<dyn Outbox>];
        let (source_runtime, source) = link.run(Side::Source, move || {
            let runtime = runtime(cpu::SOURCE_THREADS)?;
            let started = SourceLink::start(options, source, vec![pinned], outboxes, runtime.handle());
            let started = started.map_err(|error| Failure::new(exit::FAILED, with_causes(&error), ""))?;
            Ok::<_, Failure>((runtime, started))
        })??;
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = interrupted.clone();
        source_runtime.spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                flag.store(true, Ordering::Relaxed);
            }
        });
        Ok(Ends { site_runtime, source_runtime, server, source, inbox, outbox, interrupted })
    }

    fn stop(self) {
        self.source_runtime.block_on(self.source.shutdown());
        self.site_runtime.block_on(self.server.shutdown());
    }
}

/// Its threads are started here and so live where the calling thread does.
fn runtime(threads: &str) -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(threads)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .enable_all()
        .build()
        .map_err(|error| io_failure("start a runtime", &error))
}

/// Seals segments as the arguments ask for it.
struct Generator {
    segment_bytes: u64,
    work: Work,
}

enum Work {
    /// As many segments as this wait all the time.
    Full { segments: u64 },
    /// These are sealed at once.
    Once { bytes: u64 },
    /// This is sealed at every interval; the next is due then.
    Change { bytes: u64, next: Duration },
}

impl Generator {
    fn new(profile: &LinkProfile, args: &WanLabRunArgs) -> Generator {
        let segment_bytes = args.segment.as_u64();
        let work = match (args.bytes, args.rate) {
            (Some(bytes), _) => Work::Once { bytes: bytes.as_u64() },
            (None, Some(rate)) => Work::Change { bytes: rate.bytes_in(CUT_INTERVAL), next: CUT_INTERVAL },
            (None, None) => {
                let pipe = profile.up.rate.map_or(0, |rate| rate.bytes_in(profile.round_trip()));
                Work::Full { segments: FULL_SEGMENTS + 2 * pipe.div_ceil(segment_bytes) }
            }
        };
        Generator { segment_bytes, work }
    }

    fn fill(&mut self, outbox: &SyntheticOutbox, now: Duration) {
        let segment_bytes = self.segment_bytes;
        match &mut self.work {
            Work::Full { segments } => {
                for _ in outbox.waiting() as u64..*segments {
                    outbox.cut(segment_bytes, segment_bytes);
                }
            }
            Work::Once { bytes } => match std::mem::take(bytes) {
                0 => {}
                bytes => outbox.cut(bytes, segment_bytes),
            },
            Work::Change { bytes, next } => {
                while *next <= now {
                    outbox.cut(*bytes, segment_bytes);
                    *next += CUT_INTERVAL;
                }
            }
        }
    }
}

struct Sampler {
    started: Instant,
    interval: Duration,
    last_at: Duration,
    arrived_bytes: u64,
    lost_packets: u64,
    samples: Vec<Sample>,
}

impl Sampler {
    fn new(duration: Duration) -> Sampler {
        Sampler {
            started: Instant::now(),
            interval: (duration / SAMPLES).max(SAMPLE_INTERVAL_MIN),
            last_at: Duration::ZERO,
            arrived_bytes: 0,
            lost_packets: 0,
            samples: Vec::new(),
        }
    }

    fn look(&mut self, link: &Link, ends: &Ends) {
        if self.started.elapsed() >= self.last_at + self.interval {
            self.sample(link, ends);
        }
    }

    fn sample(&mut self, link: &Link, ends: &Ends) {
        let now = self.started.elapsed();
        let (arrived, head) = (ends.inbox.arrived_bytes(), ends.inbox.head());
        let lost = link.counters(Way::Up).dropped().packets;
        let passed = (now - self.last_at).as_secs_f64().max(1e-3);
        let rounded = |value: f64| (value * 1e3).round() / 1e3;
        self.samples.push(Sample {
            seconds: rounded(now.as_secs_f64()),
            goodput_mbit: rounded(arrived.saturating_sub(self.arrived_bytes) as f64 * 8.0 / 1e6 / passed),
            lag_seconds: rounded(ends.outbox.lag().as_secs_f64()),
            rpo_seconds: rounded(ends.outbox.rpo(None).as_secs_f64()),
            site_rpo_seconds: rounded(ends.outbox.rpo(head).as_secs_f64()),
            lost_packets: lost - self.lost_packets,
            queue_bytes: link.backlog_bytes(Way::Up),
        });
        (self.last_at, self.arrived_bytes, self.lost_packets) = (now, arrived, lost);
    }
}

/// A bar over the time of the run on a terminal, nothing in a pipe.
struct Progress(ProgressBar);

impl Progress {
    fn new(args: &WanLabRunArgs) -> Progress {
        let length = args.duration.as_millis() as u64;
        let bar = if stderr().is_terminal() { ProgressBar::new(length) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{elapsed} {wide_bar} {msg}") {
            bar.set_style(style);
        }
        Progress(bar)
    }

    fn show(&self, sampler: &Sampler, ends: &Ends) {
        self.0.set_position(sampler.started.elapsed().as_millis() as u64);
        if let Some(last) = sampler.samples.last() {
            let confirmed = size(ends.outbox.confirmed_bytes());
            let (goodput, lag) = (last.goodput_mbit, last.lag_seconds);
            self.0.set_message(format!("{goodput:.0} Mbit/s, lag {lag:.1} s, {confirmed} confirmed"));
        }
    }
}
