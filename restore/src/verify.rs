//! Reading a whole store again: every byte of every segment, and the chain that they make.

use std::sync::atomic::{AtomicU64, Ordering};

use journal_format::segment::SegmentSource;
use journal_format::{GroupName, Hash, PointId, Sequence, with_causes};

use crate::catalog::SegmentRow;
use crate::error::StoreError;
use crate::frames::Frames;
use crate::segment_file;
use crate::store::Store;
use crate::store::disk::ListedSegment;

/// What was found in a group.
#[derive(Clone, Debug)]
pub struct GroupReport {
    /// The group.
    pub group: GroupName,
    /// The group that it is the seed of, if it is one.
    pub seed_of: Option<GroupName>,
    /// Segments that were read.
    pub segments: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Points whose bytes are all whole.
    pub points: u64,
    /// Segments that are damaged, missing, or not reached by the chain, in the order of their sequences.
    pub damaged: Vec<DamagedSegment>,
    /// Points that rest on a damaged segment: their restore may fail, and never gives wrong bytes.
    pub touched: Vec<PointId>,
}

/// A segment that is not as it should be.
#[derive(Clone, Debug)]
pub struct DamagedSegment {
    /// Its place in the chain.
    pub sequence: Sequence,
    /// What is wrong, with the file.
    pub problem: String,
}

/// Re-hashes everything in a store, with all cores. `progress` hears bytes done and bytes in all.
///
/// # Errors
/// If the catalog or a folder cannot be read. Damage is not an error but a finding.
pub fn verify_store(
    store: &Store,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<GroupReport>, StoreError> {
    let groups: Vec<(GroupName, Plan)> = store
        .disk()
        .groups()?
        .into_iter()
        .map(|group| Plan::of(store, &group).map(|plan| (group, plan)))
        .collect::<Result<_, _>>()?;
    let total = groups.iter().flat_map(|(_, plan)| &plan.files).map(|file| file.size_bytes).sum();
    let done = AtomicU64::new(0);
    groups
        .into_iter()
        .map(|(group, plan)| {
            plan.verify(store, &group, &|bytes| {
                progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
            })
        })
        .collect()
}

/// What a group should consist of, and what its folder holds.
struct Plan {
    chain: Vec<SegmentRow>,
    files: Vec<ListedSegment>,
}

impl Plan {
    fn of(store: &Store, group: &GroupName) -> Result<Plan, StoreError> {
        // The files first: what a daemon adds meanwhile is in the chain then, and its file is looked for by name.
        let files = store.disk().list(group)?;
        let chain = store.catalog().chain(group, Sequence(i64::MAX as u64))?;
        Ok(Plan { chain, files })
    }

    fn verify(
        self,
        store: &Store,
        group: &GroupName,
        read: &(dyn Fn(u64) + Sync),
    ) -> Result<GroupReport, StoreError> {
        let points = if self.chain.is_empty() { Vec::new() } else { store.points(group)? };
        let frames = Frames::new(store.disk().clone(), 0);
        // One after the other: the frames of each are read on all cores.
        let found = self.chain.iter().map(|row| {
            let problem = check(store, &frames, group, row).err();
            read(row.size_bytes);
            problem.map(|problem| DamagedSegment { sequence: row.position.sequence, problem })
        });
        let mut damaged: Vec<DamagedSegment> = found.flatten().collect();
        let touched_from = damaged.iter().map(|segment| segment.sequence).min();
        for file in &self.files {
            if let Some(problem) = self.stray(store, group, file) {
                damaged.push(DamagedSegment { sequence: file.sequence, problem });
                read(file.size_bytes);
            }
        }
        damaged.sort_by_key(|segment| segment.sequence);
        let whole = |sequence: Sequence| touched_from.is_none_or(|from| sequence < from);
        let touched =
            points.iter().filter(|point| !whole(point.sequence)).map(|point| point.id).collect::<Vec<_>>();
        Ok(GroupReport {
            group: group.clone(),
            seed_of: store.seed_of(group)?,
            segments: self.chain.len() as u64,
            bytes: self.chain.iter().map(|row| row.size_bytes).sum(),
            points: (points.len() - touched.len()) as u64,
            damaged,
            touched,
        })
    }

    /// What is wrong with a file that is not one of the chain.
    fn stray(&self, store: &Store, group: &GroupName, file: &ListedSegment) -> Option<String> {
        // The first segment of a chain has sequence 1.
        let expected = file.sequence.0.checked_sub(1).and_then(|place| self.chain.get(place as usize));
        if expected.is_some_and(|row| row.position.generation == file.generation) {
            return None;
        }
        let path = store.disk().segment_path(group, file.generation, file.sequence);
        Some(match segment_file::verify(&path) {
            Err(error) => with_causes(&error),
            Ok(_) if expected.is_some() => {
                format!("{}: another segment has its place in the chain", path.display())
            }
            Ok(_) => {
                format!("{}: it is whole, but a segment before it is missing or damaged", path.display())
            }
        })
    }
}

/// Verifies one segment of the chain; the answer is what is wrong.
fn check(store: &Store, frames: &Frames, group: &GroupName, row: &SegmentRow) -> Result<(), String> {
    let position = row.position;
    let path = store.disk().segment_path(group, position.generation, position.sequence);
    let (index, _) = segment_file::verify(&path).map_err(|error| with_causes(&error))?;
    let same = |what: &str, expected: Hash, actual: Hash| {
        let text = || format!("{}: its {what} is {actual}, the catalog says {expected}", path.display());
        if expected == actual { Ok(()) } else { Err(text()) }
    };
    same("hash", position.hash, index.trailer.hash)?;
    same("parent", row.parent, index.header.parent)?;
    let missing = index.sources.iter().find_map(|source| Some((source, frames.table(source).err()?)));
    missing.map_or(Ok(()), |(source, error)| {
        let SegmentSource { group, sequence, .. } = source;
        let error = with_causes(&error);
        Err(format!("{}: it refers to segment {sequence} of group '{group}': {error}", path.display()))
    })
}
