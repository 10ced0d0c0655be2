//! Frames: blocks that are compressed together.

use super::layout::{MAX_FRAME_RAW_BYTES, at_most, hash_at, u32_at};
use crate::{BLOCK_BYTES, FormatError, Hash, SECTOR_BYTES, hash_blocks};

pub(super) const FRAME_ENTRY_BYTES: usize = 80;
const PART: &str = "the segment's frame table";
const PART_STORED: &str = "a frame";

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
    /// Hash of the bytes as stored; of a plain frame that is stored as it is, the raw hash.
    pub stored_hash: Hash,
    /// Combined hash of the bytes before compression; of a difference, of what its blocks hold when the bases are applied.
    pub raw_hash: Hash,
}

/// Hashes of consecutive blocks; the last one may be shorter.
pub fn block_hashes(bytes: &[u8]) -> Vec<Hash> {
    let mut hashes = Vec::with_capacity(bytes.len().div_ceil(BLOCK_BYTES as usize));
    let (blocks, rest) = bytes.as_chunks();
    hash_blocks(blocks, &mut hashes);
    hashes.extend((!rest.is_empty()).then(|| Hash::of(rest)));
    hashes
}

/// The hash of several blocks: that of their hashes.
pub fn combined_hash<'a>(hashes: impl IntoIterator<Item = &'a Hash>) -> Hash {
    let hashes = hashes.into_iter();
    // In one piece they are hashed several times as fast as one after the other.
    let mut bytes = Vec::with_capacity(hashes.size_hint().0 * size_of::<Hash>());
    hashes.for_each(|hash| bytes.extend_from_slice(&hash.0));
    Hash::of(&bytes)
}

/// Combines `bytes` with as many bytes of a base by exclusive or. Done twice it takes the difference back.
pub fn apply_difference(bytes: &mut [u8], base: &[u8]) {
    bytes.iter_mut().zip(base).for_each(|(byte, base)| *byte ^= base);
}

