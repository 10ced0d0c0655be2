//! The index: the frame table and the extent table. Stored as one zstd stream.

use super::layout::{MAX_FRAME_RAW_BYTES, at_most, hash_at, u16_at, u32_at, u64_at};
use crate::{FormatError, Hash, SECTOR_BYTES};

pub(super) const FRAME_ENTRY_BYTES: usize = 80;
pub(super) const EXTENT_ENTRY_BYTES: usize = 24;
const FRAME_PART: &str = "the segment's frame table";
const EXTENT_PART: &str = "the segment's extent table";

/// How a frame is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameCodec {
    /// As it is.
    Stored,
    /// One zstd frame.
    Zstd,
}

/// One frame: many blocks, compressed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// Offset in the segment in bytes.
    pub offset: u64,
    /// Size as stored, in bytes.
    pub stored_bytes: u32,
    /// Size before compression, in bytes; a multiple of the sector size.
    pub raw_bytes: u32,
    /// How it is stored.
    pub codec: FrameCodec,
    /// Hash of the bytes as stored.
    pub stored_hash: Hash,
    /// Hash of the bytes before compression.
    pub raw_hash: Hash,
}

impl FrameEntry {
    /// Verifies and decompresses the frame; `stored` is exactly the frame's bytes as stored.
    ///
    /// # Errors
    /// [`FormatError`] if a hash does not match, before or after decompression.
    pub fn decode(&self, stored: &[u8]) -> Result<Vec<u8>, FormatError> {
        const PART: &str = "a frame";
        if stored.len() != self.stored_bytes as usize {
            let (expected, actual) = (self.stored_bytes.into(), stored.len() as u64);
            return Err(FormatError::Truncated { part: PART, expected, actual });
        }
        if Hash::of(stored) != self.stored_hash {
            return Err(FormatError::Hash { part: PART });
        }
        let raw = match self.codec {
            FrameCodec::Stored => stored.to_vec(),
            FrameCodec::Zstd => zstd::bulk::decompress(stored, self.raw_bytes as usize)
                .ok()
                .filter(|raw| raw.len() == self.raw_bytes as usize)
                .ok_or(FormatError::Decompress { raw_bytes: self.raw_bytes.into() })?,
        };
        if Hash::of(&raw) == self.raw_hash {
            Ok(raw)
        } else {
            Err(FormatError::Hash { part: "a frame's content" })
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let codec = match self.codec {
            FrameCodec::Stored => 0,
            FrameCodec::Zstd => 1,
        };
        out.extend_from_slice(&self.stored_bytes.to_le_bytes());
        out.extend_from_slice(&self.raw_bytes.to_le_bytes());
        out.extend_from_slice(&[codec, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.stored_hash.0);
        out.extend_from_slice(&self.raw_hash.0);
    }

    pub(super) fn decode_entry(bytes: &[u8], offset: u64) -> Result<FrameEntry, FormatError> {
        let rule = |rule| FormatError::Rule { part: FRAME_PART, rule };
        let (stored_bytes, raw_bytes) = (u32_at(bytes, 0), u32_at(bytes, 4));
        at_most("a frame", raw_bytes.into(), MAX_FRAME_RAW_BYTES.into())?;
        if raw_bytes == 0 || !u64::from(raw_bytes).is_multiple_of(SECTOR_BYTES) {
            return Err(rule("a frame's size is not a positive multiple of 512 bytes"));
        }
        let codec = match u64_at(bytes, 8) {
            0 if stored_bytes == raw_bytes => FrameCodec::Stored,
            1 if stored_bytes < raw_bytes => FrameCodec::Zstd,
            _ => return Err(rule("a frame's codec is unknown or does not fit its size")),
        };
        let (stored_hash, raw_hash) = (hash_at(bytes, 16), hash_at(bytes, 48));
        Ok(FrameEntry { offset, stored_bytes, raw_bytes, codec, stored_hash, raw_hash })
    }
}

/// Where the content of an extent comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentContent {
    /// All zero.
    Zero,
    /// Bytes of a frame.
    Frame {
        /// Index into the frame table.
        frame: u32,
        /// Offset in the decompressed frame in bytes.
        offset: u32,
    },
}

/// A changed range of a volume. Extents are sorted by volume and offset and do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Index of the volume in the meta section.
    pub volume: u16,
    /// Offset in the volume in bytes; a multiple of 512.
    pub offset: u64,
    /// Length in bytes; a positive multiple of 512.
    pub length: u64,
    /// Where its bytes are.
    pub content: ExtentContent,
}

impl Extent {
    /// Offset of the first byte behind it.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, frame, offset) = match self.content {
            ExtentContent::Zero => (0, 0, 0),
            ExtentContent::Frame { frame, offset } => (1, frame, offset),
        };
        out.extend_from_slice(&self.volume.to_le_bytes());
        out.extend_from_slice(&[kind, 0]);
        out.extend_from_slice(&((self.length / SECTOR_BYTES) as u32).to_le_bytes());
        out.extend_from_slice(&(self.offset / SECTOR_BYTES).to_le_bytes());
        out.extend_from_slice(&frame.to_le_bytes());
        out.extend_from_slice(&(offset / SECTOR_BYTES as u32).to_le_bytes());
    }

    pub(super) fn decode_entry(bytes: &[u8], frames: &[FrameEntry]) -> Result<Extent, FormatError> {
        let rule = |rule| FormatError::Rule { part: EXTENT_PART, rule };
        let length = u64::from(u32_at(bytes, 4)) * SECTOR_BYTES;
        let offset = u64_at(bytes, 8)
            .checked_mul(SECTOR_BYTES)
            .filter(|offset| offset.checked_add(length).is_some())
            .ok_or_else(|| rule("an extent lies beyond the largest offset"))?;
        let (frame, sector) = (u32_at(bytes, 16), u32_at(bytes, 20));
        let content = match (bytes[2], bytes[3]) {
            (0, 0) if (frame, sector) == (0, 0) => ExtentContent::Zero,
            (1, 0) => {
                let start = u64::from(sector) * SECTOR_BYTES;
                let raw_bytes = frames.get(frame as usize).map_or(0, |frame| u64::from(frame.raw_bytes));
                if start + length > raw_bytes {
                    return Err(rule("an extent lies outside its frame"));
                }
                ExtentContent::Frame { frame, offset: start as u32 }
            }
            _ => return Err(rule("an extent's kind is unknown")),
        };
        if length == 0 {
            return Err(rule("an extent is empty"));
        }
        Ok(Extent { volume: u16_at(bytes, 0), offset, length, content })
    }
}

/// Checks what no single entry shows: order, overlap, volumes.
pub(super) fn check_order(extents: &[Extent], volume_sizes: &[u64]) -> Result<(), FormatError> {
    let rule = |rule| Err(FormatError::Rule { part: EXTENT_PART, rule });
    for extent in extents {
        match volume_sizes.get(usize::from(extent.volume)) {
            None => return rule("an extent names a volume that the segment does not list"),
            Some(&size) if extent.end() > size => return rule("an extent lies outside its volume"),
            Some(_) => {}
        }
    }
    let ordered = |a: &Extent, b: &Extent| (a.volume, a.end()) <= (b.volume, b.offset) || a.volume < b.volume;
    if extents.windows(2).all(|pair| ordered(&pair[0], &pair[1])) {
        Ok(())
    } else {
        rule("extents are not sorted or overlap")
    }
}
