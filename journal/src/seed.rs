//! Seeding: a group's first copy as segments in a folder, which are carried to the recovery site on a disk. `FORMAT.md` defines the folder.
//!
//! A seed is no point and need not be the state of any instant: it is only known blocks. The first sync finds by their hashes what the site has
//! of it and sends the rest, so that VMs may write while it is read and travels. One thread reads the legs and leaves out what the folder holds
//! already; the calling one seals. In memory are two segments' payloads.

mod error;
mod folder;
mod reader;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use journal_format::GroupName;
use journal_format::segment::{BuildOptions, VolumeKind, VolumeRecord};
use journal_format::{Sequence, VolumeName};

pub use self::error::SeedError;
use self::folder::SeedFolder;
use self::reader::Reader;
use crate::clock::Clock;
use crate::leg::Leg;

/// A volume that is read.
pub struct SeedLeg {
    /// The volume's name.
    pub name: VolumeName,
    /// What it holds.
    pub kind: VolumeKind,
    /// Its leg on this host; VMs may write to it.
    pub leg: Arc<dyn Leg>,
}

/// What a seed is made of.
pub struct SeedSettings {
    /// The group.
    pub group: GroupName,
    /// Its volumes.
    pub volumes: Vec<SeedLeg>,
    /// How segments are made.
    pub build: BuildOptions,
}

/// What an export did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportedSeed {
    /// Bytes of all volumes.
    pub size_bytes: u64,
    /// Bytes that were read; holes are not.
    pub read_bytes: u64,
    /// Segments that were written.
    pub segments: u64,
    /// Their size in bytes.
    pub written_bytes: u64,
    /// Sequence of the folder's newest segment; `None` if it has none.
    pub last: Option<Sequence>,
}

/// Reads a group's legs and adds to the seed in `folder` every block that it does not hold, or begins one there. What an earlier export that was
/// interrupted wrote is kept. `progress` hears bytes done and bytes in all.
///
/// # Errors
/// [`SeedError`]; the segments written until then stay and are whole.
pub fn export_seed(
    settings: &SeedSettings,
    folder: &Path,
    clock: &dyn Clock,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<ExportedSeed, SeedError> {
    let volumes: Vec<VolumeRecord> = settings.volumes.iter().map(SeedLeg::record).collect();
    let mut folder = SeedFolder::open(folder, &settings.group, &volumes, clock.now())?;
    let known = folder.known();
    let mut exported = ExportedSeed {
        size_bytes: volumes.iter().map(|volume| volume.size_bytes).sum(),
        ..ExportedSeed::default()
    };
    exported.read_bytes = thread::scope(|scope| {
        // No batch waits between the threads: each has one.
        let (batches, received) = sync_channel(0);
        let reader = scope.spawn(|| Reader::new(&settings.volumes, &known, batches, progress).run());
        for batch in received {
            let stored = folder.append(batch, &volumes, settings.build, clock.now())?;
            exported.segments += stored.segments;
            exported.written_bytes += stored.bytes;
        }
        reader.join().expect("a panic of the reader has been reported by its hook")
    })?;
    exported.last = folder.finish();
    Ok(exported)
}

impl SeedLeg {
    fn record(&self) -> VolumeRecord {
        let (name, size_bytes) = (self.name.clone(), self.leg.size_bytes());
        VolumeRecord { name, kind: self.kind, size_bytes, joining: false }
    }
}

#[cfg(test)]
mod tests;
