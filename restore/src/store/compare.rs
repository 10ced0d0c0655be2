//! Compares what a source has with the state at the head of its group, which need not complete a point.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use journal_format::segment::{PointKind, SegmentSource};
use journal_format::{BLOCK_BYTES, Hash, PointId, Position, Timestamp, VolumeName};
use transport::{CallAnswer, Refusal, RefusalKind, RegionAnswer};

use super::inbox::refusal_of;
use super::writer::{Group, Shared};
use crate::catalog::Point;
use crate::error::StoreError;
use crate::segments::Segments;
use crate::view::{PointView, ViewOptions, VolumeView};

const REGION_BYTES: u64 = 64 << 10;
/// A view of a head that is not the newest any more is used at least this long.
const VIEW_AGE_MIN: Duration = Duration::from_millis(200);
/// And so many times as long as it took to open.
const VIEW_AGE_FACTOR: u32 = 4;

/// The state at a head, open for reading.
pub(super) struct HeadView {
    head: Position,
    view: Arc<PointView>,
    opened: Instant,
}

/// Consecutive regions of a volume as a source describes them.
pub(super) struct Asked<'a> {
    pub(super) volume: &'a VolumeName,
    pub(super) size_bytes: u64,
    pub(super) offset: u64,
    pub(super) regions: &'a [[u8; 32]],
}

/// Answers what the store has of the regions. Holds no lock that receiving needs while it reads.
pub(super) fn compare(shared: &Shared, group: &Group, asked: &Asked<'_>) -> Result<CallAnswer, Refusal> {
    let aligned = asked.offset.is_multiple_of(REGION_BYTES);
    let end = asked.offset.saturating_add(REGION_BYTES * asked.regions.len() as u64);
    let beyond = end.saturating_sub(REGION_BYTES) >= asked.size_bytes && !asked.regions.is_empty();
    if !aligned || beyond || asked.regions.len() > transport::COMPARED_REGIONS_MAX {
        let reason = "regions are compared in order, at most 64 at once, within their volume";
        return Err(Refusal::new(RefusalKind::Invalid, reason, "the source is of another version"));
    }
    let opened = head_view(shared, group).map_err(|error| refusal_of(&error))?;
    let volume = opened.as_ref().and_then(|(_, view)| view.volume(asked.volume).ok());
    let mut regions = Vec::with_capacity(asked.regions.len());
    for (number, theirs) in asked.regions.iter().enumerate() {
        let start = asked.offset + number as u64 * REGION_BYTES;
        let length = REGION_BYTES.min(asked.size_bytes - start);
        group.compared_bytes.fetch_add(length, Ordering::Relaxed);
        regions.push(compare_region(volume.as_ref(), start, length, theirs));
    }
    Ok(CallAnswer::Compared { head: opened.map(|(head, _)| head), regions })
}

fn compare_region(volume: Option<&VolumeView>, start: u64, length: u64, theirs: &[u8; 32]) -> RegionAnswer {
    let mut bytes = vec![0; length as usize];
    let held = volume.map_or(0, |volume| volume.size_bytes().saturating_sub(start).min(length));
    let is_zero = |volume: &VolumeView| {
        let run = volume.zero_run(start, held);
        run.zero && run.length >= held
    };
    let volume = volume.filter(|volume| held > 0 && !is_zero(volume));
    let mut lost = vec![false; bytes.len().div_ceil(BLOCK_BYTES as usize)];
    if let Some(volume) = volume
        && volume.read_at(start, &mut bytes[..held as usize]).is_err()
    {
        read_blocks(volume, start, held, &mut bytes, &mut lost);
    }
    if !lost.contains(&true) && Hash::of(&bytes).0 == *theirs {
        return RegionAnswer::Equal;
    }
    let blocks = bytes.chunks(BLOCK_BYTES as usize).zip(&lost);
    RegionAnswer::Blocks(
        blocks.map(|(block, &lost)| if lost { [0; 32] } else { Hash::of(block).0 }).collect(),
    )
}

/// Reads what can be read of a region of which something is damaged.
fn read_blocks(volume: &VolumeView, start: u64, held: u64, bytes: &mut [u8], lost: &mut [bool]) {
    for (number, block) in bytes[..held as usize].chunks_mut(BLOCK_BYTES as usize).enumerate() {
        let at = start + number as u64 * BLOCK_BYTES;
        if let Err(error) = volume.read_at(at, block) {
            tracing::error!(%error, "a block of the store cannot be read; the source is asked to send it again");
            lost[number] = true;
        }
    }
}

/// A view of the head, or of a slightly older one: an answer names the head that it is true for.
fn head_view(shared: &Shared, group: &Group) -> Result<Option<(Position, Arc<PointView>)>, StoreError> {
    let mut cached = group.head_view.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(head) = group.state().timeline.head() else { return Ok(None) };
    if let Some(HeadView { head: of, view, opened }) = &*cached {
        let age_max = VIEW_AGE_MIN.max(view.open_duration() * VIEW_AGE_FACTOR);
        if *of == head || opened.elapsed() < age_max {
            return Ok(Some((*of, Arc::clone(view))));
        }
    }
    let chain = shared.catalog().chain(&group.name, head.sequence)?;
    let newest = SegmentSource {
        group: group.name.clone(),
        generation: head.generation,
        sequence: head.sequence,
        hash: head.hash,
    };
    let newest = shared.disk.index(&newest)?;
    let behind = chain.last().is_none_or(|last| last.position != head);
    if behind {
        // The catalog missed a segment; the next attached one mends it.
        let path = shared.disk.segment_path(&group.name, head.generation, head.sequence);
        return Err(StoreError::OtherSegment { path, expected: head.hash, actual: Hash::ZERO });
    }
    let state = Point {
        group: group.name.clone(),
        id: PointId { generation: head.generation, epoch: head.epoch },
        sequence: head.sequence,
        time: Timestamp(0),
        kind: PointKind::Crash,
        bookmark: None,
        definition: Hash::ZERO,
        written_bytes: 0,
        stored_bytes: 0,
        // Those that are joining too: they are what is compared.
        volumes: newest.meta.volumes,
    };
    let view = PointView::open(Arc::new(shared.disk.clone()), state, chain, &ViewOptions::default())?;
    *cached = Some(HeadView { head, view: Arc::clone(&view), opened: Instant::now() });
    Ok(Some((head, view)))
}
