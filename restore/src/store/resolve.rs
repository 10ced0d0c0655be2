//! What an arriving segment refers to: checked against the block lists of its sources before the segment is taken.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use journal_format::segment::{
    BlockPlace, DIFFERENCE_STEPS_MAX, ExtentContent, FrameEntry, FrameKind, SegmentIndex, SegmentSource,
    block_hashes, combined_hash,
};
use journal_format::{BLOCK_BYTES, ErrorKind, Hash, with_causes};

use super::writer::{Group, Shared};
use crate::blocks::{self, BlockList, FrameBlocks};
use crate::error::StoreError;
use crate::frames::{FrameTable, Frames, run_of_places};
use crate::parallel::in_parallel;
use crate::segment_file;

/// Why a segment's references do not hold.
#[derive(Debug)]
pub(super) enum Unresolved {
    /// The store lacks what is referred to, in this source.
    Lacks(SegmentSource, String),
    /// The store cannot be read.
    Store(StoreError),
}

impl From<StoreError> for Unresolved {
    fn from(error: StoreError) -> Self {
        Unresolved::Store(error)
    }
}

/// A source with what is needed to check references to it.
struct Source<'a> {
    shared: &'a Shared,
    table: Arc<FrameTable>,
    list: Arc<BlockList>,
}

impl Source<'_> {
    /// So many blocks at a place, as they were when they arrived.
    fn blocks(&self, place: BlockPlace, count: usize) -> Result<FrameBlocks, Unresolved> {
        let found = self.list.read(place.frame, place.offset.into(), count);
        match found {
            Ok(Some(blocks)) => Ok(blocks),
            Ok(None) => Err(self.lacks("it has no such blocks")),
            Err(error) => Err(self.lacks(&format!("its block list cannot be read: {error}"))),
        }
    }

    /// Reads a frame when it is first referred to: nothing new shall rest on what a disk has lost since.
    fn check_bytes(&self, frame: u32) -> Result<(), Unresolved> {
        let key = (self.table.segment.hash, frame);
        if self.shared.sound_frames.get(&key).is_some() {
            return Ok(());
        }
        let entry =
            self.table.frames.get(frame as usize).ok_or_else(|| self.lacks("it has no such frame"))?;
        let path = self.shared.segment_path(&self.table.segment);
        segment_file::check_frame(&path, entry).map_err(|error| self.lacks(&with_causes(&error)))?;
        self.shared.sound_frames.put(key, &Arc::new(()), 1);
        Ok(())
    }

    fn lacks(&self, why: &str) -> Unresolved {
        Unresolved::Lacks(self.table.segment.clone(), why.to_owned())
    }
}

/// Checks everything that the segment at `path` refers to, of which all bytes are verified already; `hashes` are those of its frames' blocks.
/// Answers its own blocks.
pub(super) fn resolve(
    shared: &Shared,
    group: &Group,
    path: &Path,
    index: &SegmentIndex,
    hashes: Vec<Vec<Hash>>,
) -> Result<Vec<FrameBlocks>, Unresolved> {
    let sources = index.sources.iter().map(|source| open_source(shared, group, source));
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    check_frames(&sources, index)?;
    for extent in &index.extents {
        let ExtentContent::Reference(number) = extent.content else { continue };
        let reference = index.references[number as usize];
        let source = &sources[reference.place.source as usize];
        let blocks = source.blocks(reference.place, (extent.length / BLOCK_BYTES) as usize)?;
        if combined_hash(&blocks.hashes) != reference.hash {
            return Err(source.lacks("its blocks have other hashes"));
        }
    }
    let table = table_of(index);
    let own = own_blocks(&shared.frames, &table, path, hashes, |first_base, count, bases_hash| {
        let bases = &index.bases[first_base as usize..][..count];
        let mut found = FrameBlocks::default();
        let mut left = bases;
        while let Some(&base) = left.first() {
            let run = run_of_places(left);
            let blocks = sources[base.source as usize].blocks(base, run)?;
            found.hashes.extend(blocks.hashes);
            found.steps.extend(blocks.steps);
            left = &left[run..];
        }
        let first = bases.first().map_or(0, |base| base.source);
        if combined_hash(&found.hashes) != bases_hash {
            return Err(
                sources[first as usize].lacks("blocks that differences are taken from have other hashes")
            );
        }
        Ok(found.steps)
    });
    own.map_err(|unresolved| match (unresolved, index.sources.first()) {
        // The segment's own bytes are verified: what is damaged, or rests on too much, is what it refers to.
        (Unresolved::Store(error), Some(source)) if error.kind() == ErrorKind::Corrupt => {
            Unresolved::Lacks(source.clone(), with_causes(&error))
        }
        (unresolved, _) => unresolved,
    })
}

