//! The table and the JSON of the cells.

use std::time::Duration;

use serde_json::{Value, json};
use wan_lab::Rate;

use super::Options;
use super::cell::{Cell, Measured};
use super::rsync::Congestion;

/// A link and what each program made of it.
pub(super) struct Row {
    cell: Cell,
    length: Duration,
    capacity_mbit: f64,
    ours: Measured,
    pub(super) rsync: Vec<(Congestion, Measured)>,
}

pub(super) fn head(options: &Options) {
    println!(
        "{}, queue of one bandwidth-delay product, loss in both directions; Mbit/s of payload, the second half in per cent of what the link can carry; CPU seconds per GB\n",
        options.rate
    );
    println!(
        "{:>6}{:>6}{:>5}  {:<12}{:>8}{:>8}{:>8}{:>10}{:>8}{:>8}{:>8}{:>8}{:>8}{:>9}",
        "RTT ms",
        "loss",
        "s",
        "program",
        "mean",
        "steady",
        "% cap.",
        "vs rsync",
        "queue-",
        "random",
        "sent/B",
        "source",
        "site",
        "late p99"
    );
    println!(
        "{:>6}{:>6}{:>5}  {:<12}{:>8}{:>8}{:>8}{:>10}{:>8}{:>8}{:>8}{:>8}{:>8}{:>9}",
        "", "%", "", "", "", "", "", "", "lost", "lost", "", "CPU", "CPU", "ms"
    );
}

impl Row {
    pub(super) fn new(cell: Cell, length: Duration, rate: Rate, ours: Measured) -> Row {
        Row { cell, length, capacity_mbit: cell.capacity_mbit(rate), ours, rsync: Vec::new() }
    }

    /// Ours to the faster of both, in the second half.
    fn ratio(&self) -> Option<f64> {
        let best = self.rsync.iter().map(|(_, measured)| measured.steady_mbit).fold(0.0, f64::max);
        (best > 0.0).then(|| self.ours.steady_mbit / best)
    }

    pub(super) fn print(&self) {
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        self.print_one("thirdsite", &self.ours, &ratio);
        for (congestion, measured) in &self.rsync {
            self.print_one(&format!("rsync {}", congestion.name()), measured, "");
        }
    }

    fn print_one(&self, program: &str, measured: &Measured, ratio: &str) {
        println!(
            "{:>6}{:>6}{:>5}  {program:<12}{:>8.1}{:>8.1}{:>8.1}{ratio:>10}{:>8}{:>8}{:>8.3}{:>8.1}{:>8.1}{:>9.2}{}",
            self.cell.rtt_ms,
            self.cell.loss_percent,
            self.length.as_secs(),
            measured.mean_mbit,
            measured.steady_mbit,
            100.0 * measured.steady_mbit / self.capacity_mbit,
            measured.lost_in_queue,
            measured.lost_at_random,
            measured.sent_per_byte,
            measured.source_cpu_seconds_per_gb,
            measured.site_cpu_seconds_per_gb,
            measured.late_p99_ms,
            measured.void.as_ref().map_or_else(String::new, |reason| format!("  VOID: {reason}")),
        );
    }

    pub(super) fn json(&self) -> Value {
        let mut programs = vec![self.json_of("thirdsite", &self.ours)];
        for (congestion, measured) in &self.rsync {
            programs.push(self.json_of(&format!("rsync {}", congestion.name()), measured));
        }
        json!({
            "rtt_ms": self.cell.rtt_ms, "loss_percent": self.cell.loss_percent, "seconds": self.length.as_secs(),
            "capacity_mbit": self.capacity_mbit, "thirdsite_to_best_rsync": self.ratio(), "programs": programs,
        })
    }

    fn json_of(&self, program: &str, measured: &Measured) -> Value {
        json!({
            "program": program, "mean_mbit": measured.mean_mbit, "steady_mbit": measured.steady_mbit,
            "mean_to_capacity": measured.mean_mbit / self.capacity_mbit,
            "steady_to_capacity": measured.steady_mbit / self.capacity_mbit,
            "sent_per_byte": measured.sent_per_byte, "lost_in_queue": measured.lost_in_queue,
            "lost_at_random": measured.lost_at_random,
            "source_cpu_seconds_per_gb": measured.source_cpu_seconds_per_gb,
            "site_cpu_seconds_per_gb": measured.site_cpu_seconds_per_gb,
            "late_p99_ms": measured.late_p99_ms, "void": measured.void,
        })
    }
}
