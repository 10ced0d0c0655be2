//! What crosses the wire for a living file-system image, and what that costs, against programs that keep a far copy of an image up to date: the
//! generations are taken in by one after the other, in one run, on the same files.

#[path = "wire/content.rs"]
mod content;
#[path = "wire/delta.rs"]
mod delta;
#[path = "wire/disk.rs"]
mod disk;
#[path = "wire/image.rs"]
mod image;
#[path = "wire/ours.rs"]
mod ours;
#[path = "wire/packages.rs"]
mod packages;
#[path = "wire/peers.rs"]
mod peers;
#[path = "wire/report.rs"]
mod report;
#[path = "wire/tools.rs"]
mod tools;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use image::{FULL, GENERATIONS, Images, SMALL};
use ours::Ours;
use peers::{OURS, Peer};
use report::{Changed, Entry, Report};

/// Blocks of the file system, in which changes are counted.
const BLOCK_BYTES: u64 = 4096;

/// Build products of the workspace.
const TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target");

/// What is measured, and where.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) small: bool,
    pub(super) seed: u64,
    pub(super) work: PathBuf,
    /// Only these peers, if any are named.
    pub(super) peers: Vec<String>,
    pub(super) megabytes_per_second: u64,
}

impl Default for Options {
    fn default() -> Options {
        let work = Path::new(TARGET).join("bench-wire");
        Options { small: false, seed: 1, work, peers: Vec::new(), megabytes_per_second: 50 }
    }
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    for tool in ["mke2fs", "debugfs", "e2fsck", "apt-get", "dpkg-deb", "time"] {
        ensure!(tools::is_there(tool), "'{tool}' is missing; tests/bench-setup installs it");
    }
    ensure!(options.megabytes_per_second > 0, "the guest has to write something");
    std::fs::create_dir_all(&options.work)?;
    let work = options.work.canonicalize()?;
    let scratch = tempfile::Builder::new().prefix("run-").tempdir_in(&work)?;
    // First, so that what is missing is missed before the images are made.
    let peers = Peer::all(&options.peers, scratch.path())?;
    let plan = if options.small { &SMALL } else { &FULL };
    let images = Images::get(plan, options.seed, &work, &Path::new(TARGET).join("bench-cache"))?;
    let mut entries = vec![Entry::new(OURS, "thirdsite".to_owned())];
    entries.extend(peers.iter().map(|peer| Entry::new(peer.name, peer.version())));
    let mut report = Report { entries, changed: Vec::new() };
    let mut ours = Ours::new(scratch.path(), &images, options.megabytes_per_second * 1_000_000)?;
    for (generation, name) in GENERATIONS.iter().enumerate() {
        if generation > 0 {
            report.changed.push(Changed::by(&images.delta(generation)?));
        }
        for (place, peer) in peers.iter().enumerate() {
            eprintln!("g{generation} {name}: {}", peer.name);
            report.entries[place + 1].costs.push(peer.take_in(&images, generation)?);
        }
        eprintln!("g{generation} {name}: {OURS}");
        let costs =
            ours.take_in(&images, generation).with_context(|| format!("{OURS}: generation {generation}"))?;
        if costs.resynced {
            eprintln!("g{generation} {name}: not all was captured, the rest was compared");
        }
        report.entries[0].costs.push(Some(costs.both));
        report.entries[0].details.push(costs.details());
    }
    report.print();
    println!("{}", report.json(options, &images.about)?);
    Ok(())
}
