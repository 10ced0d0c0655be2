//! thirdsite's transport: `thirdsite wan-lab run` with a profile of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use wan_lab::LinkProfile;

use super::cell::Measured;

pub(super) struct Ours {
    program: PathBuf,
    folder: PathBuf,
}

impl Ours {
    /// The program of the same build as this one.
    pub(super) fn find(folder: &Path) -> anyhow::Result<Ours> {
        Ok(Ours { program: tests::lab::binary("thirdsite")?, folder: folder.to_owned() })
    }

    /// Keeps a link full.
    pub(super) fn measure(
        &self,
        profile: &LinkProfile,
        length: Duration,
        seed: u64,
    ) -> anyhow::Result<Measured> {
        let report = self.run(profile, length, seed, &[])?;
        let arrived = number(&report, "/arrived_bytes")?;
        let gigabytes = arrived / 1e9;
        let cpu = |part: &str| -> anyhow::Result<f64> {
            let times = report.pointer("/cpu_seconds").and_then(Value::as_array);
            let time = times.into_iter().flatten().find(|time| time["part"] == part);
            let seconds = time.and_then(|time| time["seconds"].as_f64());
            Ok(seconds.with_context(|| format!("the report has no CPU time of the {part}"))? / gigabytes)
        };
        Ok(Measured {
            mean_mbit: number(&report, "/goodput_mbit")?,
            steady_mbit: steady(&report)?,
            sent_per_byte: number(&report, "/up/offered_bytes")? / arrived,
            lost_in_queue: number(&report, "/up/dropped_queue")? as u64,
            lost_at_random: number(&report, "/up/dropped_loss")? as u64,
            source_cpu_seconds_per_gb: cpu("source")?,
            site_cpu_seconds_per_gb: cpu("site")?,
            late_p99_ms: number(&report, "/emulator/lateness_up_ms/1")?,
            void: void(&report),
        })
    }

    /// The report of a run. It comes also if the run is void.
    pub(super) fn run(
        &self,
        profile: &LinkProfile,
        length: Duration,
        seed: u64,
        more: &[String],
    ) -> anyhow::Result<Value> {
        let path = self.folder.join("link.toml");
        fs::write(&path, profile.to_toml())?;
        let mut command = Command::new(&self.program);
        command.args(["wan-lab", "run", "--json"]).arg(&path);
        command.args(["--duration", &format!("{}s", length.as_secs()), "--seed", &seed.to_string()]);
        let output = command.args(more).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("starting '{}'", self.program.display()))?;
        match serde_json::from_slice(&output.stdout) {
            Ok(report) => Ok(report),
            Err(_) => bail!(
                "thirdsite wan-lab run ended with {}:\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }
}

pub(super) fn number(report: &Value, at: &str) -> anyhow::Result<f64> {
    let value = report.pointer(at).and_then(Value::as_f64);
    value.with_context(|| format!("the report of wan-lab run has no number at {at}"))
}

/// Why a run says nothing.
pub(super) fn void(report: &Value) -> Option<String> {
    report["void"].as_str().map(str::to_owned)
}

/// The samples of a run.
pub(super) fn samples(report: &Value) -> anyhow::Result<&Vec<Value>> {
    report["samples"].as_array().context("the report of wan-lab run has no samples")
}

/// Goodput of the second half.
fn steady(report: &Value) -> anyhow::Result<f64> {
    let half = number(report, "/seconds")? / 2.0;
    let (mut last, mut megabits, mut seconds) = (0.0, 0.0, 0.0);
    for sample in samples(report)? {
        let until = number(sample, "/seconds")?;
        if last >= half {
            megabits += number(sample, "/goodput_mbit")? * (until - last);
            seconds += until - last;
        }
        last = until;
    }
    ensure!(seconds > 0.0, "the second half of the run has no samples");
    Ok(megabits / seconds)
}
