//! Making a segment from changed ranges, or from frames that are ready.

use super::frame::{EncodedFrame, FrameEncoder, FrameEntry, FrameKind, block_hashes, combined_hash};
use super::index::{Extent, ExtentContent, Tables};
use super::layout::{HEADER_BYTES, Header, MAX_FRAME_RAW_BYTES, Trailer};
use super::meta::SegmentMeta;
use super::reference::{BlockPlace, Reference, SegmentSource};
use crate::{BLOCK_BYTES, Hash, Position, is_zero};

/// How a segment is made.
#[derive(Clone, Copy, Debug)]
pub struct BuildOptions {
    /// zstd level of the frames.
    pub level: i32,
    /// Size at which a frame is closed, in bytes before compression.
    pub frame_bytes: u32,
}

impl Default for BuildOptions {
    /// Level 3 and frames of 1 MiB: a tenth fewer bytes than level 1 and 256 KiB, and one block is still read in two milliseconds.
    fn default() -> Self {
        BuildOptions { level: 3, frame_bytes: 1 << 20 }
    }
}

/// A finished segment.
#[derive(Clone, Debug)]
pub struct SealedSegment {
    /// The whole segment.
    pub bytes: Vec<u8>,
    /// The position that it ends at.
    pub position: Position,
    /// Hash of the segment before it.
    pub parent: Hash,
}

/// The end of a segment whose frames were taken as they were finished.
#[derive(Clone, Debug)]
pub struct SegmentTail {
    /// The header; its place at the start of the file was left open.
    pub header: [u8; HEADER_BYTES],
    /// Everything that was not taken yet.
    pub bytes: Vec<u8>,
    /// Size of the whole segment in bytes.
    pub size_bytes: u64,
    /// The position that it ends at.
    pub position: Position,
    /// Hash of the segment before it.
    pub parent: Hash,
}

/// A frame to be: extents may name it before it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameSlot(u32);

/// Makes a segment from frames and extents. Extents are added in the order of volume and offset and do not overlap; frames when they are
/// ready. What is finished may be taken out as it grows, so that a large segment needs little memory.
pub struct SegmentWriter {
    /// What is finished and was not taken.
    bytes: Vec<u8>,
    taken_bytes: u64,
    tables: Tables,
    /// For each slot the number of its frame, when it is there.
    slots: Vec<Option<u32>>,
    payload_bytes: u64,
}

impl Default for SegmentWriter {
    fn default() -> Self {
        SegmentWriter::new()
    }
}

impl SegmentWriter {
    /// Begins a segment.
    pub fn new() -> Self {
        SegmentWriter {
            bytes: vec![0; HEADER_BYTES],
            taken_bytes: 0,
            tables: Tables::default(),
            slots: Vec::new(),
            payload_bytes: 0,
        }
    }

