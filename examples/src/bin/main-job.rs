//! Protects a running VM, kills its whole site, boots it at the third site and says what was lost.
//!
//! Everything goes through the `thirdsite` program, as a person would use it. The last line on standard output is one JSON
//! object; the exit code is 0 only if the guest came up whole and lost no more than two seconds of writes.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};
use examples::console::Life;
use examples::process::{self, Job, Process, Signal, count_alive, find_child, wait_for, with_tail};
use examples::qemu::Qemu;
use examples::settings::{GROUP, Layout, bucket_target, site_target, site_toml, source_toml};
use examples::thirdsite::{BootReport, GroupStatus, Thirdsite};
use examples::verdict::{Verdict, judge};

const USAGE: &str = "\
Protects a running VM, kills its whole site, boots it at the third site and says what was lost.

Usage: main-job [OPTIONS]
  --thirdsite FILE   the program to show [default: beside this one]
  --guest DIR        guest made by examples/guest/build [default: target/guest]
  --dir DIR          work folder, emptied first [default: target/demo]
  --seconds N        how long the guest writes under protection [default: 20]
  --agent-crash      also kill the agent alone, to show that the guest goes on
  --bucket FILE      ship into a bucket, without a server of ours at the third site; FILE has the keys of [target.bucket],
                     with absolute paths, and names an empty prefix
  --accel NAME       QEMU accelerator [default: tcg]";

const SOURCE_NAME: &str = "pair-a";
const SITE_NAME: &str = "far-site";
const READY_WORD: &str = "GUEST-READY";

/// A file that says that a folder is ours to empty.
const MARKER: &str = ".thirdsite-demonstration";

/// Boots by firmware under an emulator take long on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
const DAEMON_LIMIT: Duration = Duration::from_secs(30);
const SYNC_LIMIT: Duration = Duration::from_secs(300);
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// Records that the guest must add after a crash of the agent, and after its boot at the third site.
const MORE_RECORDS: u64 = 50;

/// Longest path of a unix socket (unix(7): 108 bytes with the end mark).
const SOCKET_PATH_MAX: usize = 107;