impl FrameEntry {
    /// Verifies and decompresses the frame; `stored` is exactly the frame's bytes as stored. Answers the bytes before compression
    /// with the hashes of their blocks. Of a difference there are no hashes: only what its blocks hold has some, see
    /// [`FrameEntry::check_content`].
    ///
    /// # Errors
    /// [`FormatError`] if a hash does not match, before or after decompression.
    pub fn decode_hashed<'a>(
        &self,
        decoder: &'a mut FrameDecoder,
        stored: &'a [u8],
    ) -> Result<(&'a [u8], Vec<Hash>), FormatError> {
        if self.is_hashed_once() {
            self.check_stored_size(stored)?;
            let hashes = self.check_blocks(stored, PART_STORED)?;
            return Ok((stored, hashes));
        }
        self.verify_stored(stored)?;
        let raw = match self.codec {
            FrameCodec::Stored => stored,
            FrameCodec::Zstd => decoder.decompress(stored, self.raw_bytes)?,
        };
        let hashes = match self.kind {
            FrameKind::Plain => self.check_content(raw)?,
            FrameKind::Difference { .. } => Vec::new(),
        };
        Ok((raw, hashes))
    }

    /// Verifies the bytes as stored, and decompresses them. What comes out is not hashed: of a frame whose content was checked when it was taken
    /// in, the same bytes give the same content.
    ///
    /// # Errors
    /// [`FormatError`] if the hash of the stored bytes does not match, or they are no zstd frame of the size that they should have.
    pub fn decode_verified<'a>(
        &self,
        decoder: &'a mut FrameDecoder,
        stored: &'a mut [u8],
    ) -> Result<&'a mut [u8], FormatError> {
        self.verify_stored(stored)?;
        self.decompress(decoder, stored)
    }

    /// Decompresses a frame whose stored bytes are verified.
    ///
    /// # Errors
    /// [`FormatError`] if they are no zstd frame of the size that they should have.
    pub fn decompress<'a>(
        &self,
        decoder: &'a mut FrameDecoder,
        stored: &'a mut [u8],
    ) -> Result<&'a mut [u8], FormatError> {
        match self.codec {
            FrameCodec::Stored => Ok(stored),
            FrameCodec::Zstd => decoder.decompress(stored, self.raw_bytes),
        }
    }

    /// Compares what the frame's blocks hold, of a difference when the bases are applied, with the raw hash. Answers the blocks' hashes.
    ///
    /// # Errors
    /// [`FormatError`] if the hash does not match.
    pub fn check_content(&self, content: &[u8]) -> Result<Vec<Hash>, FormatError> {
        self.check_blocks(content, "a frame's content")
    }

    /// Verifies and decompresses the frame like [`FrameEntry::decode_hashed`], into memory of its own.
    ///
    /// # Errors
    /// As that.
    pub fn decode(&self, stored: &[u8]) -> Result<Vec<u8>, FormatError> {
        let mut decoder = FrameDecoder::default();
        self.decode_hashed(&mut decoder, stored)?;
        Ok(match self.codec {
            FrameCodec::Stored => stored.to_vec(),
            FrameCodec::Zstd => decoder.raw,
        })
    }

    /// Verifies the bytes as stored, without decompressing them.
    ///
    /// # Errors
    /// [`FormatError`] if their size or hash does not match.
    pub fn verify_stored(&self, stored: &[u8]) -> Result<(), FormatError> {
        self.check_stored_size(stored)?;
        if self.is_hashed_once() {
            return self.check_blocks(stored, PART_STORED).map(drop);
        }
        if Hash::of(stored) == self.stored_hash {
            Ok(())
        } else {
            Err(FormatError::Hash { part: PART_STORED })
        }
    }

    /// Whether one hash is that of the bytes as stored and of the content.
    fn is_hashed_once(&self) -> bool {
        self.codec == FrameCodec::Stored && self.kind == FrameKind::Plain
    }

    fn check_stored_size(&self, stored: &[u8]) -> Result<(), FormatError> {
        let (expected, actual) = (self.stored_bytes.into(), stored.len() as u64);
        if expected == actual {
            return Ok(());
        }
        Err(FormatError::Truncated { part: PART_STORED, expected, actual })
    }

    fn check_blocks(&self, content: &[u8], part: &'static str) -> Result<Vec<Hash>, FormatError> {
        let hashes = block_hashes(content);
        if combined_hash(&hashes) == self.raw_hash { Ok(hashes) } else { Err(FormatError::Hash { part }) }
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
        let entry = FrameEntry { offset, stored_bytes, raw_bytes, codec, kind, stored_hash, raw_hash };
        if entry.is_hashed_once() && stored_hash != raw_hash {
            return Err(rule("a frame that is stored as it is has two hashes"));
        }
        Ok(entry)
    }
}

/// Decompresses frames, one after the other, into the same memory.
#[derive(Default)]
pub struct FrameDecoder {
    decompressor: zstd::bulk::Decompressor<'static>,
    raw: Vec<u8>,
}

impl FrameDecoder {
    /// Takes the memory with the frame that was decompressed last, and gives `spare` for the next one.
    pub fn replace_raw(&mut self, spare: Vec<u8>) -> Vec<u8> {
        std::mem::replace(&mut self.raw, spare)
    }