    /// Bytes of the frames so far, before compression.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Size of the frames finished so far, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.taken_bytes + self.bytes.len() as u64
    }

    /// Size of the index so far, in bytes before compression.
    pub fn index_raw_bytes(&self) -> usize {
        self.tables.raw_bytes()
    }

    /// What is finished and was not taken yet. It begins with an empty place for the header.
    pub fn finished(&self) -> &[u8] {
        &self.bytes
    }

    /// Says that what is finished was taken.
    pub fn take_finished(&mut self) {
        self.taken_bytes += self.bytes.len() as u64;
        self.bytes.clear();
    }

    /// Begins a frame.
    pub fn open_frame(&mut self) -> FrameSlot {
        self.slots.push(None);
        FrameSlot(self.slots.len() as u32 - 1)
    }

    /// Puts a frame that is ready behind the others, and answers its number. For a difference, `bases` are the places of its bases, one for
    /// each block, with their combined hash.
    pub fn push_frame(
        &mut self,
        slot: FrameSlot,
        frame: &EncodedFrame,
        bases: Option<(&[BlockPlace], Hash)>,
    ) -> u32 {
        let number = self.enter_frame(slot, frame, bases);
        self.bytes.extend_from_slice(&frame.stored);
        number
    }

    /// Like [`SegmentWriter::push_frame`], for a caller who takes the frame's bytes from the frame itself.
    ///
    /// # Panics
    /// If something that is finished was not taken.
    pub fn place_frame(
        &mut self,
        slot: FrameSlot,
        frame: &EncodedFrame,
        bases: Option<(&[BlockPlace], Hash)>,
    ) -> u32 {
        assert!(self.bytes.is_empty(), "what lies before the frame was not taken");
        let number = self.enter_frame(slot, frame, bases);
        self.taken_bytes += frame.stored.len() as u64;
        number
    }

    fn enter_frame(
        &mut self,
        slot: FrameSlot,
        frame: &EncodedFrame,
        bases: Option<(&[BlockPlace], Hash)>,
    ) -> u32 {
        let first_base = self.tables.bases.len() as u32;
        let kind = match bases {
            None => FrameKind::Plain,
            Some((bases, bases_hash)) => {
                self.tables.bases.extend_from_slice(bases);
                FrameKind::Difference { first_base, bases_hash }
            }
        };
        let number = self.tables.frames.len() as u32;
        self.tables.frames.push(FrameEntry {
            offset: self.stored_bytes(),
            stored_bytes: frame.stored.len() as u32,
            raw_bytes: frame.raw_bytes,
            codec: frame.codec,
            kind,
            stored_hash: frame.stored_hash,
            raw_hash: frame.raw_hash,
        });
        self.payload_bytes += u64::from(frame.raw_bytes);
        self.slots[slot.0 as usize] = Some(number);
        number
    }

    /// The number of a frame that is there.
    pub fn frame_number(&self, slot: FrameSlot) -> Option<u32> {
        self.slots[slot.0 as usize]
    }

    /// Adds a range of zeroes.
    pub fn add_zero(&mut self, volume: u16, offset: u64, length: u64) {
        // An extent's length is stored as 32 bits of sectors.
        const STEP: u64 = 1 << 40;
        let mut done = 0;
        while done < length {
            let part = STEP.min(length - done);
            self.push(Extent { volume, offset: offset + done, length: part, content: ExtentContent::Zero });
            done += part;
        }
    }

    /// Adds a range that lies in a frame.
    pub fn add_framed(&mut self, volume: u16, offset: u64, length: u64, slot: FrameSlot, frame_offset: u32) {
        let content = ExtentContent::Frame { frame: slot.0, offset: frame_offset };
        self.push(Extent { volume, offset, length, content });
    }

    /// Adds a source, and answers its number.
    pub fn add_source(&mut self, source: SegmentSource) -> u32 {
        self.tables.sources.push(source);
        self.tables.sources.len() as u32 - 1
    }

    /// Adds blocks that lie in a source.
    pub fn add_reference(&mut self, volume: u16, offset: u64, length: u64, reference: Reference) {
        let content = ExtentContent::Reference(self.tables.references.len() as u32);
        self.tables.references.push(reference);
        self.push(Extent { volume, offset, length, content });
    }

    fn push(&mut self, extent: Extent) {
        if let Some(last) = self.tables.extents.last_mut() {
            assert!(
                (last.volume, last.end()) <= (extent.volume, extent.offset) || last.volume < extent.volume
            );
            if continues(last, &extent) {
                last.length += extent.length;
                return;
            }
        }
        self.tables.extents.push(extent);
    }

    /// Seals the segment, and answers what was not taken of it.
    ///
    /// # Panics
    /// If a frame is missing that an extent names.
    pub fn finish_tail(mut self, header: &Header, meta: &SegmentMeta) -> SegmentTail {
        for extent in &mut self.tables.extents {
            if let ExtentContent::Frame { frame, .. } = &mut extent.content {
                *frame = self.slots[*frame as usize].expect("every frame is there before the end");
            }
        }
        let index_offset = self.stored_bytes();
        let raw_index = self.tables.encode();
        let index = zstd::bulk::compress(&raw_index, 3).expect("zstd compresses into a buffer that it sizes");
        let meta_bytes = meta.encode();
        let encoded_header = header.encode();
        self.bytes.extend_from_slice(&index);
        self.bytes.extend_from_slice(&meta_bytes);
        let size_bytes = self.stored_bytes() + super::TRAILER_BYTES as u64;
        let mut trailer = Trailer {
            file_bytes: size_bytes,
            index_offset,
            index_stored_bytes: index.len() as u32,
            index_raw_bytes: raw_index.len() as u32,
            frame_count: self.tables.frames.len() as u32,
            extent_count: self.tables.extents.len() as u32,
            meta_bytes: meta_bytes.len() as u32,
            payload_bytes: self.payload_bytes,
            index_hash: Hash::of(&index),
            meta_hash: Hash::of(&meta_bytes),
            hash: Hash::ZERO,
        };
        let encoded_trailer = trailer.encode(&encoded_header);
        self.bytes.extend_from_slice(&encoded_trailer);
        let (position, parent) = (header.position(trailer.hash), header.parent);
        SegmentTail { header: encoded_header, bytes: self.bytes, size_bytes, position, parent }
    }
}

