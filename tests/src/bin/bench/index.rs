//! The block index at the sizes of 64 GiB, 256 GiB and 1 TiB of unique blocks.
//!
//! Hashes are synthetic and distinct. Look-ups are in random order over everything that was inserted, with the files in the page
//! cache: what they cost, not what a disk costs.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use journal_index::{Index, Location, Options, SegmentRecord};
use serde_json::{Value, json};

/// Blocks of 64 GiB, 256 GiB and 1 TiB.
const BLOCKS: [u64; 3] = [1 << 24, 1 << 26, 1 << 28];
const BLOCKS_PER_TIB: f64 = (1_u64 << 28) as f64;

/// Blocks that a full segment of 256 MiB holds.
const SEGMENT_BLOCKS: u64 = 1 << 16;

/// Blocks that are looked up at once.
const BATCH: usize = 1 << 14;

/// Look-ups of one measurement.
const LOOKUPS: u64 = 1 << 23;

pub(crate) fn run(arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut sizes = Vec::new();
    for argument in arguments {
        match argument.as_str() {
            "--json" => {}
            "--help" | "-h" => {
                println!("{}", super::USAGE);
                return Ok(());
            }
            "--blocks" => {}
            number => {
                sizes.push(number.parse().with_context(|| format!("'{number}' is no number of blocks"))?)
            }
        }
    }
    if sizes.is_empty() {
        sizes = BLOCKS.to_vec();
    }
    let folder = fs::create_dir_all("target").and_then(|()| tempfile::tempdir_in("target"))?;
    println!(
        "{:>12}{:>11}{:>11}{:>9}{:>10}{:>10}{:>9}{:>7}{:>7}{:>10}{:>10}{:>10}{:>10}{:>9}",
        "blocks",
        "inserts/s",
        "memory",
        "grown",
        "MiB/TiB",
        "GiB/TiB",
        "peak",
        "runs",
        "times",
        "hit/s",
        "miss/s",
        "hit/s",
        "miss/s",
        "false"
    );
    println!(
        "{:>12}{:>11}{:>11}{:>9}{:>10}{:>10}{:>9}{:>7}{:>7}{:>10}{:>10}{:>10}{:>10}{:>9}",
        "",
        "",
        "MiB",
        "MiB",
        "memory",
        "disk",
        "MiB",
        "",
        "merged",
        "one",
        "one",
        "batches",
        "batches",
        "positive"
    );
    let reports: Vec<Value> = sizes
        .iter()
        .map(|blocks| measure(&folder.path().join(blocks.to_string()), *blocks))
        .collect::<Result<_, _>>()?;
    println!("{}", json!({ "bench": "index", "sizes": reports, "machine": super::tap::machine()? }));
    Ok(())
}

fn measure(folder: &Path, blocks: u64) -> anyhow::Result<Value> {
    ensure!(blocks > 0, "there is nothing to measure with 0 blocks");
    let rss_before = rss_mib("VmRSS")?;
    reset_peak()?;
    let index = Index::open(folder, Options::default())?;
    let (cpu_before, _) = super::tap::cpu_seconds(std::process::id())?;
    let start = Instant::now();
    fill(&index, blocks)?;
    index.flush()?;
    let inserts = blocks as f64 / start.elapsed().as_secs_f64();
    // Merging that inserts did not wait for counts, too.
    index.wait_for_merges();
    let settled = blocks as f64 / start.elapsed().as_secs_f64();
    let (cpu, _) = super::tap::cpu_seconds(std::process::id())?;
    let insert_cpu_us = (cpu - cpu_before) * 1e6 / blocks as f64;
    let (peak, grown) = (rss_mib("VmHWM")? - rss_before, rss_mib("VmRSS")? - rss_before);
    let filled = index.statistics();
    // Pages that the system wrote back or never kept come into its cache.
    in_batches(&index, blocks, 0)?;
    let hits = [one_by_one(&index, blocks, 0)?, in_batches(&index, blocks, 0)?];
    let misses = [one_by_one(&index, blocks, blocks)?, in_batches(&index, blocks, blocks)?];
    let figures = index.statistics();
    let passed = (figures.filter_false_positives - filled.filter_false_positives) as f64;
    let rate = passed / (passed + (figures.filter_negatives - filled.filter_negatives) as f64);
    let memory = filled.memory_bytes as f64 / f64::from(1 << 20);
    let per_tib = memory / blocks as f64 * BLOCKS_PER_TIB;
    let disk = filled.disk_bytes as f64 / f64::from(1 << 30) / blocks as f64 * BLOCKS_PER_TIB;
    let (runs, merged) = (filled.runs as f64 / 16.0, filled.merged_entries as f64 / blocks as f64);
    drop(index);
    fs::remove_dir_all(folder)?;
    println!(
        "{blocks:>12}{inserts:>11.0}{memory:>11.1}{grown:>9.1}{per_tib:>10.1}{disk:>10.2}{peak:>9.1}{runs:>7.1}{merged:>7.1}\
         {:>10.0}{:>10.0}{:>10.0}{:>10.0}{:>8.2}%",
        hits[0].per_second,
        misses[0].per_second,
        hits[1].per_second,
        misses[1].per_second,
        rate * 100.0
    );
    Ok(json!({
        "blocks": blocks, "inserts_per_second": inserts, "inserts_per_second_merged": settled,
        "insert_cpu_us": insert_cpu_us,
        "memory_mib": memory, "rss_growth_mib": grown, "rss_peak_mib": peak, "memory_mib_per_tib": per_tib,
        "disk_gib_per_tib": disk, "runs_per_shard": runs, "merges_per_entry": merged,
        "hits": hits[0].json(), "misses": misses[0].json(),
        "batched_hits": hits[1].json(), "batched_misses": misses[1].json(),
        "filter_false_positive_rate": rate,
    }))
}

