//! A laboratory of real processes: a recovery site and a protected site on this host, with folders, sockets and identities of
//! their own, which a test starts, kills and starts again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use journal_nbd::{Client, Protocol, WriteFlags};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use crate::scaled;

/// How long anything may take that is waited for. Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);

const MIB: u64 = 1 << 20;

/// Path of a binary of the workspace, next to the running test.
///
/// # Errors
/// If it has not been built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let running = std::env::current_exe()?;
    let found = running.ancestors().skip(1).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("binary '{name}' is not built; run 'cargo build --workspace' first"))
}

/// A group of the protected site.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// Its name.
    pub name: String,
    /// Names and sizes in bytes of its volumes.
    pub volumes: Vec<(String, u64)>,
    /// Further lines of its table.
    pub extra: String,
}

/// The output of a daemon, line by line.
#[derive(Clone, Default)]
struct Log(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Log {
    fn push(&self, line: String) {
        self.0.0.lock().expect("the log is not poisoned").push(line);
        self.0.1.notify_all();
    }

    fn lines(&self) -> Vec<String> {
        self.0.0.lock().expect("the log is not poisoned").clone()
    }

    /// Waits for a line with `text` at or behind line `from`; answers its number.
    fn wait(&self, text: &str, from: usize) -> Option<usize> {
        let found = |lines: &Vec<String>| {
            lines.iter().skip(from).position(|line| line.contains(text)).map(|place| place + from)
        };
        let lines = self.0.0.lock().expect("the log is not poisoned");
        let waited = self.0.1.wait_timeout_while(lines, PATIENCE, |lines| found(lines).is_none());
        found(&waited.expect("the log is not poisoned").0)
    }
}

/// A process that is ended by its id when dropped.
pub struct Daemon {
    child: Child,
    log: Log,
    name: String,
    /// It must never have had more memory than this, in MiB.
    memory_max_mib: Option<u64>,
}

/// What an agent needs besides the payload that its settings allow, in MiB: code, stacks, one segment being sealed, buffers of connections.
const AGENT_REST_MIB: u64 = 160;
/// `memory_budget` of a group whose settings do not name one, in MiB.
const DEFAULT_BUDGET_MIB: u64 = 256;

impl Daemon {
    /// Starts a program whose standard error is its log.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> anyhow::Result<Daemon> {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            // A group of its own, so that what it has started ends with it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let (log, output) = (Log::default(), child.stderr.take().expect("standard error is piped"));
        let writer = log.clone();
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).for_each(|line| writer.push(line));
            writer.push("END OF LOG".to_owned());
        });
        Ok(Daemon { child, log, name: name.to_owned(), memory_max_mib: None })
    }

    /// Most memory that it ever had, in MiB; `None` if it has ended.
    pub fn peak_memory_mib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
    }

    fn check_memory(&self, peak_mib: Option<u64>) {
        let (Some(peak), Some(max)) = (peak_mib, self.memory_max_mib) else { return };
        assert!(
            peak <= max || thread::panicking(),
            "{} had {peak} MiB of memory; its settings allow {max}",
            self.name
        );
    }

    /// Waits until its log has a line with `text`.
    ///
    /// # Errors
    /// If that does not happen; with the log.
    pub fn wait_for(&self, text: &str) -> anyhow::Result<()> {
        ensure!(
            self.log.wait(text, 0).is_some() && !self.ended_without(text),
            "{} never said '{text}':\n{}",
            self.name,
            self.log.lines().join("\n")
        );
        Ok(())
    }

    fn ended_without(&self, text: &str) -> bool {
        !self.log.lines().iter().any(|line| line.contains(text))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Kills it, and what it has started, at once (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let peak = self.peak_memory_mib();
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may be ending just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
        self.check_memory(peak);
    }

    /// Ends it in order (SIGTERM) and waits for its exit code.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let peak = self.peak_memory_mib();
        signal(self.child.id(), Signal::TERM)?;
        let status = self.child.wait()?;
        self.check_memory(peak);
        self.log.wait("END OF LOG", 0);
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.log.lines().join("\n"));
        Ok(())
    }

    /// Waits for it to end by itself; answers its exit code.
    ///
    /// # Errors
    /// If it was ended by a signal.
    pub fn wait_for_end(&mut self) -> anyhow::Result<i32> {
        self.log.wait("END OF LOG", 0).context("the daemon does not end")?;
        self.child.wait()?.code().context("the daemon was ended by a signal")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        // Shown if the test fails.
        for line in self.log.lines().iter().filter(|line| line.contains("ERROR") || line.contains("WARN")) {
            println!("{}: {line}", self.name);
        }
    }
}

