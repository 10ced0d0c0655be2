//! Reading a whole store again: every byte of every segment, and the chain that they make.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use journal_format::segment::SegmentSource;
use journal_format::{GroupName, PointId, Sequence, with_causes};

use crate::catalog::SegmentRow;
use crate::error::StoreError;
use crate::frames::{Checks, Frames};
use crate::segments::ListedSegment;
use crate::store::Store;

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
        .segments()
        .groups()?
        .into_iter()
        .map(|group| Plan::of(store, &group).map(|plan| (group, plan)))
        .collect::<Result<_, _>>()?;
    let total = groups.iter().flat_map(|(_, plan)| &plan.files).map(|file| file.size_bytes).sum();
    let done = AtomicU64::new(0);
    let read = |bytes| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    let checked = groups.into_iter().map(|(group, plan)| {
        let checked = plan.check(store, &group, &read);
        (group, checked)
    });
    let checked: BTreeMap<GroupName, Checked> = checked.collect();
    let touched_from = touched_from(&checked);
    checked.into_iter().map(|(group, checked)| checked.report(store, group, &touched_from)).collect()
}

/// A segment of a group.
type Place = (GroupName, Sequence);

/// The first segment of each group that is damaged, or refers to one that is: of its own group or another, a seed for example. Without an entry
/// there is none.
fn touched_from(checked: &BTreeMap<GroupName, Checked>) -> BTreeMap<GroupName, Sequence> {
    let broken = |(group, checked): (&GroupName, &Checked)| {
        checked.broken.iter().map(|&sequence| (group.clone(), sequence)).collect::<Vec<Place>>()
    };
    let mut touched: BTreeSet<Place> = checked.iter().flat_map(broken).collect();
    let mut known = 0;
    // What refers to what was just found may be referred to as well.
    while !touched.is_empty() && touched.len() > known {
        known = touched.len();
        for (group, checked) in checked {
            let rests =
                checked.sources.iter().filter(|(_, sources)| sources.iter().any(|at| touched.contains(at)));
            let rests: Vec<Place> = rests.map(|(sequence, _)| (group.clone(), *sequence)).collect();
            touched.extend(rests);
        }
    }
    // In the order of groups and sequences, so that the first of each group is met first.
    let mut first = BTreeMap::new();
    touched.into_iter().for_each(|(group, sequence)| {
        first.entry(group).or_insert(sequence);
    });
    first
}

/// What was found in a group, before it is known what else rests on it.
struct Checked {
    segments: u64,
    bytes: u64,
    /// All that is wrong.
    damaged: Vec<DamagedSegment>,
    /// Segments of the chain that are damaged.
    broken: Vec<Sequence>,
    /// What each segment of the chain refers to.
    sources: Vec<(Sequence, Vec<Place>)>,
}

impl Checked {
    fn report(
        self,
        store: &Store,
        group: GroupName,
        touched_from: &BTreeMap<GroupName, Sequence>,
    ) -> Result<GroupReport, StoreError> {
        let points = if self.segments == 0 { Vec::new() } else { store.points(&group)? };
        let from = touched_from.get(&group);
        let touched = points.iter().filter(|point| from.is_some_and(|from| point.sequence >= *from));
        let touched: Vec<PointId> = touched.map(|point| point.id).collect();
        Ok(GroupReport {
            seed_of: store.seed_of(&group)?,
            group,
            segments: self.segments,
            bytes: self.bytes,
            points: (points.len() - touched.len()) as u64,
            damaged: self.damaged,
            touched,
        })
    }
}

/// What a group should consist of, and what its folder holds.
struct Plan {
    chain: Vec<SegmentRow>,
    files: Vec<ListedSegment>,
}

impl Plan {
    fn of(store: &Store, group: &GroupName) -> Result<Plan, StoreError> {
        // The files first: what a daemon adds meanwhile is in the chain then, and its file is looked for by name.
        let files = store.segments().list(group, None)?.segments;
        let chain = store.catalog().chain(group, Sequence(i64::MAX as u64))?;
        Ok(Plan { chain, files })
    }

    fn check(self, store: &Store, group: &GroupName, read: &(dyn Fn(u64) + Sync)) -> Checked {
        let frames = Frames::new(Arc::clone(store.segments()), 0, Checks::All);
        let mut found = Checked {
            segments: self.chain.len() as u64,
            bytes: self.chain.iter().map(|row| row.size_bytes).sum(),
            damaged: Vec::new(),
            broken: Vec::new(),
            sources: Vec::new(),
        };
        // One after the other: the frames of each are read on all cores.
        for row in &self.chain {
            let sequence = row.position.sequence;
            match check(store, &frames, group, row) {
                Ok(sources) if sources.is_empty() => {}
                Ok(sources) => found.sources.push((sequence, sources)),
                Err(problem) => {
                    found.broken.push(sequence);
                    found.damaged.push(DamagedSegment { sequence, problem });
                }
            }
            read(row.size_bytes);
        }
        for file in &self.files {
            if let Some(problem) = self.stray(store, group, file) {
                found.damaged.push(DamagedSegment { sequence: file.sequence, problem });
                read(file.size_bytes);
            }
        }
        found.damaged.sort_by_key(|segment| segment.sequence);
        found
    }

    /// What is wrong with a file that is not one of the chain.
    fn stray(&self, store: &Store, group: &GroupName, file: &ListedSegment) -> Option<String> {
        // The first segment of a chain has sequence 1.
        let expected = file.sequence.0.checked_sub(1).and_then(|place| self.chain.get(place as usize));
        if expected.is_some_and(|row| row.is_listed_as(file)) {
            return None;
        }
        let path = store.segments().place_listed(group, file);
        Some(match store.segments().verify(group, file) {
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

/// Verifies one segment of the chain. Answers what it refers to, or what is wrong.
fn check(store: &Store, frames: &Frames, group: &GroupName, row: &SegmentRow) -> Result<Vec<Place>, String> {
    let named = row.source(group);
    let path = store.segments().place(&named);
    let index = store.segments().verify_named(&named).map_err(|error| with_causes(&error))?;
    let (expected, actual) = (row.parent, index.header.parent);
    if expected != actual {
        return Err(format!("{}: its parent is {actual}, the catalog says {expected}", path.display()));
    }
    let missing = index.sources.iter().find_map(|source| Some((source, frames.table(source).err()?)));
    if let Some((SegmentSource { group, sequence, .. }, error)) = missing {
        let error = with_causes(&error);
        return Err(format!(
            "{}: it refers to segment {sequence} of group '{group}': {error}",
            path.display()
        ));
    }
    Ok(index.sources.into_iter().map(|source| (source.group, source.sequence)).collect())
}
