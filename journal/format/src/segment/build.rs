//! Making a segment from changed ranges.

use super::index::{Extent, ExtentContent, FrameCodec, FrameEntry};
use super::layout::{HEADER_BYTES, Header, MAX_FRAME_RAW_BYTES, Trailer};
use super::meta::SegmentMeta;
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
    /// Level 1 and frames of 256 KiB: large enough to compress blocks together, small enough to read one block at once.
    fn default() -> Self {
        BuildOptions { level: 1, frame_bytes: 256 << 10 }
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

/// Builds a segment. Ranges are added in the order of volume and offset and do not overlap. Finished frames may be taken out
/// as it grows, so that a large segment needs little memory.
pub struct SegmentBuilder {
    options: BuildOptions,
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
    /// What is finished and was not taken.
    bytes: Vec<u8>,
    taken_bytes: u64,
    frames: Vec<FrameEntry>,
    extents: Vec<Extent>,
    open_frame: Vec<u8>,
    payload_bytes: u64,
}

impl SegmentBuilder {
    /// Begins a segment.
    pub fn new(options: BuildOptions) -> Self {
        assert!(options.frame_bytes.is_multiple_of(BLOCK_BYTES as u32) && options.frame_bytes > 0);
        assert!(options.frame_bytes <= MAX_FRAME_RAW_BYTES);
        SegmentBuilder {
            options,
            compressor: zstd::bulk::Compressor::new(options.level).expect("zstd takes every level"),
            compressed: Vec::with_capacity(zstd::zstd_safe::compress_bound(options.frame_bytes as usize)),
            bytes: vec![0; HEADER_BYTES],
            taken_bytes: 0,
            frames: Vec::new(),
            extents: Vec::new(),
            open_frame: Vec::with_capacity(options.frame_bytes as usize),
            payload_bytes: 0,
        }
    }

    /// Bytes of payload added so far, before compression and without zeroes.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes + self.open_frame.len() as u64
    }

    /// Size of the frames finished so far, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.taken_bytes + self.bytes.len() as u64
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

    /// Number of extents so far.
    pub fn extent_count(&self) -> usize {
        self.extents.len()
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

    /// Adds a range with its content. Blocks of zeroes in it are elided.
    pub fn add_data(&mut self, volume: u16, offset: u64, data: &[u8]) {
        let mut at = 0;
        while at < data.len() {
            // Pieces end on block boundaries of the volume, so that a block of zeroes is seen as one.
            let to_boundary = BLOCK_BYTES - (offset + at as u64) % BLOCK_BYTES;
            let piece = &data[at..data.len().min(at + to_boundary as usize)];
            if is_zero(piece) {
                self.add_zero(volume, offset + at as u64, piece.len() as u64);
            } else {
                self.add_piece(volume, offset + at as u64, piece);
            }
            at += piece.len();
        }
    }

    fn add_piece(&mut self, volume: u16, offset: u64, piece: &[u8]) {
        if self.open_frame.len() + piece.len() > self.options.frame_bytes as usize {
            self.close_frame();
        }
        let content =
            ExtentContent::Frame { frame: self.frames.len() as u32, offset: self.open_frame.len() as u32 };
        self.open_frame.extend_from_slice(piece);
        self.push(Extent { volume, offset, length: piece.len() as u64, content });
    }

    fn push(&mut self, extent: Extent) {
        if let Some(last) = self.extents.last_mut() {
            assert!(
                (last.volume, last.end()) <= (extent.volume, extent.offset) || last.volume < extent.volume
            );
            if continues(last, &extent) {
                last.length += extent.length;
                return;
            }
        }
        self.extents.push(extent);
    }

    fn close_frame(&mut self) {
        if self.open_frame.is_empty() {
            return;
        }
        let raw = &self.open_frame;
        let offset = self.taken_bytes + self.bytes.len() as u64;
        let compressed = self.compressor.compress_to_buffer(raw, &mut self.compressed);
        let (codec, stored) = match compressed {
            Ok(size) if size < raw.len() => (FrameCodec::Zstd, &self.compressed[..size]),
            _ => (FrameCodec::Stored, &raw[..]),
        };
        self.bytes.extend_from_slice(stored);
        let raw_hash = Hash::of(raw);
        let stored_hash = if codec == FrameCodec::Stored { raw_hash } else { Hash::of(stored) };
        self.frames.push(FrameEntry {
            offset,
            stored_bytes: stored.len() as u32,
            raw_bytes: raw.len() as u32,
            codec,
            stored_hash,
            raw_hash,
        });
        self.payload_bytes += raw.len() as u64;
        self.open_frame.clear();
    }

    /// Seals a segment that is all in memory.
    ///
    /// # Panics
    /// If anything of it was taken.
    pub fn finish(self, header: &Header, meta: &SegmentMeta) -> SealedSegment {
        assert_eq!(self.taken_bytes, 0, "a segment of which parts were taken ends with `finish_tail`");
        let SegmentTail { header, mut bytes, position, parent, .. } = self.finish_tail(header, meta);
        bytes[..HEADER_BYTES].copy_from_slice(&header);
        SealedSegment { bytes, position, parent }
    }

    /// Seals the segment, and answers what was not taken of it.
    pub fn finish_tail(mut self, header: &Header, meta: &SegmentMeta) -> SegmentTail {
        self.close_frame();
        let index_offset = self.stored_bytes();
        let mut raw_index = Vec::new();
        self.frames.iter().for_each(|frame| frame.encode(&mut raw_index));
        self.extents.iter().for_each(|extent| extent.encode(&mut raw_index));
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
            frame_count: self.frames.len() as u32,
            extent_count: self.extents.len() as u32,
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
