//! From an epoch's changes to segments in the journal.
//!
//! One thread decides, in the order of volume and offset, how each block is carried; all cores hash blocks and look them up before that, and make
//! frames behind it.
//! What is under way at once is bounded: batches of pieces, which are borrowed, and frames.

mod jobs;
mod packer;
mod pool;

use std::collections::VecDeque;
use std::io;
use std::thread;

use journal_format::definition::GroupDefinition;
use journal_format::segment::{
    BuildOptions, EncodedFrame, Header, PointRecord, SegmentMeta, VolumeRecord, block_pieces,
};
use journal_format::{BLOCK_BYTES, Epoch, Generation, GroupName, Hash, Sequence, Timestamp};

use self::jobs::{Done, Job, Piece};
pub use self::packer::SealCounters;
pub(crate) use self::packer::source_of;
use self::packer::{Directory, Packed, PackedFrame, Packer};
use self::pool::{Pool, Ticket, with_pool};
use crate::capture::EpochChanges;
use crate::chain::{StoredSegment, segment_name, storage_error};
use crate::error::JournalError;
use crate::faults;
use crate::known::{KnownBlocks, LearntBlock};
use crate::storage::{NewFile, Storage};

/// Payload at which a part of an epoch is closed, in bytes before compression.
pub(crate) const PART_PAYLOAD_BYTES: u64 = 64 << 20;
/// Size of the index at which a part of an epoch is closed, in bytes before compression.
const PART_INDEX_BYTES: usize = 32 << 20;
/// Pieces that are hashed together: 1 MiB if they are whole blocks.
const BATCH_PIECES: usize = 256;
/// Changes of less than this are sealed on the caller's thread.
const ALONE_BYTES: u64 = 1 << 20;
/// Batches and frames that are under way, for each thread.
const AHEAD: usize = 2;
/// Batches that are under way, for each thread, while a part is finished, which one thread does.
const AHEAD_AT_END: usize = 16;
/// So many sealed bytes that wait mean that the link is slower than the sealing.
const BACKLOG_BYTES: u64 = 64 << 20;
/// zstd level while that is so: a twentieth fewer bytes for two to three times the time.
const LEVEL_FOR_SLOW_LINKS: i32 = 6;

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
    /// What the recovery site has.
    pub(crate) known: Option<&'a KnownBlocks>,
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
    keep: impl FnMut(StoredSegment) -> Result<(), JournalError>,
    check_room: &CheckRoom<'_>,
) -> Result<SealCounters, JournalError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let helpers = if changes.payload_bytes() < ALONE_BYTES { 0 } else { cores - 1 };
    let (level, known) = (request.options.level, request.known);
    with_pool(
        helpers,
        || jobs::worker(level, known),
        |pool| {
            let place = Place { request, storage, check_room };
            let part = Some(Part::begin(&place, next, 0)?);
            let sealing = Sealing {
                place,
                pool,
                pieces: Box::new(pieces(changes)),
                looking: VecDeque::new(),
                threads: helpers + 1,
                part,
                frames: VecDeque::new(),
                buffers: Vec::new(),
                keep,
                counters: SealCounters::default(),
            };
            sealing.run()
        },
    )
}

/// The changes in pieces, in the order of volume and offset.
fn pieces(changes: &EpochChanges) -> impl Iterator<Item = Piece<'_>> {
    changes.volumes.iter().enumerate().flat_map(move |(number, map)| {
        let (volume, previous) = (number as u16, changes.previous.get(number));
        map.ranges().flat_map(move |range| {
            let zeroes = range.data.is_none().then_some(Piece {
                volume,
                offset: range.offset,
                length: range.length,
                data: None,
                previous: None,
            });
            let pieces =
                block_pieces(range.offset, range.data.unwrap_or_default()).map(move |(offset, data)| {
                    let previous = previous.and_then(|blocks| blocks.get(&(offset / BLOCK_BYTES)));
                    let previous = previous.map(|block| &block[..]);
                    Piece { volume, offset, length: data.len() as u64, data: Some(data), previous }
                });
            zeroes.into_iter().chain(pieces)
        })
    })
}

/// An epoch on its way into segments.
struct Sealing<'a, 'p, 's, W, K> {
    place: Place<'a>,
    pool: &'p mut Pool<'s, Job<'a>, Done<'a>, W>,
    /// What nobody has looked at yet.
    pieces: Box<dyn Iterator<Item = Piece<'a>> + 'a>,
    /// Batches that are being looked at, in their order, each with the number of the part that was filled when it was handed out.
    looking: VecDeque<(Ticket, u16)>,
    threads: usize,
    /// Absent only while one part follows the other.
    part: Option<Part<'a>>,
    /// Frames that are being made, in their order in the segment.
    frames: VecDeque<(Ticket, PackedFrame)>,
    /// Memory of frames that are written, for others.
    buffers: Vec<Vec<u8>>,
    keep: K,
    counters: SealCounters,
}