/// One protected site and one recovery site.
pub struct Lab {
    groups: Vec<GroupSpec>,
    thirdsite: PathBuf,
    /// The recovery site's daemon, while it runs.
    pub site: Option<Daemon>,
    /// The protected site's agent, while it runs.
    pub source: Option<Daemon>,
    /// Goes last: the daemons above use it.
    folder: TempDir,
}

impl Lab {
    /// Makes folders, legs of zeroes, identities and settings, and enrols the protected site.
    ///
    /// # Errors
    /// If anything of that fails.
    pub fn new(groups: &[GroupSpec]) -> anyhow::Result<Lab> {
        Lab::new_in(&std::env::temp_dir(), groups)
    }

    /// The same in a folder below `place`.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn new_in(place: &Path, groups: &[GroupSpec]) -> anyhow::Result<Lab> {
        let folder = tempfile::Builder::new().prefix("thirdsite-").tempdir_in(place)?;
        let thirdsite = binary("thirdsite")?;
        let lab = Lab { folder, groups: groups.to_vec(), thirdsite, site: None, source: None };
        for group in groups {
            for (volume, size) in &group.volumes {
                fs::File::create(lab.leg(&group.name, volume))?.set_len(*size)?;
            }
        }
        let own = lab.new_identity("source-id", "pair-a")?;
        let site = lab.new_identity("site-id", "far-site")?;
        let address = own_address();
        fs::write(lab.path("site.toml"), site_settings(address))?;
        fs::write(lab.path("source.toml"), source_settings(address, &site, groups))?;
        let mut enroll = vec!["site", "enroll", "--name", "pair-a", "--fingerprint", &own];
        let config = lab.path("site.toml").display().to_string();
        enroll.extend(["--config", &config]);
        groups.iter().for_each(|group| enroll.extend(["--group", &group.name]));
        lab.run(&enroll)?;
        Ok(lab)
    }

    /// One group `demo` with volumes of these sizes, `disk0` and so on.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn demo(sizes: &[u64]) -> anyhow::Result<Lab> {
        Lab::demo_in(&std::env::temp_dir(), sizes)
    }

    /// The same in a folder below `place`.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn demo_in(place: &Path, sizes: &[u64]) -> anyhow::Result<Lab> {
        let volumes = sizes.iter().enumerate().map(|(number, &size)| (format!("disk{number}"), size));
        let volumes = volumes.collect();
        Lab::new_in(place, &[GroupSpec { name: "demo".to_owned(), volumes, extra: String::new() }])
    }

    /// One group `demo` with a volume `disk0`, on the two hosts of a pair. Host `a` begins as the active one: its files are those of a single
    /// host; those of host `b` have `b-` before their names.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn pair(size: u64, extra: &str) -> anyhow::Result<Lab> {
        Lab::pair_in(&std::env::temp_dir(), size, extra)
    }

    /// The same in a folder below `place`.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn pair_in(place: &Path, size: u64, extra: &str) -> anyhow::Result<Lab> {
        let volumes = vec![("disk0".to_owned(), size)];
        let groups = [GroupSpec { name: "demo".to_owned(), volumes, extra: extra.to_owned() }];
        let lab = Lab::new_in(place, &groups)?;
        fs::copy(lab.leg("demo", "disk0"), lab.path("b-demo-disk0.raw"))?;
        let second = lab.new_identity("b-source-id", "pair-b")?;
        let shown =
            lab.json(&["identity", "show", "--json", "--dir", &lab.path("source-id").display().to_string()])?;
        let first = shown["fingerprint"].as_str().context("no fingerprint")?.to_owned();
        let config = lab.path("site.toml").display().to_string();
        lab.run(&[
            "site",
            "enroll",
            "--name",
            "pair-b",
            "--fingerprint",
            &second,
            "--config",
            &config,
            "--group",
            "demo",
        ])?;
        let (here, there) = (own_address(), own_address());
        let pair = |role: &str, listen: SocketAddr, peer: SocketAddr, fingerprint: &str| {
            format!(
                "[pair]\nrole = \"{role}\"\nlisten = \"{listen}\"\npeer = \"{peer}\"\n\
                 fingerprint = \"{fingerprint}\"\n"
            )
        };
        let settings = fs::read_to_string(lab.path("source.toml"))?;
        let renamed = ["source-id", "journal", "source.sock", "tap.sock", "demo-disk0.raw"];
        let other = renamed.iter().fold(settings.clone(), |text, name| {
            text.replace(&format!("\"{name}\""), &format!("\"b-{name}\""))
                .replace(&format!("\"unix:{name}\""), &format!("\"unix:b-{name}\""))
        });
        fs::write(lab.path("source.toml"), settings + &pair("active", here, there, &second))?;
        fs::write(lab.path("b-source.toml"), other + &pair("standby", there, here, &first))?;
        Ok(lab)
    }

    /// Adds a recovery site as a further target of the agent: its files have `name-` before their names.
    ///
    /// # Errors
    /// If it cannot be set up.
    pub fn add_site(&self, name: &str) -> anyhow::Result<()> {
        let fingerprint = self.new_identity(&format!("{name}-site-id"), name)?;
        let address = own_address();
        let prefixed = ["site-id", "store", "site.sock", "enrolled.toml"];
        let settings = prefixed.iter().fold(site_settings(address), |text, file| {
            text.replace(&format!("\"{file}\""), &format!("\"{name}-{file}\""))
        });
        fs::write(self.path(&format!("{name}-site.toml")), settings)?;
        fs::copy(self.path("enrolled.toml"), self.path(&format!("{name}-enrolled.toml")))?;
        self.add_target(&format!(
            "[[target]]\nname = \"{name}\"\n[target.site]\naddress = \"{address}\"\nfingerprint = \"{fingerprint}\"\n"
        ))
    }

    /// Adds a table of a target to the agent's settings.
    ///
    /// # Errors
    /// If they cannot be changed.
    pub fn add_target(&self, table: &str) -> anyhow::Result<()> {
        let config = self.path("source.toml");
        Ok(fs::write(&config, fs::read_to_string(&config)? + table)?)
    }

    /// Puts tables of targets in the place of the one that the agent's settings begin with.
    ///
    /// # Errors
    /// If they cannot be changed.
    pub fn set_targets(&self, tables: &str) -> anyhow::Result<()> {
        let config = self.path("source.toml");
        let settings = fs::read_to_string(&config)?;
        let (begin, end) = settings.find("[[target]]").zip(settings.find("[tap]")).context("no targets")?;
        Ok(fs::write(&config, format!("{}{tables}{}", &settings[..begin], &settings[end..]))?)
    }

    fn new_identity(&self, folder: &str, name: &str) -> anyhow::Result<String> {
        let folder = self.path(folder).display().to_string();
        let made = self.json(&["identity", "new", "--dir", &folder, "--name", name, "--json"])?;
        Ok(made["fingerprint"].as_str().context("no fingerprint was printed")?.to_owned())
    }

    /// A path in the laboratory's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The leg of a volume.
    pub fn leg(&self, group: &str, volume: &str) -> PathBuf {
        self.path(&format!("{group}-{volume}.raw"))
    }

    /// The tap's unix socket.
    pub fn tap(&self) -> PathBuf {
        self.path("tap.sock")
    }

    /// The recovery site's store.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Starts the recovery site and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_site(&mut self) -> anyhow::Result<()> {
        self.site = Some(self.start_site_of("site.toml")?);
        Ok(())
    }

    /// Starts the recovery site with other settings and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_site_of(&self, config: &str) -> anyhow::Result<Daemon> {
        let daemon = self.daemon(config.trim_end_matches(".toml"), &["site", "run", "--config"], config)?;
        daemon.wait_for("ready")?;
        Ok(daemon)
    }

    /// Starts the agent and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_source(&mut self) -> anyhow::Result<()> {
        let daemon = self.daemon("source", &["source", "run", "--config"], "source.toml")?;
        daemon.wait_for("ready")?;
        self.source = Some(daemon);
        Ok(())
    }

    /// Starts the agent so that it kills itself when it passes a labelled step for the Nth time, and waits until that has happened.
    ///
    /// # Errors
    /// If it does not come to that.
    pub fn run_source_until(&mut self, step: &str, times: u64) -> anyhow::Result<()> {
        let mut command = Command::new(&self.thirdsite);
        command.args(["source", "run", "--config"]).arg(self.path("source.toml"));
        command.env("THIRDSITE_KILL_AT", format!("{step}:{times}"));
        let daemon = Daemon::start("source", &mut command)?;
        ensure!(
            daemon.log.wait("END OF LOG", 0).is_some(),
            "the agent never passed '{step}' {times} times:\n{}",
            daemon.log.lines().join("\n")
        );
        Ok(())
    }

    /// Waits until a resync of the group has read everything.
    ///
    /// # Errors
    /// If that does not happen.
    pub fn wait_until_swept(&self, group: &str) -> anyhow::Result<()> {
        self.eventually("the end of the resync", |lab| {
            Ok(lab.source_status(group)?["counters"]["dirty_bytes"] == 0)
        })
    }

    /// What the agent says of a group.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn source_status(&self, group: &str) -> anyhow::Result<Value> {
        self.status("source.sock", group)
    }

    /// What the recovery site says of a group.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn site_status(&self, group: &str) -> anyhow::Result<Value> {
        self.status("site.sock", group)
    }

    /// What a daemon says of a group.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self, control: &str, group: &str) -> anyhow::Result<Value> {
        let control = self.path(control).display().to_string();
        let status = self.json(&["status", "--json", "--control", &control])?;
        let groups = status["groups"].as_array().context("no groups in the status")?;
        let found = groups.iter().find(|entry| entry["name"] == group);
        Ok(found.with_context(|| format!("group {group} is not in the status"))?.clone())
    }

    /// Starts a daemon without waiting for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn daemon(&self, name: &str, args: &[&str], config: &str) -> anyhow::Result<Daemon> {
        let mut daemon =
            Daemon::start(name, Command::new(&self.thirdsite).args(args).arg(self.path(config)))?;
        daemon.memory_max_mib = args.starts_with(&["source", "run"]).then(|| self.agent_memory_max_mib());
        Ok(daemon)
    }

    /// What the settings of the groups allow an agent, in MiB.
    fn agent_memory_max_mib(&self) -> u64 {
        let budget = |group: &GroupSpec| {
            let text = group.extra.split("memory_budget = \"").nth(1)?.split("MiB").next()?;
            text.parse::<u64>().ok()
        };
        let budgets = self.groups.iter().map(|group| budget(group).unwrap_or(DEFAULT_BUDGET_MIB));
        budgets.sum::<u64>() + AGENT_REST_MIB
    }

    /// Starts a command of the CLI that keeps running.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, name: &str, args: &[&str]) -> anyhow::Result<Daemon> {
        Daemon::start(name, Command::new(&self.thirdsite).args(args).stdout(Stdio::null()))
    }

    /// Kills the agent with SIGKILL.
    pub fn kill_source(&mut self) {
        self.source.take();
    }

    /// Kills the recovery site with SIGKILL.
    pub fn kill_site(&mut self) {
        self.site.take();
    }

    /// Runs the CLI; answers whatever comes of it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn output(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(Command::new(&self.thirdsite).args(args).stdin(Stdio::null()).output()?)
    }

    /// Runs the CLI with another search path for programs.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn output_with_path(&self, path: &str, args: &[&str]) -> anyhow::Result<Output> {
        Ok(Command::new(&self.thirdsite).env("PATH", path).args(args).stdin(Stdio::null()).output()?)
    }

    /// Runs the CLI, which has to succeed; answers its standard output.
    ///
    /// # Errors
    /// If it fails, with what it printed.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.output(args)?;
        if !output.status.success() {
            let printed = String::from_utf8_lossy(&output.stderr);
            bail!("thirdsite {} failed with {}:\n{printed}", args.join(" "), output.status);
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs the CLI, which has to print one JSON value.
    ///
    /// # Errors
    /// If it fails or prints something else.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let text = self.run(args)?;
        serde_json::from_str(&text).with_context(|| format!("thirdsite {}: {text}", args.join(" ")))
    }

    /// Runs the CLI, which has to fail with this exit code; answers its standard error.
    ///
    /// # Errors
    /// If it ends otherwise.
    pub fn fails(&self, code: i32, args: &[&str]) -> anyhow::Result<String> {
        let output = self.output(args)?;
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(code),
            "thirdsite {} ended with {} instead of {code}:\n{printed}",
            args.join(" "),
            output.status
        );
        Ok(printed)
    }

    /// Cuts a group and waits for the receipt; answers the cut as JSON.
    ///
    /// # Errors
    /// If the cut fails.
    pub fn cut(&self, group: &str, further: &[&str]) -> anyhow::Result<Value> {
        self.cut_by("source.sock", group, further)
    }

    /// The same by the agent behind another control socket.
    ///
    /// # Errors
    /// If the cut fails.
    pub fn cut_by(&self, control: &str, group: &str, further: &[&str]) -> anyhow::Result<Value> {
        let control = self.path(control).display().to_string();
        let mut args = vec!["cut", group, "--wait", "--json", "--control", &control];
        args.extend(further);
        self.json(&args)
    }

    /// Waits until a target, by its number in the settings, has confirmed a cut of a group.
    ///
    /// # Errors
    /// If that does not happen, with what the agent says of the target then.
    pub fn wait_until_confirmed(&self, group: &str, number: usize, cut: &Value) -> anyhow::Result<()> {
        let epoch = |point: &Value| point.as_str()?.split_once('-')?.1.parse::<u64>().ok();
        let wanted = epoch(&cut["point"]).context("the cut has no point")?;
        let mut target = Value::Null;
        let waited = self.eventually("the confirmation by the target", |lab| {
            target = lab.source_status(group)?["targets"][number].clone();
            Ok(epoch(&target["confirmed_point"]["id"]) >= Some(wanted))
        });
        waited.with_context(|| format!("point {}: {target}", cut["point"]))
    }

    /// The points of a group, oldest first.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn points(&self, group: &str) -> anyhow::Result<Vec<Value>> {
        let store = self.store().display().to_string();
        let listed = self.json(&["point", "list", group, "--store", &store, "--json"])?;
        Ok(listed["points"].as_array().context("no points in the answer")?.clone())
    }

    /// Ids of the points that a test looks into: all in the full run, otherwise some from the oldest to the newest, because a busy machine
    /// takes longer and lists more of them.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn points_to_check(&self, group: &str) -> anyhow::Result<Vec<String>> {
        let points = self.points(group)?;
        let step = points.len().div_ceil(scaled(40, u64::MAX) as usize).max(1);
        let chosen = points.iter().rev().step_by(step).rev();
        chosen.map(|point| Ok(point["id"].as_str().context("a point without an id")?.to_owned())).collect()
    }

    /// Restores a volume of a point and reads it.
    ///
    /// # Errors
    /// If it cannot be restored.
    pub fn restored(&self, group: &str, volume: &str, point: &str) -> anyhow::Result<Vec<u8>> {
        self.restored_from("store", group, volume, point)
    }

    /// The same from another store in the laboratory's folder.
    ///
    /// # Errors
    /// If it cannot be restored.
    pub fn restored_from(
        &self,
        store: &str,
        group: &str,
        volume: &str,
        point: &str,
    ) -> anyhow::Result<Vec<u8>> {
        let (store, output) = (self.path(store).display().to_string(), self.path("restored.raw"));
        let target = output.display().to_string();
        self.run(&[
            "restore", group, "--volume", volume, "--point", point, "--store", &store, "--output", &target,
        ])?;
        let bytes = fs::read(&output)?;
        fs::remove_file(&output)?;
        Ok(bytes)
    }

    /// Writes so many mebibytes, which neither compress nor repeat, to the first volume of the first group, from a place that the seed
    /// decides on.
    ///
    /// # Errors
    /// If the tap does not take them.
    pub fn write_noise(&self, seed: u64, mib: u64) -> anyhow::Result<()> {
        let (volume, size) = &self.groups[0].volumes[0];
        let export = format!("{}/{volume}", self.groups[0].name);
        let mut client = Client::connect_unix(&self.tap(), &export, Protocol::Structured)?;
        let mut noise = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
        let mut bytes = vec![0; MIB as usize];
        for number in 0..mib {
            noise.fill(&mut bytes);
            client.write((seed * 7 + number) % (size / MIB) * MIB, &bytes, WriteFlags::default())?;
        }
        Ok(client.disconnect()?)
    }

    /// Waits until a check answers true.
    ///
    /// # Errors
    /// If it fails, or stays false for too long.
    pub fn eventually(
        &self,
        what: &str,
        mut check: impl FnMut(&Lab) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if check(self)? {
                return Ok(());
            }
        }
        bail!("{what} did not happen in {} s", PATIENCE.as_secs())
    }

    /// Groups of the laboratory.
    pub fn groups(&self) -> &[GroupSpec] {
        &self.groups
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Kills a process with SIGKILL.
///
/// # Errors
/// If there is no such process.
pub fn kill(id: u32) -> anyhow::Result<()> {
    signal(id, Signal::KILL)
}

/// Tells a daemon to take in its settings (SIGHUP).
///
/// # Errors
/// If there is no such process.
pub fn hang_up(id: u32) -> anyhow::Result<()> {
    signal(id, Signal::HUP)
}

fn signal(id: u32, signal: Signal) -> anyhow::Result<()> {
    let process = Pid::from_raw(id.cast_signed()).context("no process has the id 0")?;
    kill_process(process, signal).with_context(|| format!("signal to process {id}"))
}

/// A small file system in memory, to be filled; unmounted when dropped.
pub struct SmallDisk {
    place: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many bytes. Needs root.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn mount(place: &Path, size_bytes: u64) -> anyhow::Result<SmallDisk> {
        fs::create_dir_all(place)?;
        let disk = SmallDisk { place: place.to_owned() };
        disk.mount_with(&format!("size={size_bytes}"))?;
        Ok(disk)
    }

    /// Makes it larger.
    ///
    /// # Errors
    /// If it cannot be remounted.
    pub fn grow(&self, size_bytes: u64) -> anyhow::Result<()> {
        self.mount_with(&format!("remount,size={size_bytes}"))
    }

    fn mount_with(&self, options: &str) -> anyhow::Result<()> {
        let mut mount = Command::new("mount");
        let status =
            mount.args(["-t", "tmpfs", "-o", options, "thirdsite-test"]).arg(&self.place).status()?;
        ensure!(
            status.success(),
            "a small tmpfs cannot be mounted (options {options}): run the tests as root"
        );
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a daemon may still have its folder open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.place).status();
    }
}

