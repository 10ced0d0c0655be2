//! Other programs: found, run, and measured.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};

/// What something cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Added to a repository, or sent and received.
    pub(super) bytes: u64,
    pub(super) cpu_seconds: f64,
    pub(super) seconds: f64,
    /// Of the largest process, or of several that run for long together.
    pub(super) peak_memory_bytes: u64,
}

impl Cost {
    /// Another cost behind this one.
    pub(super) fn and(self, other: Cost) -> Cost {
        Cost {
            bytes: self.bytes + other.bytes,
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            seconds: self.seconds + other.seconds,
            peak_memory_bytes: self.peak_memory_bytes.max(other.peak_memory_bytes),
        }
    }
}

/// Whether a program is on the search path.
pub(super) fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Runs a program, which has to succeed.
pub(super) fn run(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}

/// Runs a program, which has to succeed; answers its standard output.
pub(super) fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed with {}:\n{printed}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program under time(1); answers what it and all its children cost, without bytes, and its standard output.
pub(super) fn measured(program: &str, prepare: impl FnOnce(&mut Command)) -> anyhow::Result<(Cost, String)> {
    let report = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("time");
    command.args(["--quiet", "--format=%U %S %M", "--output"]).arg(report.path()).arg(program);
    prepare(&mut command);
    let begun = Instant::now();
    let printed = output(&mut command).with_context(|| program.to_owned())?;
    let seconds = begun.elapsed().as_secs_f64();
    let figures = fs::read_to_string(report.path())?;
    let figures: Vec<f64> = figures.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(figures.len() == 3, "time(1) reported {figures:?}");
    let cost = Cost {
        bytes: 0,
        cpu_seconds: figures[0] + figures[1],
        seconds,
        peak_memory_bytes: (figures[2] * 1024.0) as u64,
    };
    Ok((cost, printed))
}

/// Length of all files below a folder, or of a file.
pub(super) fn length_of_all(place: &Path) -> anyhow::Result<u64> {
    let about = fs::symlink_metadata(place)?;
    if !about.is_dir() {
        return Ok(about.len());
    }
    let mut sum = 0;
    for entry in fs::read_dir(place)? {
        sum += length_of_all(&entry?.path())?;
    }
    Ok(sum)
}
