//! From an epoch's changes to segments in the journal.

use std::io;

use journal_format::definition::GroupDefinition;
use journal_format::segment::{BuildOptions, Header, PointRecord, SegmentBuilder, SegmentMeta, VolumeRecord};
use journal_format::{Epoch, Generation, GroupName, Hash, Sequence, Timestamp};

use crate::capture::EpochChanges;
use crate::chain::{StoredSegment, segment_name, storage_error};
use crate::error::JournalError;
use crate::faults;
use crate::storage::{NewFile, Storage};

/// Payload at which a part of an epoch is closed, in bytes before compression.
const PART_PAYLOAD_BYTES: u64 = 64 << 20;
/// Extents at which a part of an epoch is closed.
const PART_EXTENTS: usize = 1 << 20;
/// Finished bytes are written when there are so many of them.
const WRITE_BYTES: usize = 256 << 10;

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

/// Makes the segments that carry `changes`, and hands each to `keep` when it is durable, before the next is begun. They continue
/// the chain at `next`: the sequence of the first and its parent. `check_room` says whether a segment may have so many bytes.
///
/// # Errors
/// [`JournalError::Storage`], [`JournalError::Limit`], or what `keep` answers; parts kept before stay kept.
pub(crate) fn seal(
    request: &SealRequest<'_>,
    changes: &EpochChanges,
    next: (Sequence, Hash),
    storage: &dyn Storage,
    mut keep: impl FnMut(StoredSegment) -> Result<(), JournalError>,
    check_room: &CheckRoom<'_>,
) -> Result<(), JournalError> {
    let begin = |next, number| Part::begin(request, storage, check_room, next, number);
    let mut part = begin(next, 0)?;
    for (volume, map) in changes.volumes.iter().enumerate() {
        for range in map.ranges() {
            if part.is_full() {
                let (number, stored) = (part.number, part.finish(false)?);
                keep(stored)?;
                part = begin((stored.position.sequence.next(), stored.position.hash), number + 1)?;
            }
            match range.data {
                Some(data) => part.builder.add_data(volume as u16, range.offset, data),
                None => part.builder.add_zero(volume as u16, range.offset, range.length),
            }
            part.write_finished()?;
        }
    }
    keep(part.finish(true)?)
}

/// The zstd level to seal at, of at most `level`, while so much of the payload's budget is in use. A guest that writes faster than is sealed
/// would lose granularity: what compresses less well is better than what is dropped.
pub(crate) fn level_under_pressure(level: i32, held_bytes: u64, budget_bytes: u64) -> i32 {
    match held_bytes.saturating_mul(8) / budget_bytes.max(1) {
        0..=1 => level,
        2..=3 => level.min(-1),
        _ => level.min(-5),
    }
}

/// Says whether the journal has room for a segment of so many bytes.
pub(crate) type CheckRoom<'a> = dyn Fn(u64) -> Result<(), JournalError> + 'a;

/// A segment that is being written.
struct Part<'a> {
    request: &'a SealRequest<'a>,
    check_room: &'a CheckRoom<'a>,
    number: u16,
    next: (Sequence, Hash),
    builder: SegmentBuilder,
    file: Box<dyn NewFile>,
}

impl<'a> Part<'a> {
    fn begin(
        request: &'a SealRequest<'a>,
        storage: &'a dyn Storage,
        check_room: &'a CheckRoom<'a>,
        next: (Sequence, Hash),
        number: u16,
    ) -> Result<Self, JournalError> {
        faults::step("seal.begun");
        let file = storage.create(&segment_name(next.0)).map_err(|error| failed(request, next.0, error))?;
        Ok(Part { request, check_room, number, next, builder: SegmentBuilder::new(request.options), file })
    }

    fn is_full(&self) -> bool {
        self.builder.payload_bytes() >= PART_PAYLOAD_BYTES || self.builder.extent_count() >= PART_EXTENTS
    }

    /// Writes what is finished, if it is worth it, while it is still in the CPU's cache.
    fn write_finished(&mut self) -> Result<(), JournalError> {
        if self.builder.finished().len() < WRITE_BYTES {
            return Ok(());
        }
        (self.check_room)(self.builder.stored_bytes())?;
        let written = self.file.append(self.builder.finished());
        written.map_err(|error| failed(self.request, self.next.0, error))?;
        self.builder.take_finished();
        Ok(())
    }

    fn finish(mut self, last: bool) -> Result<StoredSegment, JournalError> {
        let header = header(self.request, self.next, self.number, !last);
        let tail = self.builder.finish_tail(&header, &meta(self.request, self.number, last));
        (self.check_room)(tail.size_bytes)?;
        let written = self.file.append(&tail.bytes).and_then(|()| self.file.finish(&tail.header));
        written.map_err(|error| failed(self.request, self.next.0, error))?;
        faults::step("seal.durable");
        let (position, parent, size_bytes) = (tail.position, tail.parent, tail.size_bytes);
        Ok(StoredSegment { position, parent, size_bytes, more_parts: !last })
    }
}

fn failed(request: &SealRequest<'_>, sequence: Sequence, error: io::Error) -> JournalError {
    storage_error(request.group, &format!("writing {}", segment_name(sequence)), error)
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

#[cfg(test)]
mod tests {
    use super::level_under_pressure;

    #[test]
    fn the_level_falls_as_memory_fills_and_never_rises() {
        let levels = |level| [0, 24, 25, 49, 50, 100].map(|held| level_under_pressure(level, held, 100));
        assert_eq!(levels(3), [3, 3, -1, -1, -5, -5]);
        assert_eq!(levels(-7), [-7; 6]);
    }
}
