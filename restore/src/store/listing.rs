//! What a source may refer to: the segments of its group, and their blocks. Asked for when a source has lost, or never had, its own index.

use journal_format::segment::SegmentSource;
use journal_format::{GroupName, Hash, Sequence};
use transport::{AttachedSegment, CallAnswer, LISTED_BLOCKS_MAX, LISTED_SEGMENTS_MAX, ListedBlock};

use super::resolve::block_list;
use super::writer::Shared;
use crate::error::StoreError;

/// Segments, newest first.
pub(super) fn list_segments(
    shared: &Shared,
    group: &GroupName,
    seed: bool,
    before: Option<Sequence>,
) -> Result<CallAnswer, StoreError> {
    let Some(group) = named(group, seed) else { return Ok(CallAnswer::Attached(Vec::new())) };
    let before = before.unwrap_or(Sequence(i64::MAX as u64));
    let rows = shared.catalog().segments_before(&group, before, LISTED_SEGMENTS_MAX)?;
    let attached = rows.into_iter().map(|row| AttachedSegment {
        generation: row.position.generation,
        sequence: row.position.sequence,
        hash: row.position.hash.0,
    });
    Ok(CallAnswer::Attached(attached.collect()))
}

/// Blocks of a segment behind the first `skip`; none if it is not there.
pub(super) fn list_blocks(
    shared: &Shared,
    group: &GroupName,
    seed: bool,
    sequence: Sequence,
    skip: u32,
) -> Result<CallAnswer, StoreError> {
    let nothing = || Ok(CallAnswer::Blocks(Vec::new()));
    let Some(group) = named(group, seed) else { return nothing() };
    let Some(row) = shared.catalog().segment(&group, sequence)? else { return nothing() };
    let (generation, hash) = (row.position.generation, row.position.hash);
    let table = shared.frames.table(&SegmentSource { group, generation, sequence, hash })?;
    let list = block_list(shared, &table)?;
    let (mut skip, mut listed) = (skip as usize, Vec::new());
    for (frame, entry) in table.frames.iter().enumerate() {
        let (first, count) = (skip, entry.blocks());
        skip = skip.saturating_sub(count);
        let wanted = count.saturating_sub(first).min(LISTED_BLOCKS_MAX - listed.len());
        if wanted == 0 {
            continue;
        }
        let blocks = list.read(frame as u32, first as u64 * journal_format::BLOCK_BYTES, wanted);
        let blocks = blocks.ok().flatten().unwrap_or_default();
        listed.extend(blocks.hashes.iter().zip(blocks.steps).enumerate().map(|(number, (hash, steps))| {
            let block = (first + number) as u16;
            ListedBlock { frame: frame as u32, block, steps, fingerprint: fingerprint(hash) }
        }));
    }
    Ok(CallAnswer::Blocks(listed))
}

fn named(group: &GroupName, seed: bool) -> Option<GroupName> {
    if seed { group.seed() } else { Some(group.clone()) }
}

fn fingerprint(hash: &Hash) -> [u8; 8] {
    hash.0[..8].try_into().expect("a hash is longer")
}