/// Checks, on all cores, the frames that are referred to. What differences are taken from is read and verified when they are applied.
fn check_frames(sources: &[Source<'_>], index: &SegmentIndex) -> Result<(), Unresolved> {
    let frames: BTreeSet<(u32, u32)> =
        index.references.iter().map(|reference| (reference.place.source, reference.place.frame)).collect();
    let frames: Vec<(u32, u32)> = frames.into_iter().collect();
    let checked = in_parallel(frames.len(), |number| {
        let (source, frame) = frames[number];
        sources[source as usize].check_bytes(frame)
    });
    checked.map(drop)
}

/// The blocks of a segment. `steps_of` answers, for the bases of a difference frame, how many differences are below each.
fn own_blocks<E: From<StoreError> + Send>(
    frames: &Frames,
    table: &FrameTable,
    path: &Path,
    hashes: Vec<Vec<Hash>>,
    steps_of: impl Fn(u32, usize, Hash) -> Result<Vec<u8>, E> + Sync,
) -> Result<Vec<FrameBlocks>, E> {
    in_parallel(table.frames.len(), |number| {
        let entry: &FrameEntry = &table.frames[number];
        let FrameKind::Difference { first_base, bases_hash } = entry.kind else {
            return Ok(FrameBlocks { steps: vec![0; hashes[number].len()], hashes: hashes[number].clone() });
        };
        let mut steps = steps_of(first_base, entry.blocks(), bases_hash)?;
        // Reading them is what finds out that there are too many; a list that says so wrongly only makes its source refer to others.
        steps.iter_mut().for_each(|steps| *steps = steps.saturating_add(1));
        let mut raw = segment_file::read_frame(path, entry)?;
        frames.apply(table, first_base, &mut raw)?;
        Ok(FrameBlocks { hashes: block_hashes(&raw), steps })
    })
}

fn source_of(index: &SegmentIndex) -> SegmentSource {
    SegmentSource {
        group: index.header.group.clone(),
        generation: index.header.generation,
        sequence: index.header.sequence,
        hash: index.trailer.hash,
    }
}

fn table_of(index: &SegmentIndex) -> FrameTable {
    FrameTable {
        segment: source_of(index),
        frames: index.frames.clone(),
        sources: index.sources.clone(),
        bases: index.bases.clone(),
    }
}

fn open_source<'a>(
    shared: &'a Shared,
    group: &Group,
    segment: &SegmentSource,
) -> Result<Source<'a>, Unresolved> {
    let lacks = |why: String| Unresolved::Lacks(segment.clone(), why);
    // Within the chain a source comes before what refers to it. Of another group it must be attached for good, and sent by the same peer.
    if segment.group != group.name && !shared.may_refer(group, segment)? {
        return Err(lacks("no such segment of this source is stored".to_owned()));
    }
    let table = shared.frames.table(segment).map_err(|error| lacks(with_causes(&error)))?;
    let list = block_list(shared, &table).map_err(|error| lacks(with_causes(&error)))?;
    Ok(Source { shared, table, list })
}

/// The block list of a stored segment, made if it is not there.
pub(super) fn block_list(shared: &Shared, table: &FrameTable) -> Result<Arc<BlockList>, StoreError> {
    let segment = &table.segment;
    if let Some(list) = shared.block_lists.get(&segment.hash) {
        return Ok(list);
    }
    let path = shared.disk.block_list_path(&segment.group, segment.generation, segment.sequence);
    let list = match BlockList::open(&path, table)? {
        Some(list) => list,
        None => {
            make_block_list(shared, table, &path)?;
            let missing = || StoreError::Io {
                action: "read",
                path: path.clone(),
                source: std::io::ErrorKind::NotFound.into(),
            };
            BlockList::open(&path, table)?.ok_or_else(missing)?
        }
    };
    let list = Arc::new(list);
    shared.block_lists.put(segment.hash, &list, 1);
    Ok(list)
}

fn make_block_list(shared: &Shared, table: &FrameTable, to: &Path) -> Result<(), StoreError> {
    let segment = &table.segment;
    let path = shared.segment_path(segment);
    let (_, hashes) = segment_file::verify(&path)?;
    let blocks = own_blocks(&shared.frames, table, &path, hashes, |first_base, count, _| {
        let steps = |block: usize| {
            let place = table.bases[first_base as usize + block];
            let source = shared.frames.table(&table.sources[place.source as usize])?;
            let list = block_list(shared, &source)?;
            let found = list.read(place.frame, place.offset.into(), 1).ok().flatten();
            // The bytes were checked when the segment was taken; only the number of steps is asked for.
            Ok::<_, StoreError>(found.map_or(DIFFERENCE_STEPS_MAX, |blocks| blocks.steps[0]))
        };
        (0..count).map(steps).collect()
    })?;
    blocks::write(to, &segment.hash, &blocks)
}