impl<'a, W, K> Sealing<'a, '_, '_, W, K>
where
    W: FnMut(Job<'a>) -> Done<'a>,
    K: FnMut(StoredSegment) -> Result<(), JournalError>,
{
    fn run(mut self) -> Result<SealCounters, JournalError> {
        loop {
            self.look_ahead(AHEAD);
            let Some((ticket, looked_in)) = self.looking.pop_front() else { break };
            let Done::Looked(looked) = self.pool.take(&ticket) else {
                unreachable!("a look is answered by one")
            };
            for (piece, mut content) in looked {
                if self.part().is_full() {
                    let (stored, number) = self.finish_part(false)?;
                    let next = (stored.position.sequence.next(), stored.position.hash);
                    self.part = Some(Part::begin(&self.place, next, number + 1)?);
                }
                // Blocks of the parts between are known since.
                if self.part().number != looked_in {
                    content.look_again(self.place.request.known);
                }
                if let Some(packed) = self.part().packer.add(&piece, content) {
                    self.submit(packed)?;
                }
            }
        }
        self.finish_part(true)?;
        Ok(self.counters)
    }

    /// Hands out batches until so many for each thread are under way.
    fn look_ahead(&mut self, batches: usize) {
        while self.looking.len() < batches * self.threads {
            let batch: Vec<Piece<'a>> = self.pieces.by_ref().take(BATCH_PIECES).collect();
            if batch.is_empty() {
                break;
            }
            let ticket = self.pool.submit(Job::Look(batch));
            let part = self.part().number;
            self.looking.push_back((ticket, part));
        }
    }

    fn part(&mut self) -> &mut Part<'a> {
        self.part.as_mut().expect("there is a part until the last is finished")
    }

    /// Brings all that was packed into the part, finishes it and hands it on. Answers it with its number.
    fn finish_part(&mut self, last: bool) -> Result<(StoredSegment, u16), JournalError> {
        for packed in self.part().packer.end() {
            self.submit(packed)?;
        }
        self.look_ahead(AHEAD_AT_END);
        while !self.frames.is_empty() {
            self.take_frame()?;
        }
        let part = self.part.take().expect("there is a part until the last is finished");
        let number = part.number;
        self.counters += part.packer.counters();
        let (stored, learnt) = part.finish(last)?;
        (self.keep)(stored)?;
        if let Some(known) = self.place.request.known {
            known.learn(&source_of(self.place.request.group, &stored.position), learnt);
        }
        Ok((stored, number))
    }

    fn submit(&mut self, packed: Packed<'a>) -> Result<(), JournalError> {
        let buffer = self.buffers.pop().unwrap_or_default();
        let ticket = self.pool.submit(Job::Encode(packed.job, buffer));
        self.frames.push_back((ticket, packed.ticket));
        while self.frames.len() > AHEAD * self.threads {
            self.take_frame()?;
        }
        Ok(())
    }

    fn take_frame(&mut self) -> Result<(), JournalError> {
        let Some((ticket, frame)) = self.frames.pop_front() else { return Ok(()) };
        let Done::Encoded(encoded) = self.pool.take(&ticket) else {
            unreachable!("a frame is answered by one")
        };
        self.part().write_frame(&frame, &encoded)?;
        self.buffers.push(encoded.into_buffer());
        Ok(())
    }
}

/// The zstd level to seal at while so much of the payload's budget is in use and so many sealed bytes wait for the link: that of the settings
/// where neither is short.
///
/// A guest that writes faster than is sealed would lose granularity, and needs the CPU itself: what compresses less well is better than what is
/// dropped. A resync fills half of the budget by itself and loses nothing. Where the link is what everything waits for, time to compress is there.
pub(crate) fn level_for(level: i32, pressure: &Pressure) -> i32 {
    let used = pressure.held_bytes.saturating_mul(8) / pressure.budget_bytes.max(1);
    match used.saturating_sub(if pressure.resyncing { 3 } else { 0 }) {
        0..=1 if pressure.backlog_bytes >= BACKLOG_BYTES => level.max(LEVEL_FOR_SLOW_LINKS),
        0..=1 => level,
        2..=3 => level.min(-1),
        _ => level.min(-5),
    }
}

