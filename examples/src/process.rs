//! Processes of the demonstration: started with a log each, ended with it whatever happens.

mod list;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{io, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};

pub use self::list::{count_alive, find_child};

const POLL: Duration = Duration::from_millis(50);
const TAIL_LINES: usize = 20;
const GRACE: Duration = Duration::from_secs(15);

/// A signal that ends a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Asks it to end in its own way.
    Term,
    /// Ends it where it stands.
    Kill,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Signal::Term => "TERM",
            Signal::Kill => "KILL",
        }
    }
}

/// What to start.
pub struct Job<'a> {
    /// Name for messages.
    pub name: &'a str,
    /// Program, by path or by name.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// File for its standard error, and for its standard output if `output` is not set.
    pub log: PathBuf,
    /// File for its standard output.
    pub output: Option<PathBuf>,
    /// The process group to join; a new one otherwise. A site is a group, so that one signal hits all of it at once.
    pub group: Option<i32>,
    /// What it gets when this program dies, be it by Ctrl-C or by SIGKILL.
    pub at_our_death: Signal,
}

/// A running process. Ended when dropped: asked first, killed if it does not end in time.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    group: i32,
}

impl Process {
    /// Starts a job. `setpriv` (util-linux) ties its life to ours, then becomes the program itself.
    ///
    /// # Errors
    /// If the log cannot be made or `setpriv` cannot be started. A program that is missing shows as one that ends at once.
    pub fn start(job: Job<'_>) -> Result<Process> {
        let log = File::create(&job.log).with_context(|| format!("log '{}'", job.log.display()))?;
        let output = match &job.output {
            Some(path) => File::create(path).with_context(|| format!("output '{}'", path.display()))?,
            None => log.try_clone()?,
        };
        let child = Command::new("setpriv")
            .args(["--pdeathsig", job.at_our_death.name(), "--"])
            .arg(job.program)
            .args(&job.arguments)
            .process_group(job.group.unwrap_or(0))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log)
            .spawn()
            .context("setpriv (package util-linux) cannot be started")?;
        let group = job.group.unwrap_or(child.id().cast_signed());
        Ok(Process { name: job.name.to_owned(), child, log: job.log, group })
    }

    /// Returns the process group.
    pub fn group(&self) -> i32 {
        self.group
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Says so, with the end of its log, if the process has ended.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(self.with_log(anyhow!("{} ended unexpectedly: {status}", self.name))),
            None => Ok(()),
        }
    }

    /// Adds the end of the process's log to an error.
    pub fn with_log(&self, error: anyhow::Error) -> anyhow::Error {
        with_tail(error, &self.log)
    }

    /// Asks the process to end and waits for it; kills its whole group if it does not end in time.
    ///
    /// # Errors
    /// If it had to be killed, or ended with another code than 0.
    pub fn stop(mut self) -> Result<()> {
        let ended = self.end().and_then(|status| {
            ensure!(status.success(), "{} was asked to end and ended with {status}", self.name);
            Ok(())
        });
        ended.map_err(|error| self.with_log(error))
    }

    fn end(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        send(Signal::Term, self.child.id().cast_signed())?;
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
        send(Signal::Kill, -self.group)?;
        self.child.wait()?;
        bail!("{} did not end within {} s after SIGTERM and was killed", self.name, GRACE.as_secs())
    }

    /// Takes note of a death that was brought about on purpose.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn reap(&mut self) -> io::Result<()> {
        self.child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("main-job: {error:#}");
        }
    }
}

/// Sends a signal to a process, or to every process of a group if the number is negative.
///
/// # Errors
/// If there is no such process or group.
pub fn send(signal: Signal, target: i32) -> Result<()> {
    let script = format!("kill -s {} -- {target}", signal.name());
    let answer = Command::new("sh").args(["-c", &script]).output().context("sh cannot be started")?;
    ensure!(answer.status.success(), "`{script}`: {}", String::from_utf8_lossy(&answer.stderr).trim());
    Ok(())
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// If asking fails, or if the time is over.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {} s", limit.as_secs());
        thread::sleep(POLL);
    }
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// If it cannot be started or fails; with what it printed.
pub fn run(program: &Path, arguments: &[&OsStr]) -> Result<String> {
    let line = || {
        let words = arguments.iter().map(|word| word.to_string_lossy());
        format!("{} {}", program.display(), words.collect::<Vec<_>>().join(" "))
    };
    let answer = Command::new(program).args(arguments).stdin(Stdio::null()).output().with_context(line)?;
    let errors = String::from_utf8_lossy(&answer.stderr);
    ensure!(answer.status.success(), "`{}` failed ({}):\n{}", line(), answer.status, errors.trim());
    Ok(String::from_utf8(answer.stdout)?)
}

/// Adds the last lines of a file to an error, unless it has them already.
pub fn with_tail(error: anyhow::Error, file: &Path) -> anyhow::Error {
    let title = format!("--- end of {} ---", file.display());
    if error.to_string().contains(&title) {
        return error;
    }
    let bytes = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    anyhow!("{error:#}\n{title}\n{tail}\n---")
}

#[cfg(test)]
mod tests;
