//! From an epoch's changes to segments.

use journal_format::definition::GroupDefinition;
use journal_format::segment::{
    BuildOptions, Header, PointRecord, SealedSegment, SegmentBuilder, SegmentMeta, VolumeRecord,
};
use journal_format::{Epoch, Generation, GroupName, Hash, Sequence, Timestamp};

use crate::capture::EpochChanges;

/// Payload at which a part of an epoch is closed, in bytes before compression.
const PART_PAYLOAD_BYTES: u64 = 64 << 20;
/// Extents at which a part of an epoch is closed.
const PART_EXTENTS: usize = 1 << 20;

/// What the segments of one epoch have in common.
pub(crate) struct SealRequest<'a> {
    pub(crate) group: &'a GroupName,
    pub(crate) generation: Generation,
    pub(crate) first_epoch: Epoch,
    pub(crate) last_epoch: Epoch,
    pub(crate) sealed_at: Timestamp,
    pub(crate) volumes: &'a [VolumeRecord],
    pub(crate) point: Option<PointRecord>,
    pub(crate) definition: Option<&'a GroupDefinition>,
    pub(crate) options: BuildOptions,
}

/// Makes the segments that carry `changes` and gives each to `keep` before the next is made. They continue the chain at
/// `next`: the sequence of the first and its parent.
///
/// # Errors
/// What `keep` answers; parts kept before stay kept.
pub(crate) fn seal<E>(
    request: &SealRequest<'_>,
    changes: &EpochChanges,
    mut next: (Sequence, Hash),
    mut keep: impl FnMut(SealedSegment) -> Result<(), E>,
) -> Result<(), E> {
    let mut part = 0;
    let mut finish = |builder: SegmentBuilder, last: bool| {
        let segment = builder.finish(&header(request, next, part, !last), &meta(request, part, last));
        next = (segment.position.sequence.next(), segment.position.hash);
        part += 1;
        keep(segment)
    };
    let mut builder = SegmentBuilder::new(request.options);
    for (volume, map) in changes.volumes.iter().enumerate() {
        for range in map.ranges() {
            if builder.payload_bytes() >= PART_PAYLOAD_BYTES || builder.extent_count() >= PART_EXTENTS {
                finish(std::mem::replace(&mut builder, SegmentBuilder::new(request.options)), false)?;
            }
            match range.data {
                Some(data) => builder.add_data(volume as u16, range.offset, data),
                None => builder.add_zero(volume as u16, range.offset, range.length),
            }
        }
    }
    finish(builder, true)
}

fn header(request: &SealRequest<'_>, next: (Sequence, Hash), part: u16, more_parts: bool) -> Header {
    Header {
        group: request.group.clone(),
        generation: request.generation,
        sequence: next.0,
        first_epoch: request.first_epoch,
        last_epoch: request.last_epoch,
        part,
        more_parts,
        sealed_at: request.sealed_at,
        parent: next.1,
    }
}

fn meta(request: &SealRequest<'_>, part: u16, last: bool) -> SegmentMeta {
    SegmentMeta {
        volumes: request.volumes.to_vec(),
        point: request.point.clone().filter(|_| last),
        definition: request.definition.filter(|_| part == 0).cloned(),
    }
}
