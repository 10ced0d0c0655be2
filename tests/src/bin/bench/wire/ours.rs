//! thirdsite as it runs in production: an agent whose tap gets the changes as a guest would write them, and a recovery site.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use journal_nbd::{Client, Protocol, WriteFlags, ZeroMode};
use tests::lab::{Daemon, Lab};

use super::delta::{Delta, Range, first_difference};
use super::image::{Images, TRIMMED};
use super::tools::{Cost, run};

/// Writes in flight.
const DEPTH: usize = 8;
/// Longest wait for a recovery point.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Between two looks at the state: the looks cost the daemons time, too.
const PAUSE: Duration = Duration::from_millis(250);

/// Both sites.
pub(super) struct Ours {
    lab: Lab,
    /// Bytes per second that the guest writes at most.
    rate: u64,
}

/// What a generation cost each daemon.
pub(super) struct Costs {
    pub(super) both: Cost,
    pub(super) source: Cost,
    pub(super) site: Cost,
    /// Not all of it could be captured; the rest was compared.
    pub(super) resynced: bool,
}

#[derive(Clone, Copy)]
struct Reading {
    received_bytes: u64,
    source_cpu: f64,
    site_cpu: f64,
}

impl Ours {
    /// A recovery site, and a protected site with the first image on its disk; the agent does not run yet.
    pub(super) fn new(place: &Path, images: &Images, rate: u64) -> anyhow::Result<Ours> {
        let image = images.path(0);
        let mut lab = Lab::demo_in(place, &[image.metadata()?.len()])?;
        let mut copy = Command::new("cp");
        run(copy.args(["--sparse=always", "--reflink=auto"]).arg(image).arg(lab.leg("demo", "disk0")))?;
        lab.start_site()?;
        Ok(Ours { lab, rate })
    }

    /// Sends a generation, and proves that the recovery site has it.
    pub(super) fn take_in(&mut self, images: &Images, generation: usize) -> anyhow::Result<Costs> {
        let delta = (generation > 0).then(|| images.delta(generation)).transpose()?;
        let (begun, before) = match &delta {
            None => {
                let before = Reading { received_bytes: 0, source_cpu: 0.0, site_cpu: cpu(self.site()?)? };
                let begun = Instant::now();
                self.lab.start_source()?;
                (begun, before)
            }
            Some(delta) => {
                self.forget_peaks()?;
                let reading = self.reading()?;
                let begun = Instant::now();
                self.write(delta, &images.path(generation), generation == TRIMMED)?;
                (begun, reading)
            }
        };
        let (point, resynced) = self.wait_for_point()?;
        let (seconds, after) = (begun.elapsed().as_secs_f64(), self.reading()?);
        let cost = |cpu_seconds, daemon| -> anyhow::Result<Cost> {
            let bytes = after.received_bytes - before.received_bytes;
            Ok(Cost { bytes, cpu_seconds, seconds, peak_memory_bytes: peak(daemon)? })
        };
        let source = cost(after.source_cpu - before.source_cpu, self.source()?)?;
        let site = cost(after.site_cpu - before.site_cpu, self.site()?)?;
        let both = Cost {
            cpu_seconds: source.cpu_seconds + site.cpu_seconds,
            peak_memory_bytes: source.peak_memory_bytes + site.peak_memory_bytes,
            ..source
        };
        self.check(&point, &images.path(generation))?;
        Ok(Costs { both, source, site, resynced: resynced && generation > 0 })
    }

    fn source(&self) -> anyhow::Result<&Daemon> {
        self.lab.source.as_ref().context("the agent does not run")
    }

    fn site(&self) -> anyhow::Result<&Daemon> {
        self.lab.site.as_ref().context("the recovery site does not run")
    }

    fn reading(&self) -> anyhow::Result<Reading> {
        let status = self.lab.site_status("demo")?;
        let received_bytes = status["received_bytes"].as_u64().context("the site says nothing of bytes")?;
        Ok(Reading { received_bytes, source_cpu: cpu(self.source()?)?, site_cpu: cpu(self.site()?)? })
    }