fn main() -> ExitCode {
    match Options::parse(env::args().skip(1))
        .and_then(|options| options.map_or(Ok(()), |options| show(&options)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("main-job: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    thirdsite: PathBuf,
    guest: PathBuf,
    folder: PathBuf,
    duration: Duration,
    agent_crash: bool,
    bucket: Option<PathBuf>,
    accel: String,
}

impl Options {
    /// Reads the command line; nothing if only help was asked for.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
        let beside = env::current_exe()?.with_file_name("thirdsite");
        let mut options = Options {
            thirdsite: beside,
            guest: PathBuf::from("target/guest"),
            folder: PathBuf::from("target/demo"),
            duration: Duration::from_secs(20),
            agent_crash: false,
            bucket: None,
            accel: "tcg".to_owned(),
        };
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{name} needs a value\n\n{USAGE}"));
            match name.as_str() {
                "--thirdsite" => options.thirdsite = PathBuf::from(value()?),
                "--guest" => options.guest = PathBuf::from(value()?),
                "--dir" => options.folder = PathBuf::from(value()?),
                "--seconds" => {
                    let text = value()?;
                    let seconds =
                        text.parse().with_context(|| format!("--seconds {text}: not a whole number"))?;
                    options.duration = Duration::from_secs(seconds);
                }
                "--bucket" => options.bucket = Some(PathBuf::from(value()?)),
                "--agent-crash" => options.agent_crash = true,
                "--accel" => options.accel = value()?,
                "--help" | "-h" => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                other => bail!("'{other}' is not understood\n\n{USAGE}"),
            }
        }
        Ok(Some(options))
    }
}

/// Everything of the protected site that runs, in one process group.
struct ProtectedSite {
    /// First, because fields are dropped in this order: without its agent QEMU would wait for its disk instead of ending.
    qemu: Process,
    supervisor: Process,
    console: PathBuf,
}

/// The demonstration.
struct Demonstration {
    started: Instant,
    layout: Layout,
    thirdsite: Thirdsite,
    qemu: Qemu,
    bucket: Option<Bucket>,
}

/// A bucket that takes the place of a site's daemon.
struct Bucket {
    file: PathBuf,
    keys: String,
    url: String,
}

impl Bucket {
    fn read(file: &Path) -> Result<Bucket> {
        let keys = fs::read_to_string(file).with_context(|| format!("settings '{}'", file.display()))?;
        let url = keys.lines().find_map(|line| {
            line.strip_prefix("url")?.trim().strip_prefix('=')?.trim().strip_prefix('"')?.strip_suffix('"')
        });
        let url = url
            .with_context(|| format!("'{}' has no line: url = \"s3://BUCKET/PREFIX\"", file.display()))?
            .to_owned();
        Ok(Bucket { file: file.canonicalize()?, keys, url })
    }
}

fn show(options: &Options) -> Result<()> {
    let demonstration = Demonstration::prepare(options)?;
    let address = demonstration.write_settings()?;
    let mut site = address.map(|address| demonstration.start_site(address)).transpose()?;
    let mut protected = demonstration.start_protected_site()?;
    demonstration.wait_until_protected(&mut protected, site.as_mut())?;
    demonstration.let_it_write(&mut protected, options)?;
    let before = demonstration.lose_protected_site(protected)?;
    let verdict = demonstration.boot_at_third_site(&before)?;
    site.map_or(Ok(()), Process::stop)?;
    demonstration.report(&verdict)
}

impl Demonstration {
    fn say(&self, text: &str) {
        println!("{:7.1} s  {text}", self.started.elapsed().as_secs_f64());
    }

    fn prepare(options: &Options) -> Result<Demonstration> {
        ensure!(
            options.thirdsite.exists(),
            "'{}' does not exist; build it with: cargo build --release -p replicator",
            options.thirdsite.display()
        );
        let disk = options.guest.join("disk.raw");
        ensure!(
            disk.exists(),
            "'{}' does not exist; build it with: examples/guest/build {}",
            disk.display(),
            options.guest.display()
        );
        empty(&options.folder)?;
        let folder = options.folder.canonicalize()?;
        let demonstration = Demonstration {
            started: Instant::now(),
            layout: Layout::new(&folder),
            thirdsite: Thirdsite { program: options.thirdsite.canonicalize()? },
            qemu: Qemu {
                program: PathBuf::from("qemu-system-x86_64"),
                machine: "pc-q35-10.0",
                accel: options.accel.clone(),
                cpu: "qemu64",
                memory_mib: 256,
                mac: "52:54:00:12:34:56",
            },
            bucket: options.bucket.as_deref().map(Bucket::read).transpose()?,
        };
        let longest = demonstration.layout.source_control();
        ensure!(
            longest.as_os_str().len() <= SOCKET_PATH_MAX,
            "the path of the socket '{}' is too long for the system; choose another --dir",
            longest.display()
        );
        demonstration.say(&format!("work folder {}", folder.display()));
        let leg = demonstration.layout.leg();
        process::run(Path::new("cp"), &["--sparse=always".as_ref(), disk.as_ref(), leg.as_ref()])?;
        Ok(demonstration)
    }

    /// Gives both sites an identity and settings, and returns the address of the recovery site, unless that is a bucket.
    fn write_settings(&self) -> Result<Option<SocketAddr>> {
        let source = self.thirdsite.make_identity(&self.layout.path("source-id"), SOURCE_NAME)?;
        let source_settings = self.layout.path("source.toml");
        if let Some(bucket) = &self.bucket {
            self.say(&format!("identity of the protected site '{SOURCE_NAME}': {source}"));
            fs::write(source_settings, source_toml(&bucket_target(&bucket.keys), &self.qemu))?;
            self.say(&format!("the third site is the bucket {}: nothing of ours runs there", bucket.url));
            return Ok(None);
        }
        let site = self.thirdsite.make_identity(&self.layout.path("site-id"), SITE_NAME)?;
        self.say(&format!("identity of the protected site '{SOURCE_NAME}': {source}"));
        self.say(&format!("identity of the recovery site '{SITE_NAME}': {site}"));
        let address = free_address()?;
        let site_settings = self.layout.path("site.toml");
        fs::write(&site_settings, site_toml(address))?;
        fs::write(source_settings, source_toml(&site_target(address, &site), &self.qemu))?;
        self.thirdsite.enroll(&site_settings, SOURCE_NAME, &source, GROUP)?;
        self.say(&format!("'{SOURCE_NAME}' is enrolled at '{SITE_NAME}' for the group '{GROUP}'"));
        Ok(Some(address))
    }

    fn start_site(&self, address: SocketAddr) -> Result<Process> {
        let site = self.start_thirdsite(&["site", "run"], "site.toml", None)?;
        self.say(&format!("the recovery site runs (process {}) and listens on {address}", site.id()));
        Ok(site)
    }

    fn start_thirdsite(&self, command: &[&str; 2], settings: &str, group: Option<i32>) -> Result<Process> {
        let mut arguments: Vec<_> = command.iter().map(Into::into).collect();
        arguments.extend(["--config".into(), self.layout.path(settings).into()]);
        Process::start(Job {
            name: &format!("thirdsite {}", command.join(" ")),
            program: &self.thirdsite.program,
            arguments,
            log: self.layout.path(&format!("{}.log", command[0])),
            output: None,
            group,
            at_our_death: Signal::Term,
        })
    }

    fn start_protected_site(&self) -> Result<ProtectedSite> {
        let mut supervisor = self.start_thirdsite(&["source", "supervise"], "source.toml", None)?;
        wait_for("the tap's socket", DAEMON_LIMIT, || {
            supervisor.check_alive()?;
            Ok(self.layout.tap().exists().then_some(()))
        })
        .map_err(|error| supervisor.with_log(error))?;
        self.say(&format!(
            "the protected site's agent runs behind its supervisor (process {})",
            supervisor.id()
        ));
        let console = self.layout.path("console-protected.log");
        let mut qemu = Process::start(Job {
            name: "QEMU",
            program: &self.qemu.program,
            arguments: self.qemu.arguments(&self.layout.tap(), &format!("{GROUP}/disk0"), &console),
            log: self.layout.path("qemu.log"),
            output: None,
            group: Some(supervisor.group()),
            at_our_death: Signal::Kill,
        })?;
        self.say(&format!("the VM runs (process {}) with its disk behind the tap", qemu.id()));
        let ready = wait_for("the protected guest's boot", BOOT_LIMIT, || {
            qemu.check_alive()?;
            living(&console).map(|life| life.ready)
        })
        .map_err(|error| supervisor.with_log(with_tail(error, &console)))?;
        self.say(&format!("the guest is up (boot {}) and writes records", ready.boot));
        Ok(ProtectedSite { qemu, supervisor, console })
    }

    /// Waits until the recovery site has a point. The guest goes on writing all the while.
    fn wait_until_protected(
        &self,
        protected: &mut ProtectedSite,
        mut site: Option<&mut Process>,
    ) -> Result<()> {
        let mut last_state = String::new();
        let mut no_status = None;
        let found = wait_for("the first recovery point", SYNC_LIMIT, || {
            site.as_mut().map_or(Ok(()), |site| site.check_alive())?;
            protected.supervisor.check_alive()?;
            // The agent may not listen yet; the time limit covers the case that it never does.
            let group = match self.group_status() {
                Ok(group) => group,
                Err(error) => {
                    no_status = Some(error);
                    return Ok(None);
                }
            };
            no_status = None;
            if group.state != last_state {
                self.say(&format!("the group is {}: {}", group.state, group.detail));
                last_state.clone_from(&group.state);
            }
            ensure!(!group.has_failed(), "the agent cannot protect the group: {}", group.detail);
            Ok(group.is_protected().then_some(()))
        });
        found.map_err(|error| {
            let error = no_status.map_or(error, |reason| reason.context("the agent gives no status"));
            let error = protected.supervisor.with_log(error);
            match site {
                Some(site) => site.with_log(error),
                None => error,
            }
        })
    }

    fn group_status(&self) -> Result<GroupStatus> {
        let status = self.thirdsite.status(&self.layout.source_control())?;
        let found = status.groups.into_iter().find(|group| group.name == GROUP);
        found.with_context(|| format!("the agent does not know the group '{GROUP}'"))
    }

    fn let_it_write(&self, protected: &mut ProtectedSite, options: &Options) -> Result<()> {
        self.say(&format!("the guest writes for {} s under protection", options.duration.as_secs()));
        if options.agent_crash {
            thread::sleep(options.duration / 2);
            self.crash_agent(protected)?;
            thread::sleep(options.duration / 2);
        } else {
            thread::sleep(options.duration);
        }
        protected.qemu.check_alive()?;
        protected.supervisor.check_alive()?;
        living(&protected.console).map(drop)
    }

    fn crash_agent(&self, protected: &mut ProtectedSite) -> Result<()> {
        let agent = find_child(protected.supervisor.id(), &["source", "run"])?;
        let before = Life::read(&protected.console)?.last_number();
        process::send(Signal::Kill, agent.cast_signed())?;
        self.say(&format!("SIGKILL to the agent alone (process {agent}), at record {before}"));
        let life = wait_for("the guest's writes after the agent's crash", WRITE_LIMIT, || {
            protected.qemu.check_alive()?;
            let life = living(&protected.console)?;
            Ok((life.last_number() >= before + MORE_RECORDS).then_some(life))
        })
        .map_err(|error| protected.supervisor.with_log(error))?;
        let pause = life.longest_pause_ms(before);
        self.say(&format!("the guest saw no error and goes on; its longest pause was {pause} ms"));
        Ok(())
    }

    /// Kills everything at the protected site with one signal, and returns what the guest had announced until then.
    fn lose_protected_site(&self, mut protected: ProtectedSite) -> Result<Life> {
        let group = protected.supervisor.group();
        let count = count_alive(group)?;
        process::send(Signal::Kill, -group)?;
        self.say(&format!("{}: SIGKILL to all {count} processes of the protected site at once", utc_now()));
        protected.qemu.reap()?;
        protected.supervisor.reap()?;
        wait_for("the end of the protected site", DAEMON_LIMIT, || {
            Ok((count_alive(group)? == 0).then_some(()))
        })?;
        let life = Life::read(&protected.console)?;
        self.say(&format!("the last record that the guest announced is {}", life.last_number()));
        Ok(life)
    }

    fn boot_at_third_site(&self, before: &Life) -> Result<Verdict> {
        let point = self.thirdsite.newest_point(GROUP, &self.store())?;
        self.say(&format!("the newest point at the third site is {} of {}", point.id, point.time));
        let console = self.layout.path("console-recovered.log");
        let output = self.layout.path("boot.json");
        let mut boot = self.start_boot(&console, &output)?;
        let began = Instant::now();
        let report = wait_for("the recovered guest's boot", BOOT_LIMIT, || {
            boot.check_alive()?;
            living(&console)?;
            first_line(&output)
        })
        .map_err(|error| boot.with_log(with_tail(error, &console)))?;
        let seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        self.say(&format!(
            "the guest is up at the third site after {seconds:.1} s ({:.1} s by boot's own report)",
            report.ready_seconds
        ));
        let after = wait_for("the recovered guest's writes", WRITE_LIMIT, || {
            boot.check_alive()?;
            let life = living(&console)?;
            let goal = life.ready.map_or(0, |ready| ready.records) + MORE_RECORDS;
            Ok((life.last_number() >= goal).then_some(life))
        })
        .map_err(|error| boot.with_log(with_tail(error, &console)))?;
        self.say(&format!("the guest goes on writing: record {}", after.last_number()));
        boot.stop()?;
        self.say("the recovered VM is stopped; the point is as it was");
        judge(before, &after, seconds, &report.point).map_err(|error| with_tail(error, &console))
    }

    /// The arguments that name the store to a command.
    fn store(&self) -> Vec<OsString> {
        match &self.bucket {
            None => vec!["--store".into(), self.layout.store().into()],
            Some(Bucket { file, url, .. }) => vec![
                "--store".into(),
                url.into(),
                "--bucket-config".into(),
                file.into(),
                "--cache".into(),
                self.layout.path("cache").into(),
            ],
        }
    }

    fn start_boot(&self, console: &Path, output: &Path) -> Result<Process> {
        let limit = format!("{}s", BOOT_LIMIT.as_secs());
        let fixed = ["boot", GROUP, "--latest", "--json", "--ready", READY_WORD, "--timeout", &limit];
        let mut arguments: Vec<_> = fixed.iter().map(Into::into).collect();
        arguments.extend(self.store());
        arguments.extend(["--console".into(), console.into()]);
        Process::start(Job {
            name: "thirdsite boot",
            program: &self.thirdsite.program,
            arguments,
            log: self.layout.path("boot.log"),
            output: Some(output.to_owned()),
            group: None,
            at_our_death: Signal::Term,
        })
    }

    fn report(&self, verdict: &Verdict) -> Result<()> {
        let Verdict { records_written, records_after_boot, records_lost, seconds_lost, .. } = verdict;
        self.say(&format!("{records_written} records were announced before the disaster"));
        self.say(&format!(
            "{records_after_boot} were found after the boot; none torn, none missing in between"
        ));
        self.say(&format!("lost: {records_lost} records, {seconds_lost} s of writes"));
        let console = |name| self.layout.path(name).display().to_string();
        self.say(&format!("evidence of the first life:  {}", console("console-protected.log")));
        self.say(&format!("evidence of the second life: {}", console("console-recovered.log")));
        println!("{}", serde_json::to_string(verdict)?);
        Ok(())
    }
}

/// Reads a console and fails if the guest has given up.
fn living(console: &Path) -> Result<Life> {
    let life = Life::read(console)?;
    match &life.failure {
        Some(reason) => Err(anyhow!("the guest gave up: {reason}")),
        None => Ok(life),
    }
}

/// Reads the report of `thirdsite boot` once its line is whole.
fn first_line(output: &Path) -> Result<Option<BootReport>> {
    let text = fs::read_to_string(output)?;
    let Some((line, _)) = text.split_once('\n') else { return Ok(None) };
    serde_json::from_str(line).map(Some).with_context(|| format!("the report is not understood: {line}"))
}

/// Makes a folder, or empties one that an earlier run has made. Another one is left alone.
fn empty(folder: &Path) -> Result<()> {
    if folder.exists() && fs::read_dir(folder)?.next().is_some() {
        ensure!(
            folder.join(MARKER).exists(),
            "'{}' has content that is not this program's; choose another --dir or empty it",
            folder.display()
        );
        fs::remove_dir_all(folder).with_context(|| format!("folder '{}'", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("folder '{}'", folder.display()))?;
    Ok(fs::write(folder.join(MARKER), "Emptied by each run of the demonstration.\n")?)
}

/// Returns an address on this machine that nobody listens on.
fn free_address() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Returns the time of day, as logs give it.
fn utc_now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:03} UTC", seconds % 60, since.subsec_millis())
}