/// Waits until somebody listens on a unix socket.
///
/// # Errors
/// If nobody does for too long.
pub fn wait_for_socket(socket: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    while UnixStream::connect(socket).is_err() {
        ensure!(begun.elapsed() < PATIENCE, "nobody listens on {}", socket.display());
        thread::yield_now();
    }
    Ok(())
}

/// An address that no other laboratory uses, whatever runs beside this process: the host part is the process's own, and the ports are below those that
/// the system gives out.
fn own_address() -> SocketAddr {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(7000);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 64 | (high & 63), middle, low);
    SocketAddr::from((host, NEXT_PORT.fetch_add(1, Ordering::Relaxed)))
}

fn site_settings(address: SocketAddr) -> String {
    format!(
        "version = 1\nidentity = \"site-id\"\nstore = \"store\"\ncontrol = \"site.sock\"\n\
         listen = \"{address}\"\nenrolled = \"enrolled.toml\"\n"
    )
}

fn source_settings(address: SocketAddr, fingerprint: &str, groups: &[GroupSpec]) -> String {
    let mut text = format!(
        "version = 1\nidentity = \"source-id\"\njournal = \"journal\"\ncontrol = \"source.sock\"\n\
         [[target]]\nname = \"far\"\n[target.site]\naddress = \"{address}\"\nfingerprint = \"{fingerprint}\"\n\
         [tap]\nlisten = [\"unix:tap.sock\"]\n"
    );
    for group in groups {
        let name = &group.name;
        text += &format!("[[group]]\nname = \"{name}\"\n{}\n", group.extra);
        for (volume, _) in &group.volumes {
            text += &format!("[[group.volume]]\nname = \"{volume}\"\nleg = \"{name}-{volume}.raw\"\n");
        }
    }
    text
}
