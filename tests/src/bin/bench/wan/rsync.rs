//! rsync over the kernel's TCP. A daemon on the source's side sends a file that the site's side asks for, so that the data goes the same way as
//! thirdsite's. The connection is accepted here and handed to the daemon, with the congestion control set on the socket: a namespace's
//! default takes only what the machine's administrator has allowed for everyone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use wan_lab::report::PacketSums;
use wan_lab::{LinkProfile, Namespaces, Side, Way};

use super::cell::Measured;

const PORT: u16 = 8730;
/// Least, first and most bytes of a socket's buffer, so that no window limits TCP.
const BUFFERS: &str = "4096 131072 134217728";
const LOOK: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(30);

/// The kernel's congestion control of the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Congestion {
    Cubic,
    Bbr,
}

impl Congestion {
    pub(super) const ALL: [Congestion; 2] = [Congestion::Cubic, Congestion::Bbr];

    pub(super) fn name(self) -> &'static str {
        match self {
            Congestion::Cubic => "cubic",
            Congestion::Bbr => "bbr",
        }
    }
}

pub(super) struct Rsync {
    folder: PathBuf,
    version: String,
}

impl Rsync {
    /// A module with a file of incompressible bytes that is longer than a run takes.
    pub(super) fn new(folder: &Path, bytes: u64) -> anyhow::Result<Rsync> {
        let output = Command::new("rsync").arg("--version").output();
        let output = output.context("rsync cannot be started; tests/bench-setup installs it")?;
        let version = String::from_utf8_lossy(&output.stdout);
        let version = version.lines().next().unwrap_or_default().trim().to_owned();
        let available = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")?;
        for congestion in Congestion::ALL {
            let name = congestion.name();
            ensure!(
                available.split_whitespace().any(|available| available == name),
                "the kernel has no congestion control '{name}'; as root: modprobe tcp_{name}"
            );
        }
        let module = folder.join("module");
        fs::create_dir(&module)?;
        noise(&module.join("file"), bytes).context("cannot write the file that rsync sends")?;
        let settings = format!(
            "use chroot = no\nuid = root\ngid = root\nreverse lookup = no\nlog file = {}\n[bench]\npath = {}\nread only = yes\n",
            folder.join("daemon.log").display(),
            module.display()
        );
        fs::write(folder.join("rsyncd.conf"), settings)?;
        Ok(Rsync { folder: folder.to_owned(), version })
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn measure(
        &self,
        profile: &LinkProfile,
        length: Duration,
        seed: u64,
        congestion: Congestion,
    ) -> anyhow::Result<Measured> {
        let link = Namespaces::start(profile, seed)?;
        for side in [Side::Source, Side::Site] {
            link.run(side, || {
                ["rmem", "wmem"].map(|name| fs::write(format!("/proc/sys/net/ipv4/tcp_{name}"), BUFFERS))
            })?
            .into_iter()
            .collect::<io::Result<()>>()
            .context("cannot set the sizes of TCP's buffers in a namespace")?;
        }
        let listener = link
            .run(Side::Source, || TcpListener::bind((Side::Source.address(), PORT)))?
            .context("cannot listen for rsync")?;
        rustix::net::sockopt::set_tcp_congestion(&listener, congestion.name())
            .with_context(|| format!("the kernel refuses congestion control '{}'", congestion.name()))?;
        let copy = self.folder.join("copy");
        let mut command = Command::new("rsync");
        command.args(["--whole-file", "--inplace"]);
        command.arg(format!("rsync://{}:{PORT}/bench/file", Side::Source.address())).arg(&copy);
        let begun = Instant::now();
        let mut client = Ended(link.command(Side::Site, quiet(command))??);
        let stream = accept(&listener, &mut client.0)?;
        let used = rustix::net::sockopt::tcp_congestion(&stream)?;
        ensure!(used == congestion.name(), "the kernel took congestion control '{used}'");
        let mut command = Command::new("rsync");
        command.arg("--daemon").arg("--config").arg(self.folder.join("rsyncd.conf"));
        command.stdin(OwnedFd::from(stream)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut daemon = Ended(link.command(Side::Source, command)??);

        let arrived = || fs::metadata(&copy).map_or(0, |about| about.len());
        let mut half = None;
        while begun.elapsed() < length {
            thread::sleep(LOOK);
            if half.is_none() && begun.elapsed() >= length / 2 {
                half = Some((begun.elapsed(), arrived()));
            }
            for process in [&mut client.0, &mut daemon.0] {
                if let Some(status) = process.try_wait()? {
                    let log = fs::read_to_string(self.folder.join("daemon.log")).unwrap_or_default();
                    bail!("rsync ended with {status} before the end of the run\n{log}");
                }
            }
        }
        let (end, bytes) = (begun.elapsed(), arrived());
        let cpu = [&daemon, &client].map(|process| cpu_seconds(process.0.id()));
        let sums = PacketSums::from(&link.counters(Way::Up));
        let health = link.health()?;
        drop((daemon, client));
        fs::remove_file(&copy).context("rsync received nothing")?;
        ensure!(bytes > 0, "rsync received nothing in {:.1} s", end.as_secs_f64());
        let (half, half_bytes) = half.context("the run was too short")?;
        let megabits = |bytes: u64, time: Duration| bytes as f64 * 8.0 / 1e6 / time.as_secs_f64();
        let [source, site] = cpu.map(|seconds| seconds / (bytes as f64 / 1e9));
        Ok(Measured {
            mean_mbit: megabits(bytes, end),
            steady_mbit: megabits(bytes - half_bytes, end - half),
            sent_per_byte: sums.offered_bytes as f64 / bytes as f64,
            lost_in_queue: sums.dropped_queue,
            lost_at_random: sums.dropped_loss,
            source_cpu_seconds_per_gb: source,
            site_cpu_seconds_per_gb: site,
            late_p99_ms: health.lateness[Way::Up as usize].p99.as_secs_f64() * 1e3,
            void: health.void(),
        })
    }
}

/// A program and its children, which end with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let children = children(self.0.id());
        // One that has ended by itself is what is wanted.
        let _ = self.0.kill();
        for child in children {
            if let Some(child) = rustix::process::Pid::from_raw(child as i32) {
                let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
            }
        }
        let _ = self.0.wait();
    }
}

fn children(process: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    list.unwrap_or_default().split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// CPU time of a process of one thread and of its children until now.
fn cpu_seconds(process: u32) -> f64 {
    let of_one = |process: u32| {
        let statistics = fs::read_to_string(format!("/proc/{process}/schedstat")).unwrap_or_default();
        let on_cpu = statistics.split_whitespace().next().and_then(|time| time.parse::<f64>().ok());
        on_cpu.unwrap_or_default() / 1e9
    };
    of_one(process) + children(process).into_iter().map(of_one).sum::<f64>()
}

fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Waits for the client's connection, not longer than for the client.
fn accept(listener: &TcpListener, client: &mut Child) -> anyhow::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let begun = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(status) = client.try_wait()? {
            bail!("rsync ended with {status} before it had connected");
        }
        ensure!(begun.elapsed() < PATIENCE, "rsync did not connect within {} s", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(1));
    }
}

/// A file of bytes that no compression makes smaller.
fn noise(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut source = blake3::Hasher::new().finalize_xof();
    let mut part = vec![0; 1 << 20];
    for _ in 0..bytes.div_ceil(part.len() as u64) {
        source.fill(&mut part);
        file.write_all(&part)?;
    }
    Ok(())
}
