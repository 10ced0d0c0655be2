//! Taking in a seed: a group's first copy that came on a disk. `journal/format/FORMAT.md` defines its folder.
//!
//! Its segments go the way of those that arrive over the link ([`Inbox`]), so that each is verified, durable and attached, or not there at all.

mod error;
mod folder;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use journal_format::{Generation, GroupName, Position};
use transport::{Begin, Inbox, PeerName, Refusal, RefusalKind, SegmentDescriptor};

pub use self::error::ImportError;
use self::folder::{Carried, carried};
use crate::error::io_error;
use crate::store::StoreWriter;

/// Who writes the groups of seeds. No source may have this name.
pub const SEED_PEER: &str = "seed";
/// All segments of a seed have this generation.
const GENERATION: Generation = Generation(1);
/// Read at once.
const READ_BYTES: usize = 1 << 20;

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedSeed {
    /// The group that the seed is of.
    pub group: GroupName,
    /// Segments in the folder.
    pub segments: u64,
    /// Those that were taken in.
    pub taken_segments: u64,
    /// Their size in bytes.
    pub taken_bytes: u64,
    /// Up to where the store has the seed; `None` if that is empty.
    pub head: Option<Position>,
}

/// Takes in what the store lacks of the seed in `folder`. `progress` hears bytes done and bytes in all.
///
/// # Errors
/// [`ImportError`]; the segments that were taken in until then stay, and the next import goes on behind them.
pub fn import_seed(
    writer: &StoreWriter,
    folder: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<ImportedSeed, ImportError> {
    let Carried { group, seed, segments } = carried(folder)?;
    let mut imported = ImportedSeed {
        group,
        segments: segments.len() as u64,
        taken_segments: 0,
        taken_bytes: 0,
        head: writer.head(&seed),
    };
    if segments.is_empty() {
        return Ok(imported);
    }
    let peer: PeerName = SEED_PEER.parse().expect("it obeys the rule of names");
    let refused = |refusal: Refusal| ImportError::Refused { path: folder.to_owned(), refusal };
    writer.claim(&peer, &seed, GENERATION).map_err(|refusal| match refusal.kind {
        RefusalKind::Fenced => ImportError::NotASeed { group: seed.clone() },
        _ => refused(refusal),
    })?;
    imported.head = writer.open_group(&peer, &seed).map_err(refused)?;
    let taken = take(writer, &seed, &segments, &mut imported, progress);
    writer.closed(&peer, &seed);
    taken.map(|()| imported)
}

fn take(
    writer: &StoreWriter,
    seed: &GroupName,
    segments: &[(PathBuf, SegmentDescriptor)],
    imported: &mut ImportedSeed,
    progress: &dyn Fn(u64, u64),
) -> Result<(), ImportError> {
    check_start(imported.head, segments)?;
    let total = segments.iter().map(|(_, segment)| segment.size_bytes).sum();
    let mut done = 0;
    for (path, segment) in segments {
        let before = imported.head;
        imported.head = take_one(writer, seed, path, segment)?;
        if imported.head != before {
            imported.taken_segments += 1;
            imported.taken_bytes += segment.size_bytes;
        }
        done += segment.size_bytes;
        progress(done, total);
    }
    Ok(())
}

/// Whether the folder's segments begin where the store's end, or before.
fn check_start(head: Option<Position>, segments: &[(PathBuf, SegmentDescriptor)]) -> Result<(), ImportError> {
    let Some((path, first)) = segments.first() else { return Ok(()) };
    let has = head.map_or(0, |head| head.sequence.0);
    if first.position.sequence.0 > has + 1 {
        let first = first.position.sequence;
        return Err(ImportError::TooEarly { path: path.clone(), has, first: first.0 });
    }
    Ok(())
}

/// Takes in one segment, if it is not there. Answers the head.
fn take_one(
    writer: &StoreWriter,
    seed: &GroupName,
    path: &Path,
    segment: &SegmentDescriptor,
) -> Result<Option<Position>, ImportError> {
    let refused = |refusal: Refusal| match refusal.kind {
        RefusalKind::Diverged => ImportError::OtherSeed { path: path.to_owned() },
        _ => ImportError::Refused { path: path.to_owned(), refusal },
    };
    let mut sink = match writer.begin(seed, segment).map_err(refused)? {
        Begin::Have(head) => return Ok(head),
        Begin::Receive(sink) => sink,
    };
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    loop {
        let count = file.read(&mut buffer).map_err(io_error("read", path))?;
        if count == 0 {
            return sink.commit().map_err(refused);
        }
        sink.write_at(offset, &buffer[..count]).map_err(refused)?;
        offset += count as u64;
    }
}