/// Builds a segment from ranges of bytes, in memory and on one thread, without references. Ranges are added in the order of volume and offset and
/// do not overlap.
pub struct SegmentBuilder {
    frame_bytes: usize,
    encoder: FrameEncoder,
    writer: SegmentWriter,
    open: Option<(FrameSlot, Vec<u8>)>,
}

impl SegmentBuilder {
    /// Begins a segment.
    ///
    /// # Panics
    /// If a frame is no positive multiple of a block, or larger than the format allows.
    pub fn new(options: BuildOptions) -> Self {
        assert!(options.frame_bytes.is_multiple_of(BLOCK_BYTES as u32) && options.frame_bytes > 0);
        assert!(options.frame_bytes <= MAX_FRAME_RAW_BYTES);
        SegmentBuilder {
            frame_bytes: options.frame_bytes as usize,
            encoder: FrameEncoder::new(options.level),
            writer: SegmentWriter::new(),
            open: None,
        }
    }

    /// Adds a range of zeroes.
    pub fn add_zero(&mut self, volume: u16, offset: u64, length: u64) {
        self.writer.add_zero(volume, offset, length);
    }

    /// Adds a range with its content. Blocks of zeroes in it are elided.
    pub fn add_data(&mut self, volume: u16, offset: u64, data: &[u8]) {
        for (offset, piece) in block_pieces(offset, data) {
            if is_zero(piece) {
                self.add_zero(volume, offset, piece.len() as u64);
            } else {
                self.add_piece(volume, offset, piece);
            }
        }
    }

    fn add_piece(&mut self, volume: u16, offset: u64, piece: &[u8]) {
        if self.open.as_ref().is_some_and(|(_, raw)| raw.len() + piece.len() > self.frame_bytes) {
            self.close_frame();
        }
        let writer = &mut self.writer;
        let (slot, raw) = self.open.get_or_insert_with(|| (writer.open_frame(), Vec::new()));
        writer.add_framed(volume, offset, piece.len() as u64, *slot, raw.len() as u32);
        raw.extend_from_slice(piece);
    }

    fn close_frame(&mut self) {
        if let Some((slot, mut raw)) = self.open.take() {
            let raw_hash = combined_hash(&block_hashes(&raw));
            let frame = self.encoder.encode(&mut raw, raw_hash, Vec::new());
            self.writer.push_frame(slot, &frame, None);
        }
    }

    /// Seals the segment.
    pub fn finish(mut self, header: &Header, meta: &SegmentMeta) -> SealedSegment {
        self.close_frame();
        let SegmentTail { header, mut bytes, position, parent, .. } = self.writer.finish_tail(header, meta);
        bytes[..HEADER_BYTES].copy_from_slice(&header);
        SealedSegment { bytes, position, parent }
    }
}

/// A range in pieces that end on the volume's block boundaries, so that whole blocks are seen as such; each with its offset.
pub fn block_pieces(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = offset + at as u64;
        let to_boundary = (BLOCK_BYTES - start % BLOCK_BYTES) as usize;
        let piece = &data[at..data.len().min(at + to_boundary)];
        at += piece.len();
        (!piece.is_empty()).then_some((start, piece))
    })
}

fn continues(last: &Extent, next: &Extent) -> bool {
    let adjacent = last.volume == next.volume && last.end() == next.offset;
    let fits = last.length + next.length <= 1 << 40;
    adjacent
        && fits
        && match (last.content, next.content) {
            (ExtentContent::Zero, ExtentContent::Zero) => true,
            (
                ExtentContent::Frame { frame: a, offset: from },
                ExtentContent::Frame { frame: b, offset: to },
            ) => a == b && u64::from(from) + last.length == u64::from(to),
            _ => false,
        }
}