    /// The next peak is of what comes now.
    fn forget_peaks(&self) -> anyhow::Result<()> {
        for daemon in [self.source()?, self.site()?] {
            fs::write(format!("/proc/{}/clear_refs", daemon.id()), "5")?;
        }
        Ok(())
    }

    fn write(&self, delta: &Delta, image: &Path, trim: bool) -> anyhow::Result<()> {
        let mut client = Client::connect_unix(&self.lab.tap(), "demo/disk0", Protocol::Structured)?;
        let image = File::open(image)?;
        let (mut flying, mut written, begun) = (VecDeque::new(), 0, Instant::now());
        for range in &delta.ranges {
            if range.zero {
                settle(&mut client, &mut flying, 0)?;
                zero(&mut client, range, trim)?;
            } else {
                let mut data = vec![0; range.length as usize];
                image.read_exact_at(&mut data, range.offset)?;
                flying.push_back(client.send_write(range.offset, &data, WriteFlags::default())?);
                settle(&mut client, &mut flying, DEPTH - 1)?;
            }
            written += range.length;
            let due = Duration::from_secs_f64(written as f64 / self.rate as f64);
            thread::sleep(due.saturating_sub(begun.elapsed()));
        }
        settle(&mut client, &mut flying, 0)?;
        client.flush()?;
        Ok(client.disconnect()?)
    }

    /// Cuts until the recovery site has a point; answers it, and whether something had to be compared before.
    fn wait_for_point(&self) -> anyhow::Result<(String, bool)> {
        let (begun, mut resynced) = (Instant::now(), false);
        while begun.elapsed() < PATIENCE {
            if self.lab.source_status("demo")?["state"] == "protected" {
                let cut = self.lab.cut("demo", &["--timeout", "1h"])?;
                let point = cut["point"].as_str().filter(|_| cut["is_point"] == true);
                if let Some(point) = point {
                    return Ok((point.to_owned(), resynced));
                }
            }
            resynced = true;
            thread::sleep(PAUSE);
        }
        bail!("no recovery point came to be in {} s", PATIENCE.as_secs())
    }

    fn check(&self, point: &str, image: &Path) -> anyhow::Result<()> {
        let (store, restored) = (self.lab.store().display().to_string(), self.lab.path("restored.raw"));
        let target = restored.display().to_string();
        let place = ["--point", point, "--store", &store, "--output", &target];
        self.lab.run(&[&["restore", "demo", "--volume", "disk0"], &place[..]].concat())?;
        let difference = first_difference(&restored, image)?;
        ensure!(
            difference.is_none(),
            "point {point} differs from {} at byte {}",
            image.display(),
            difference.unwrap_or_default()
        );
        Ok(fs::remove_file(restored)?)
    }
}

fn zero(client: &mut Client, range: &Range, trim: bool) -> anyhow::Result<()> {
    let length = u32::try_from(range.length)?;
    match trim {
        true => client.trim(range.offset, length, WriteFlags::default())?,
        false => client.write_zeroes(range.offset, length, ZeroMode::MayPunch, WriteFlags::default())?,
    }
    Ok(())
}

/// Takes replies until at most `left` requests are without one.
fn settle(client: &mut Client, flying: &mut VecDeque<u64>, left: usize) -> anyhow::Result<()> {
    while flying.len() > left {
        let completion = client.recv_reply()?;
        completion.result?;
        flying.retain(|cookie| *cookie != completion.cookie);
    }
    Ok(())
}

/// CPU seconds of a daemon, threads that have ended among them.
fn cpu(daemon: &Daemon) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.id()))?;
    // The name of the program, in brackets, may hold spaces.
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

fn peak(daemon: &Daemon) -> anyhow::Result<u64> {
    daemon.peak_memory_mib().map(|mib| mib << 20).context("the daemon has ended")
}