    fn decompress(&mut self, stored: &[u8], raw_bytes: u32) -> Result<&mut [u8], FormatError> {
        self.raw.clear();
        self.raw.reserve(raw_bytes as usize);
        match self.decompressor.decompress_to_buffer(stored, &mut self.raw) {
            Ok(size) if size == raw_bytes as usize => Ok(&mut self.raw),
            _ => Err(FormatError::Decompress { raw_bytes: raw_bytes.into() }),
        }
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

impl EncodedFrame {
    /// The bytes as stored.
    pub fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// The memory of the bytes, for another frame.
    pub fn into_buffer(self) -> Vec<u8> {
        self.stored
    }
}

/// zstd level at which a sample is compressed: the lowest that looks for frequent bytes, too.
const SAMPLE_LEVEL: i32 = 1;
/// One of so many blocks is in the sample.
const SAMPLE_STRIDE: usize = 16;
/// A smaller frame is compressed without a sample.
const SAMPLED_BYTES_MIN: usize = 256 << 10;
/// What shrinks by less than a part in so many is not worth it to compress.
const GAIN: usize = 64;

/// Compresses frames, one after the other.
pub struct FrameEncoder {
    compressor: zstd::bulk::Compressor<'static>,
    level: i32,
    /// Whether compressing the frame before was worth it: the next is likely to be of the same kind.
    gained: bool,
    sampler: zstd::bulk::Compressor<'static>,
    sample: Vec<u8>,
    compressed_sample: Vec<u8>,
}

impl FrameEncoder {
    /// Compresses at this zstd level.
    pub fn new(level: i32) -> Self {
        let compressor = |level| zstd::bulk::Compressor::new(level).expect("zstd takes every level");
        FrameEncoder {
            compressor: compressor(level),
            level,
            gained: true,
            sampler: compressor(SAMPLE_LEVEL),
            sample: Vec::new(),
            compressed_sample: Vec::new(),
        }
    }

    /// The zstd level.
    pub fn level(&self) -> i32 {
        self.level
    }

    /// Makes a plain frame of `raw`, of which `raw_hash` is the combined hash, in the memory of `buffer`, whatever that holds. What `raw` holds
    /// afterwards is of no use.
    pub fn encode(&mut self, raw: &mut Vec<u8>, raw_hash: Hash, buffer: Vec<u8>) -> EncodedFrame {
        let (stored, codec, raw_bytes) = self.store(raw, buffer);
        let stored_hash = match codec {
            FrameCodec::Stored => raw_hash,
            FrameCodec::Zstd => Hash::of(&stored),
        };
        EncodedFrame { stored, raw_bytes, codec, stored_hash, raw_hash }
    }

    /// Makes a difference frame like [`FrameEncoder::encode`]; `raw_hash` is the combined hash of what its blocks hold when the bases are applied.
    pub fn encode_difference(&mut self, raw: &mut Vec<u8>, raw_hash: Hash, buffer: Vec<u8>) -> EncodedFrame {
        let (stored, codec, raw_bytes) = self.store(raw, buffer);
        let stored_hash = Hash::of(&stored);
        EncodedFrame { stored, raw_bytes, codec, stored_hash, raw_hash }
    }

    fn store(&mut self, raw: &mut Vec<u8>, buffer: Vec<u8>) -> (Vec<u8>, FrameCodec, u32) {
        let (mut stored, raw_bytes) = (buffer, raw.len());
        stored.clear();
        let is_tried = self.gained || raw.len() < SAMPLED_BYTES_MIN || self.sample_gains(raw);
        let codec = if is_tried && self.compress(raw, &mut stored) {
            FrameCodec::Zstd
        } else {
            std::mem::swap(raw, &mut stored);
            FrameCodec::Stored
        };
        self.gained = is_worth_it(stored.len(), raw_bytes);
        (stored, codec, raw_bytes as u32)
    }

    /// Tells whether the frame became smaller.
    fn compress(&mut self, raw: &[u8], stored: &mut Vec<u8>) -> bool {
        stored.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        self.compressor.compress_to_buffer(raw, stored).is_ok_and(|size| size < raw.len())
    }

    /// Guesses from a sample whether it is worth it to compress.
    fn sample_gains(&mut self, raw: &[u8]) -> bool {
        self.sample.clear();
        let blocks = raw.chunks(BLOCK_BYTES as usize).step_by(SAMPLE_STRIDE);
        blocks.for_each(|block| self.sample.extend_from_slice(block));
        let sample_bytes = self.sample.len();
        self.compressed_sample.clear();
        self.compressed_sample.reserve(zstd::zstd_safe::compress_bound(sample_bytes));
        let compressed = self.sampler.compress_to_buffer(&self.sample, &mut self.compressed_sample);
        compressed.is_ok_and(|size| is_worth_it(size, sample_bytes))
    }
}

fn is_worth_it(stored_bytes: usize, raw_bytes: usize) -> bool {
    stored_bytes < raw_bytes - raw_bytes / GAIN
}
