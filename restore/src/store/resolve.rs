//! What an arriving segment refers to: checked against the block lists of its sources before the segment is taken.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use journal_format::segment::{
    BlockPlace, DIFFERENCE_STEPS_MAX, Extent, ExtentContent, FrameEntry, FrameKind, SegmentIndex,
    SegmentSource, combined_hash,
};
use journal_format::{BLOCK_BYTES, ErrorKind, Hash, with_causes};

use super::writer::{Group, Shared};
use crate::blocks::{self, BlockList, FrameBlocks};
use crate::decoding::Decoding;
use crate::error::StoreError;
use crate::frames::{FrameTable, Frames, run_of_places};
use crate::parallel::{in_parallel, in_parallel_with};
use crate::segment_file::{self, FrameFile};

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

    /// Reads a frame that is not known to be sound: nothing new shall rest on what a disk has lost.
    fn check_bytes(&self, frame: u32) -> Result<(), Unresolved> {
        let (sound, segment) = (&self.shared.frames.sound, self.table.segment.hash);
        if sound.holds(segment, frame) {
            return Ok(());
        }
        let entry =
            self.table.frames.get(frame as usize).ok_or_else(|| self.lacks("it has no such frame"))?;
        let path = self.shared.segment_path(&self.table.segment);
        segment_file::check_frame(&path, entry).map_err(|error| self.lacks(&with_causes(&error)))?;
        sound.note(segment, frame);
        Ok(())
    }

    fn lacks(&self, why: &str) -> Unresolved {
        Unresolved::Lacks(self.table.segment.clone(), why.to_owned())
    }
}

/// Verifies the frames of the segment at `path`, of which the index is verified already, and checks everything that it refers to. `verified` are the
/// hashes of its frames' blocks if the bytes of the frames were verified before. Answers its own blocks.
pub(super) fn resolve(
    shared: &Shared,
    group: &Group,
    path: &Path,
    index: &SegmentIndex,
    verified: Option<Vec<Vec<Hash>>>,
) -> Result<Vec<FrameBlocks>, Unresolved> {
    let sources = index.sources.iter().map(|source| open_source(shared, group, source));
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    check_frames(&sources, index)?;
    check_references(&sources, index)?;
    let table = FrameTable::of(index);
    let source_of_base = |first_base: u32| &sources[index.bases[first_base as usize].source as usize];
    let own = Own { frames: &shared.frames, table: &table, path, verified };
    let blocks = own.blocks(
        |first_base, count, bases_hash| {
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
            if combined_hash(&found.hashes) != bases_hash {
                let why = "blocks that differences are taken from have other hashes";
                return Err(source_of_base(first_base).lacks(why));
            }
            Ok(found.steps)
        },
        // The segment's own bytes are verified: what is damaged, or rests on too much, is what it refers to.
        |first_base, error| match error.kind() {
            ErrorKind::Corrupt => source_of_base(first_base).lacks(&with_causes(&error)),
            _ => error.into(),
        },
    )?;
    (0..index.frames.len() as u32).for_each(|frame| shared.frames.sound.note(index.trailer.hash, frame));
    Ok(blocks)
}

/// References that are checked together.
const BATCH_REFERENCES: usize = 256;

/// Checks, on all cores, that the blocks that are referred to have the hashes that are named.
fn check_references(sources: &[Source<'_>], index: &SegmentIndex) -> Result<(), Unresolved> {
    let batches: Vec<&[Extent]> = index.extents.chunks(BATCH_REFERENCES).collect();
    let checked = in_parallel(batches.len(), |number| {
        for extent in batches[number] {
            let ExtentContent::Reference(number) = extent.content else { continue };
            let reference = index.references[number as usize];
            let source = &sources[reference.place.source as usize];
            let blocks = source.blocks(reference.place, (extent.length / BLOCK_BYTES) as usize)?;
            if combined_hash(&blocks.hashes) != reference.hash {
                return Err(source.lacks("its blocks have other hashes"));
            }
        }
        Ok(())
    });
    checked.map(drop)
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

/// A segment whose own blocks are looked at.
struct Own<'a> {
    frames: &'a Frames,
    table: &'a FrameTable,
    path: &'a Path,
    /// The hashes of the blocks of plain frames, if the bytes of all frames were verified before.
    verified: Option<Vec<Vec<Hash>>>,
}

impl Own<'_> {
    /// The segment's blocks, whose frames are verified on all cores: those of differences with the bases applied. `steps_of` answers, for the bases of
    /// a difference frame, how many differences are below each; `unapplied` takes in that bases could not be applied, or are not what they were.
    fn blocks<E: From<StoreError> + Send>(
        &self,
        steps_of: impl Fn(u32, usize, Hash) -> Result<Vec<u8>, E> + Sync,
        unapplied: impl Fn(u32, StoreError) -> E + Sync,
    ) -> Result<Vec<FrameBlocks>, E> {
        let file = FrameFile::open(self.path)?;
        in_parallel_with(self.table.frames.len(), Decoding::default, |decoding, number| {
            let entry: &FrameEntry = &self.table.frames[number];
            let FrameKind::Difference { first_base, bases_hash } = entry.kind else {
                let hashes = match &self.verified {
                    Some(verified) => verified[number].clone(),
                    None => file.hashes(entry, decoding)?,
                };
                return Ok(FrameBlocks { steps: vec![0; hashes.len()], hashes });
            };
            let raw = file.verified(entry, decoding)?;
            let mut steps = steps_of(first_base, entry.blocks(), bases_hash)?;
            // Reading them is what finds out that there are too many; a list that says so wrongly only makes its source refer to others.
            steps.iter_mut().for_each(|steps| *steps = steps.saturating_add(1));
            let applied = self.frames.apply(self.table, first_base, raw);
            let hashes =
                applied.and_then(|()| entry.check_content(raw).map_err(|source| file.damaged(source)));
            let hashes = hashes.map_err(|error| unapplied(first_base, error))?;
            Ok(FrameBlocks { hashes, steps })
        })
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
    let own = Own { frames: &shared.frames, table, path: &path, verified: None };
    let blocks = own.blocks(
        |first_base, count, _| {
            let steps = |block: usize| {
                let place = table.bases[first_base as usize + block];
                let source = shared.frames.table(&table.sources[place.source as usize])?;
                let list = block_list(shared, &source)?;
                let found = list.read(place.frame, place.offset.into(), 1).ok().flatten();
                // The bytes were checked when the segment was taken; only the number of steps is asked for.
                Ok::<_, StoreError>(found.map_or(DIFFERENCE_STEPS_MAX, |blocks| blocks.steps[0]))
            };
            (0..count).map(steps).collect()
        },
        |_, error| error,
    )?;
    blocks::write(to, &segment.hash, &blocks)
}
