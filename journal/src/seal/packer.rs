//! Deciding how each piece is carried: as zeroes, as a reference, as a difference, or in a frame.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use journal_format::segment::{
    BlockPlace, DIFFERENCE_STEPS_MAX, EncodedFrame, FrameSlot, Reference, SegmentSource, SegmentWriter,
    combined_hash,
};
use journal_format::{BLOCK_BYTES, GroupName, Hash, Sequence};
use serde::Serialize;

use super::jobs::{Content, FrameJob, HashedBlock, Piece};
use crate::known::{KnownBlocks, LearntBlock};

/// A frame on its way to the threads that make it.
pub(super) struct Packed<'a> {
    pub(super) job: FrameJob<'a>,
    pub(super) ticket: PackedFrame,
}

/// What is kept of a frame while it is being made.
pub(super) struct PackedFrame {
    slot: FrameSlot,
    bases: Option<(Vec<BlockPlace>, Hash)>,
}

/// A frame that is being filled.
#[derive(Default)]
struct Open<'a> {
    slot: Option<FrameSlot>,
    pieces: Vec<&'a [u8]>,
    bytes: usize,
    hashes: Vec<Hash>,
    bases: Vec<&'a [u8]>,
    places: Vec<BlockPlace>,
    base_hashes: Vec<Hash>,
}

/// Consecutive blocks of a source that are consecutive here too.
struct Run {
    volume: u16,
    offset: u64,
    hashes: Vec<Hash>,
    place: BlockPlace,
}

impl Run {
    fn length(&self) -> u64 {
        self.hashes.len() as u64 * BLOCK_BYTES
    }
}

/// Where blocks of a segment may be referred to.
pub(super) struct Directory<'a> {
    pub(super) known: &'a KnownBlocks,
    pub(super) group: &'a GroupName,
    pub(super) next: Sequence,
}

/// Fills one segment.
pub(super) struct Packer<'a> {
    writer: SegmentWriter,
    directory: Option<Directory<'a>>,
    frame_bytes: usize,
    blocks: Open<'a>,
    differences: Open<'a>,
    fragments: Open<'a>,
    run: Option<Run>,
    /// Blocks of this segment.
    own: HashMap<Hash, (FrameSlot, u32), BuildHasherDefault<FirstBytes>>,
    learnt: Vec<(FrameSlot, LearntBlock)>,
    /// The number of each source in this segment, `None` for one that may not be referred to.
    sources: HashMap<u32, Option<u32>>,
    packed_bytes: u64,
    counters: SealCounters,
}

/// Takes the first bytes of a [`Hash`] for its place in a table: they are as good as any.
#[derive(Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    /// What is written last counts; before the bytes of a hash that is their number.
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    }
}

/// How the blocks of a segment are carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SealCounters {
    /// Bytes of blocks of zeroes.
    pub zero_bytes: u64,
    /// Bytes of blocks that the segment itself or the recovery site has.
    pub known_bytes: u64,
    /// Bytes of blocks that are carried as differences.
    pub difference_bytes: u64,
    /// Bytes that are carried whole.
    pub whole_bytes: u64,
}

impl std::ops::AddAssign for SealCounters {
    fn add_assign(&mut self, other: SealCounters) {
        self.zero_bytes += other.zero_bytes;
        self.known_bytes += other.known_bytes;
        self.difference_bytes += other.difference_bytes;
        self.whole_bytes += other.whole_bytes;
    }
}

impl<'a> Packer<'a> {
    pub(super) fn new(frame_bytes: u32, directory: Option<Directory<'a>>) -> Self {
        Packer {
            writer: SegmentWriter::new(),
            directory,
            frame_bytes: frame_bytes as usize,
            blocks: Open::default(),
            differences: Open::default(),
            fragments: Open::default(),
            run: None,
            own: HashMap::default(),
            learnt: Vec::new(),
            sources: HashMap::new(),
            packed_bytes: 0,
            counters: SealCounters::default(),
        }
    }