fn fill(index: &Index, blocks: u64) -> anyhow::Result<()> {
    for first in (0..blocks).step_by(SEGMENT_BLOCKS as usize) {
        let record = SegmentRecord {
            group: "demo".to_owned(),
            generation: 1,
            sequence: first,
            hash: hash(u64::MAX - first),
        };
        let segment = index.add_segment(&record)?;
        for number in first..blocks.min(first + SEGMENT_BLOCKS) {
            index.insert(&hash(number), location(segment, number)?);
        }
    }
    Ok(())
}

/// How fast look-ups were.
#[derive(Clone, Copy, Debug)]
struct Speed {
    per_second: f64,
    /// CPU time of one, in microseconds: it says more on a machine that is busy with other things.
    cpu_us: f64,
}

impl Speed {
    fn json(self) -> Value {
        json!({ "per_second": self.per_second, "cpu_us": self.cpu_us })
    }
}

/// Measures `work`, which does so many look-ups.
fn time<T>(count: u64, work: impl FnOnce() -> T) -> anyhow::Result<(T, Speed)> {
    let (cpu_before, _) = super::tap::cpu_seconds(std::process::id())?;
    let start = Instant::now();
    let done = work();
    let per_second = count as f64 / start.elapsed().as_secs_f64();
    let (cpu, _) = super::tap::cpu_seconds(std::process::id())?;
    Ok((done, Speed { per_second, cpu_us: (cpu - cpu_before) * 1e6 / count as f64 }))
}

/// Look-ups one after the other in one thread. Those of `offset` 0 are hits.
fn one_by_one(index: &Index, blocks: u64, offset: u64) -> anyhow::Result<Speed> {
    let count = LOOKUPS / 4;
    let is_found = |i: &u64| index.lookup(&hash(offset + random(*i, blocks))).is_some();
    let (found, speed) = time(count, || (0..count).filter(is_found).count() as u64)?;
    check(found, if offset == 0 { count } else { 0 })?;
    Ok(speed)
}

/// Look-ups in batches of all processors. Those of `offset` 0 are hits.
fn in_batches(index: &Index, blocks: u64, offset: u64) -> anyhow::Result<Speed> {
    let threads = std::thread::available_parallelism()?.get() as u64;
    let each = LOOKUPS / threads;
    let part = |thread: u64| {
        let (mut found, mut hashes, mut answers) = (0, Vec::with_capacity(BATCH), Vec::new());
        let numbers: Vec<u64> = (thread * each..(thread + 1) * each).collect();
        for numbers in numbers.chunks(BATCH) {
            hashes.clear();
            hashes.extend(numbers.iter().map(|&i| hash(offset + random(i, blocks))));
            index.lookup_batch(&hashes, &mut answers);
            found += answers.iter().flatten().count() as u64;
        }
        found
    };
    let (found, speed) = time(each * threads, || {
        std::thread::scope(|scope| {
            let part = &part;
            let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || part(thread))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
        })
    })?;
    check(found, if offset == 0 { each * threads } else { 0 })?;
    Ok(speed)
}

fn check(found: u64, expected: u64) -> anyhow::Result<()> {
    // Of 2^28 distinct numbers of 64 bits none is equal to another.
    if found != expected {
        bail!("{found} blocks were found, not {expected}");
    }
    Ok(())
}

fn location(segment: u32, number: u64) -> anyhow::Result<Location> {
    let (frame, sector) = ((number % SEGMENT_BLOCKS / 1024) as u16, (number % 1024 * 8) as u16);
    Location::new(segment, frame, sector, 0).context("a frame has 8192 sectors")
}

/// A number below `bound`, by an order of look-ups that has nothing to do with that of inserts.
fn random(seed: u64, bound: u64) -> u64 {
    ((u128::from(mix(seed ^ 0x5DEE_CE66)) * u128::from(bound)) >> 64) as u64
}

/// Distinct hashes for distinct numbers.
fn hash(number: u64) -> [u8; 32] {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&mix(number).to_be_bytes());
    hash
}

/// The finaliser of splitmix64, a permutation.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
}

pub(super) fn rss_mib(field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = value
        .and_then(|value| value.split_whitespace().next())
        .context("/proc/self/status has no such field")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

/// Lets `VmHWM` begin at what is resident now.
pub(super) fn reset_peak() -> anyhow::Result<()> {
    Ok(fs::write("/proc/self/clear_refs", "5")?)
}
