//! Tables and the JSON line.

use std::fs;

use serde_json::{Value, json};

use super::Options;
use super::delta::Delta;
use super::image::GENERATIONS;
use super::ours::Costs;
use super::peers::LIMIT;
use super::tools::Cost;

/// What a generation changed.
#[derive(Clone, Copy)]
pub(super) struct Changed {
    bytes: u64,
    zero_bytes: u64,
}

impl Changed {
    pub(super) fn by(delta: &Delta) -> Changed {
        Changed { bytes: delta.bytes(), zero_bytes: delta.zero_bytes() }
    }
}

/// One program's figures.
pub(super) struct Entry {
    name: &'static str,
    version: String,
    /// By generation; none where it has nothing to do.
    pub(super) costs: Vec<Option<Cost>>,
    /// More about each generation.
    pub(super) details: Vec<Value>,
}

impl Entry {
    pub(super) fn new(name: &'static str, version: String) -> Entry {
        Entry { name, version, costs: Vec::new(), details: Vec::new() }
    }

    fn first(&self) -> Option<Cost> {
        self.costs.first().copied().flatten()
    }

    /// All generations but the first.
    fn changes(&self) -> Cost {
        self.costs.iter().skip(1).flatten().copied().fold(Cost::default(), Cost::and)
    }
}

impl Costs {
    /// For the JSON line.
    pub(super) fn details(&self) -> Value {
        json!({
            "source_cpu_seconds": self.source.cpu_seconds, "site_cpu_seconds": self.site.cpu_seconds,
            "source_peak_memory_bytes": self.source.peak_memory_bytes,
            "site_peak_memory_bytes": self.site.peak_memory_bytes, "resynced": self.resynced,
        })
    }
}

/// Everything that was measured.
pub(super) struct Report {
    /// Ours first.
    pub(super) entries: Vec<Entry>,
    pub(super) changed: Vec<Changed>,
}

impl Report {
    /// Prints the tables.
    pub(super) fn print(&self) {
        print!("\n{:<22}", "changed MB");
        print!("{:>8}", "");
        self.changed.iter().for_each(|changed| print!("{:>8}", megabytes(changed.bytes as f64)));
        println!("{:>10}", megabytes(self.changed_bytes()));
        for (number, name) in GENERATIONS.iter().enumerate().skip(1) {
            let zero = megabytes(self.changed[number - 1].zero_bytes as f64);
            println!("  g{number} {name}, {zero} MB of it zero");
        }
        self.table("MB sent or stored", |cost| megabytes(cost.bytes as f64));
        self.table("CPU seconds", |cost| format!("{:.2}", cost.cpu_seconds));
        self.table("wall seconds", |cost| format!("{:.1}", cost.seconds));
        self.table("peak memory, MiB", |cost| (cost.peak_memory_bytes >> 20).to_string());
        println!("\n{:<14}{:>22}{:>26}", "", "CPU s per changed GB", "version");
        for entry in &self.entries {
            println!("{:<14}{:>22.2}   {}", entry.name, self.cpu_per_gigabyte(entry), entry.version);
        }
        for (name, best, ratio) in self.ratios() {
            println!("{name}: {ratio:.2} of the best peer, {best}");
        }
    }

    fn table(&self, title: &str, figure: impl Fn(&Cost) -> String) {
        print!("\n{title:<22}{:>8}", "first");
        (1..GENERATIONS.len()).for_each(|number| print!("{:>8}", format!("g{number}")));
        println!("{:>10}", "g1-g8");
        for entry in &self.entries {
            print!("{:<22}", entry.name);
            for cost in &entry.costs {
                print!("{:>8}", cost.as_ref().map_or("-".to_owned(), &figure));
            }
            println!("{:>10}", figure(&entry.changes()));
        }
    }

    fn changed_bytes(&self) -> f64 {
        self.changed.iter().map(|changed| changed.bytes as f64).sum()
    }

    fn cpu_per_gigabyte(&self, entry: &Entry) -> f64 {
        entry.changes().cpu_seconds / (self.changed_bytes() / 1e9)
    }

    /// Ours against the best peer: bytes of all changes, bytes of the first generation, CPU time of all changes.
    fn ratios(&self) -> Vec<(&'static str, &'static str, f64)> {
        let of = |name, figure: &dyn Fn(&Entry) -> f64| {
            let peers = self.entries[1..].iter().filter(|entry| entry.name != LIMIT);
            let best = peers.min_by(|a, b| figure(a).total_cmp(&figure(b)))?;
            Some((name, best.name, figure(&self.entries[0]) / figure(best)))
        };
        let first = |entry: &Entry| entry.first().map_or(f64::INFINITY, |cost| cost.bytes as f64);
        let ratios = [
            of("bytes_changes", &|entry| entry.changes().bytes as f64),
            of("bytes_first", &first),
            of("cpu_changes", &|entry| entry.changes().cpu_seconds),
        ];
        ratios.into_iter().flatten().collect()
    }

    /// Every figure.
    pub(super) fn json(&self, options: &Options, images: &Value) -> anyhow::Result<Value> {
        let changed = |changed: &Changed| json!({"bytes": changed.bytes, "zero_bytes": changed.zero_bytes});
        let entries = self.entries.iter().map(|entry| (entry.name.to_owned(), self.entry(entry)));
        let ratio =
            |(name, best, ratio): (&str, _, _)| (name.to_owned(), json!({"best_peer": best, "ratio": ratio}));
        Ok(json!({
            "bench": "wire", "images": images, "megabytes_per_second": options.megabytes_per_second,
            "generations": GENERATIONS, "changed": self.changed.iter().map(changed).collect::<Vec<_>>(),
            "programs": entries.collect::<serde_json::Map<_, _>>(),
            "against_best_peer": self.ratios().into_iter().map(ratio).collect::<serde_json::Map<_, _>>(),
            "load": fs::read_to_string("/proc/loadavg")?.trim(), "machine": super::super::tap::machine()?,
        }))
    }

    fn entry(&self, entry: &Entry) -> Value {
        let cost = |cost: &Option<Cost>| cost.as_ref().map_or(Value::Null, cost_json);
        json!({
            "version": entry.version, "generations": entry.costs.iter().map(cost).collect::<Vec<_>>(),
            "changes": cost_json(&entry.changes()), "cpu_seconds_per_changed_gb": self.cpu_per_gigabyte(entry),
            "details": entry.details,
        })
    }
}

fn cost_json(cost: &Cost) -> Value {
    json!({
        "bytes": cost.bytes, "cpu_seconds": cost.cpu_seconds, "seconds": cost.seconds,
        "peak_memory_bytes": cost.peak_memory_bytes,
    })
}

/// MB with as many digits as are of use.
fn megabytes(bytes: f64) -> String {
    let megabytes = bytes / 1e6;
    if megabytes < 100.0 { format!("{megabytes:.2}") } else { format!("{megabytes:.0}") }
}