/// What is short while an epoch is sealed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pressure {
    /// Payload in memory.
    pub(crate) held_bytes: u64,
    /// Its limit.
    pub(crate) budget_bytes: u64,
    /// Sealed bytes that wait for receipts.
    pub(crate) backlog_bytes: u64,
    /// Whether a resync fills memory, too.
    pub(crate) resyncing: bool,
}

/// Says whether the journal has room for a segment of so many bytes.
pub(crate) type CheckRoom<'a> = dyn Fn(u64) -> Result<(), JournalError> + 'a;

/// Where segments go.
#[derive(Clone, Copy)]
struct Place<'a> {
    request: &'a SealRequest<'a>,
    storage: &'a dyn Storage,
    check_room: &'a CheckRoom<'a>,
}

/// A segment that is being written.
struct Part<'a> {
    place: Place<'a>,
    number: u16,
    next: (Sequence, Hash),
    packer: Packer<'a>,
    file: Box<dyn NewFile>,
}

impl<'a> Part<'a> {
    fn begin(place: &Place<'a>, next: (Sequence, Hash), number: u16) -> Result<Self, JournalError> {
        faults::step("seal.begun");
        let Place { request, storage, .. } = *place;
        let file = storage.create(&segment_name(next.0)).map_err(|error| failed(request, next.0, error))?;
        let directory = request.known.map(|known| Directory { known, group: request.group, next: next.0 });
        let packer = Packer::new(request.options.frame_bytes, directory);
        Ok(Part { place: *place, number, next, packer, file })
    }

    fn is_full(&mut self) -> bool {
        self.packer.payload_bytes() >= PART_PAYLOAD_BYTES
            || self.packer.writer().index_raw_bytes() >= PART_INDEX_BYTES
    }

    /// Writes a frame from where it was made.
    fn write_frame(&mut self, frame: &PackedFrame, encoded: &EncodedFrame) -> Result<(), JournalError> {
        let writer = self.packer.writer();
        let before = self.file.append(writer.finished());
        writer.take_finished();
        self.packer.place(frame, encoded);
        (self.place.check_room)(self.packer.writer().stored_bytes())?;
        let written = before.and_then(|()| self.file.append(encoded.stored()));
        written.map_err(|error| failed(self.place.request, self.next.0, error))
    }

    fn finish(mut self, last: bool) -> Result<(StoredSegment, Vec<LearntBlock>), JournalError> {
        let request = self.place.request;
        let header = header(request, self.next, self.number, !last);
        let (writer, learnt) = self.packer.into_parts();
        let tail = writer.finish_tail(&header, &meta(request, self.number, last));
        (self.place.check_room)(tail.size_bytes)?;
        let written = self.file.append(&tail.bytes).and_then(|()| self.file.finish(&tail.header));
        written.map_err(|error| failed(request, self.next.0, error))?;
        faults::step("seal.durable");
        let (position, parent, size_bytes) = (tail.position, tail.parent, tail.size_bytes);
        Ok((StoredSegment { position, parent, size_bytes, more_parts: !last }, learnt))
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
    use super::{BACKLOG_BYTES, LEVEL_FOR_SLOW_LINKS, Pressure, level_for};

    const PRESSURE: Pressure =
        Pressure { held_bytes: 0, budget_bytes: 100, backlog_bytes: 0, resyncing: false };

    #[test]
    fn the_level_falls_as_memory_fills() {
        let levels = |level| {
            [0, 24, 25, 49, 50, 100].map(|held_bytes| level_for(level, &Pressure { held_bytes, ..PRESSURE }))
        };
        assert_eq!(levels(3), [3, 3, -1, -1, -5, -5]);
        assert_eq!(levels(-7), [-7; 6]);
        let resync = Pressure { held_bytes: 60, resyncing: true, ..PRESSURE };
        assert_eq!(level_for(3, &resync), 3);
        assert_eq!(level_for(3, &Pressure { held_bytes: 90, ..resync }), -5);
    }

    #[test]
    fn the_level_rises_while_the_link_is_behind_and_memory_is_not() {
        let levels = |level| {
            let pressure = Pressure { backlog_bytes: BACKLOG_BYTES, ..PRESSURE };
            [0, 24, 25, 75].map(|held_bytes| level_for(level, &Pressure { held_bytes, ..pressure }))
        };
        assert_eq!(levels(3), [LEVEL_FOR_SLOW_LINKS, LEVEL_FOR_SLOW_LINKS, -1, -5]);
        assert_eq!(levels(12), [12, 12, -1, -5]);
    }
}