    /// Payload so far, in bytes before compression, with what is not in a finished frame yet.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.packed_bytes
    }

    pub(super) fn writer(&mut self) -> &mut SegmentWriter {
        &mut self.writer
    }

    pub(super) fn counters(&self) -> SealCounters {
        self.counters
    }

    /// Takes the next piece; answers a frame if that is full now.
    pub(super) fn add(&mut self, piece: &Piece<'a>, content: Content) -> Option<Packed<'a>> {
        match (content, piece.data) {
            (Content::Block { block, previous }, Some(data)) => self.add_block(piece, data, block, previous),
            (Content::Fragment, Some(data)) => {
                self.end_run();
                self.counters.whole_bytes += piece.length;
                let (slot, offset) = self.fragments.put(&mut self.writer, data);
                self.writer.add_framed(piece.volume, piece.offset, piece.length, slot, offset);
                self.packed_bytes += piece.length;
                let frame_bytes = self.frame_bytes;
                // The next fragment may be almost a block long.
                self.fragments.take_if(|open| open.bytes + BLOCK_BYTES as usize > frame_bytes)
            }
            _ => {
                self.end_run();
                self.counters.zero_bytes += piece.length;
                self.writer.add_zero(piece.volume, piece.offset, piece.length);
                None
            }
        }
    }

    fn add_block(
        &mut self,
        piece: &Piece<'a>,
        data: &'a [u8],
        block: HashedBlock,
        previous: Option<HashedBlock>,
    ) -> Option<Packed<'a>> {
        let hash = block.hash;
        if let Some(&(slot, offset)) = self.own.get(&hash) {
            self.end_run();
            self.counters.known_bytes += BLOCK_BYTES;
            self.writer.add_framed(piece.volume, piece.offset, BLOCK_BYTES, slot, offset);
            return None;
        }
        if let Some((place, _)) = self.place_of(block) {
            self.counters.known_bytes += BLOCK_BYTES;
            self.refer(piece, place, hash);
            return None;
        }
        self.end_run();
        let base = previous.and_then(|previous| Some((previous.hash, self.place_of(previous)?)));
        let base = base.filter(|(_, (_, steps))| *steps < DIFFERENCE_STEPS_MAX).zip(piece.previous);
        let (open, steps) = match base {
            Some(((base_hash, (place, steps)), previous)) => {
                self.counters.difference_bytes += BLOCK_BYTES;
                self.differences.bases.push(previous);
                self.differences.places.push(place);
                self.differences.base_hashes.push(base_hash);
                self.differences.hashes.push(hash);
                (&mut self.differences, steps + 1)
            }
            None => {
                self.counters.whole_bytes += BLOCK_BYTES;
                self.blocks.hashes.push(hash);
                (&mut self.blocks, 0)
            }
        };
        let (slot, offset) = open.put(&mut self.writer, data);
        self.writer.add_framed(piece.volume, piece.offset, BLOCK_BYTES, slot, offset);
        self.own.insert(hash, (slot, offset));
        self.learnt.push((slot, LearntBlock { hash, frame: 0, offset, steps }));
        self.packed_bytes += BLOCK_BYTES;
        let frame_bytes = self.frame_bytes;
        open.take_if(|open| open.bytes >= frame_bytes)
    }

    /// Where the recovery site has a block, with the differences between that and the plain block under it.
    fn place_of(&mut self, block: HashedBlock) -> Option<(BlockPlace, u8)> {
        let Directory { known, group, next } = self.directory.as_ref()?;
        let location = block.known?;
        let writer = &mut self.writer;
        let source = self.sources.entry(location.segment()).or_insert_with(|| {
            known.source(location.segment(), group, *next).map(|source| writer.add_source(source))
        });
        let place = BlockPlace {
            source: (*source)?,
            frame: location.frame().into(),
            offset: u32::from(location.sector()) * 512,
        };
        Some((place, location.depth()))
    }

    fn refer(&mut self, piece: &Piece<'_>, place: BlockPlace, hash: Hash) {
        if let Some(run) = &mut self.run {
            let length = run.length();
            let follows = run.volume == piece.volume && run.offset + length == piece.offset;
            let next = BlockPlace { offset: run.place.offset + length as u32, ..run.place };
            if follows && next == place {
                run.hashes.push(hash);
                return;
            }
        }
        self.end_run();
        self.run = Some(Run { volume: piece.volume, offset: piece.offset, hashes: vec![hash], place });
    }

    fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            let reference = Reference { place: run.place, hash: combined_hash(&run.hashes) };
            self.writer.add_reference(run.volume, run.offset, run.length(), reference);
        }
    }

    /// What was begun and is not full.
    pub(super) fn end(&mut self) -> impl Iterator<Item = Packed<'a>> + use<'a> {
        self.end_run();
        let open = [&mut self.blocks, &mut self.differences, &mut self.fragments];
        open.map(|open| open.take_if(|_| true)).into_iter().flatten()
    }

    /// Takes in where a frame lies that is made: behind everything that was taken from the writer.
    pub(super) fn place(&mut self, frame: &PackedFrame, encoded: &EncodedFrame) {
        let bases = frame.bases.as_ref().map(|(bases, hash)| (&bases[..], *hash));
        self.writer.place_frame(frame.slot, encoded, bases);
    }

    /// The finished writer, and the blocks that are known from now on.
    pub(super) fn into_parts(self) -> (SegmentWriter, Vec<LearntBlock>) {
        let writer = self.writer;
        let numbered = |(slot, block): (FrameSlot, LearntBlock)| {
            Some(LearntBlock { frame: writer.frame_number(slot)?, ..block })
        };
        let learnt = self.learnt.into_iter().filter_map(numbered).collect();
        (writer, learnt)
    }
}

/// The segment that was written, as others refer to it.
pub(crate) fn source_of(group: &GroupName, position: &journal_format::Position) -> SegmentSource {
    SegmentSource {
        group: group.clone(),
        generation: position.generation,
        sequence: position.sequence,
        hash: position.hash,
    }
}

impl<'a> Open<'a> {
    fn put(&mut self, writer: &mut SegmentWriter, data: &'a [u8]) -> (FrameSlot, u32) {
        let slot = *self.slot.get_or_insert_with(|| writer.open_frame());
        let offset = self.bytes as u32;
        self.pieces.push(data);
        self.bytes += data.len();
        (slot, offset)
    }

    fn take_if(&mut self, full: impl FnOnce(&Self) -> bool) -> Option<Packed<'a>> {
        let slot = self.slot.filter(|_| full(self))?;
        let Open { pieces, hashes, bases, places, base_hashes, .. } = std::mem::take(self);
        let raw_hash = (!hashes.is_empty()).then(|| combined_hash(&hashes));
        let base_hash = (!bases.is_empty()).then(|| combined_hash(&base_hashes));
        let job = FrameJob { pieces, raw_hash, bases };
        Some(Packed { job, ticket: PackedFrame { slot, bases: base_hash.map(|hash| (places, hash)) } })
    }
}
