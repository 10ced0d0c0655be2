//! Frames: blocks that are compressed together.

use super::layout::{MAX_FRAME_RAW_BYTES, at_most, hash_at, u32_at};
use crate::{BLOCK_BYTES, FormatError, Hash, SECTOR_BYTES};

pub(super) const FRAME_ENTRY_BYTES: usize = 80;
const PART: &str = "the segment's frame table";

/// How a frame is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameCodec {
    /// As it is.
    Stored,
    /// One zstd frame.
    Zstd,
}

/// What a frame's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The bytes themselves.
    Plain,
    /// Blocks, each combined by exclusive or with a base.
    Difference {
        /// Where its bases begin in [`SegmentIndex::bases`](super::SegmentIndex::bases): one for each block.
        first_base: u32,
        /// Combined hash of the bases.
        bases_hash: Hash,
    },
}

/// One frame of a segment.
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
    /// What its bytes are.
    pub kind: FrameKind,
    /// Hash of the bytes as stored.
    pub stored_hash: Hash,
    /// Combined hash of the bytes before compression.
    pub raw_hash: Hash,
}

/// Hashes of consecutive blocks; the last one may be shorter.
pub fn block_hashes(bytes: &[u8]) -> Vec<Hash> {
    bytes.chunks(BLOCK_BYTES as usize).map(Hash::of).collect()
}

/// The hash of several blocks: that of their hashes.
pub fn combined_hash<'a>(hashes: impl IntoIterator<Item = &'a Hash>) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for hash in hashes {
        hasher.update(&hash.0);
    }
    Hash(*hasher.finalize().as_bytes())
}

/// Combines `bytes` with as many bytes of a base by exclusive or. Done twice it takes the difference back.
pub fn apply_difference(bytes: &mut [u8], base: &[u8]) {
    bytes.iter_mut().zip(base).for_each(|(byte, base)| *byte ^= base);
}

impl FrameEntry {
    /// Verifies and decompresses the frame; `stored` is exactly the frame's bytes as stored. Answers the bytes before compression
    /// with the hashes of their blocks. What a difference is taken from is not applied.
    ///
    /// # Errors
    /// [`FormatError`] if a hash does not match, before or after decompression.
    pub fn decode_hashed(&self, stored: &[u8]) -> Result<(Vec<u8>, Vec<Hash>), FormatError> {
        let raw = self.decode(stored)?;
        let hashes = block_hashes(&raw);
        if combined_hash(&hashes) == self.raw_hash {
            Ok((raw, hashes))
        } else {
            Err(FormatError::Hash { part: "a frame's content" })
        }
    }

    fn decode(&self, stored: &[u8]) -> Result<Vec<u8>, FormatError> {
        const PART: &str = "a frame";
        if stored.len() != self.stored_bytes as usize {
            let (expected, actual) = (self.stored_bytes.into(), stored.len() as u64);
            return Err(FormatError::Truncated { part: PART, expected, actual });
        }
        if Hash::of(stored) != self.stored_hash {
            return Err(FormatError::Hash { part: PART });
        }
        match self.codec {
            FrameCodec::Stored => Ok(stored.to_vec()),
            FrameCodec::Zstd => zstd::bulk::decompress(stored, self.raw_bytes as usize)
                .ok()
                .filter(|raw| raw.len() == self.raw_bytes as usize)
                .ok_or(FormatError::Decompress { raw_bytes: self.raw_bytes.into() }),
        }
    }

    /// Number of its blocks.
    pub fn blocks(&self) -> usize {
        (self.raw_bytes as usize).div_ceil(BLOCK_BYTES as usize)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let codec = match self.codec {
            FrameCodec::Stored => 0,
            FrameCodec::Zstd => 1,
        };
        let kind = match self.kind {
            FrameKind::Plain => 0,
            FrameKind::Difference { .. } => 1,
        };
        out.extend_from_slice(&self.stored_bytes.to_le_bytes());
        out.extend_from_slice(&self.raw_bytes.to_le_bytes());
        out.extend_from_slice(&[codec, kind, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.stored_hash.0);
        out.extend_from_slice(&self.raw_hash.0);
    }

    /// Decodes an entry. `difference` is asked what a difference of so many blocks is taken from.
    pub(super) fn decode_entry(
        bytes: &[u8],
        offset: u64,
        difference: impl FnOnce(usize) -> Option<FrameKind>,
    ) -> Result<FrameEntry, FormatError> {
        let rule = |rule| FormatError::Rule { part: PART, rule };
        let (stored_bytes, raw_bytes) = (u32_at(bytes, 0), u32_at(bytes, 4));
        at_most("a frame", raw_bytes.into(), MAX_FRAME_RAW_BYTES.into())?;
        if raw_bytes == 0 || !u64::from(raw_bytes).is_multiple_of(SECTOR_BYTES) {
            return Err(rule("a frame's size is not a positive multiple of 512 bytes"));
        }
        let codec = match bytes[8] {
            0 if stored_bytes == raw_bytes => FrameCodec::Stored,
            1 if stored_bytes < raw_bytes => FrameCodec::Zstd,
            _ => return Err(rule("a frame's codec is unknown or does not fit its size")),
        };
        let whole_blocks = u64::from(raw_bytes).is_multiple_of(BLOCK_BYTES);
        let kind = match bytes[9] {
            0 => FrameKind::Plain,
            1 if whole_blocks => difference(raw_bytes as usize / BLOCK_BYTES as usize)
                .ok_or_else(|| rule("a difference has no bases"))?,
            _ => return Err(rule("a frame's kind is unknown or does not fit its size")),
        };
        if bytes[10..16] != [0; 6] {
            return Err(rule("a reserved field is set"));
        }
        let (stored_hash, raw_hash) = (hash_at(bytes, 16), hash_at(bytes, 48));
        Ok(FrameEntry { offset, stored_bytes, raw_bytes, codec, kind, stored_hash, raw_hash })
    }
}

/// A frame that is ready for a segment.
#[derive(Clone, Debug)]
pub struct EncodedFrame {
    pub(super) stored: Vec<u8>,
    pub(super) raw_bytes: u32,
    pub(super) codec: FrameCodec,
    pub(super) stored_hash: Hash,
    pub(super) raw_hash: Hash,
}

/// Compresses frames, one after the other.
pub struct FrameEncoder {
    compressor: zstd::bulk::Compressor<'static>,
    level: i32,
}

impl FrameEncoder {
    /// Compresses at this zstd level.
    pub fn new(level: i32) -> Self {
        let compressor = zstd::bulk::Compressor::new(level).expect("zstd takes every level");
        FrameEncoder { compressor, level }
    }

    /// The zstd level.
    pub fn level(&self) -> i32 {
        self.level
    }

    /// Makes a frame of `raw`, of which `raw_hash` is the combined hash.
    pub fn encode(&mut self, raw: &[u8], raw_hash: Hash) -> EncodedFrame {
        let mut stored = Vec::with_capacity(zstd::zstd_safe::compress_bound(raw.len()));
        let compressed = self.compressor.compress_to_buffer(raw, &mut stored);
        let codec = match compressed {
            Ok(size) if size < raw.len() => FrameCodec::Zstd,
            _ => {
                stored.clear();
                stored.extend_from_slice(raw);
                FrameCodec::Stored
            }
        };
        let stored_hash = Hash::of(&stored);
        EncodedFrame { stored, raw_bytes: raw.len() as u32, codec, stored_hash, raw_hash }
    }
}
