//! The fixed parts: header and trailer. Offsets are those of the tables in `FORMAT.md`; everything is little endian.

use crate::{Epoch, FormatError, Generation, GroupName, Hash, Position, Sequence, Timestamp};

/// Version of the segment format that this build writes and reads.
pub const FORMAT_VERSION: u32 = 3;
/// Size of the header in bytes.
pub const HEADER_BYTES: usize = 192;
/// Size of the trailer in bytes.
pub const TRAILER_BYTES: usize = 160;
/// Largest segment in bytes.
pub const MAX_SEGMENT_BYTES: u64 = 256 << 20;
/// Largest frame in bytes before compression.
pub const MAX_FRAME_RAW_BYTES: u32 = 4 << 20;
/// Largest index in bytes before compression.
pub const MAX_INDEX_RAW_BYTES: u32 = 64 << 20;
/// Steps from a difference to the plain block under it, at most.
pub const DIFFERENCE_STEPS_MAX: u8 = 4;
/// Largest meta section in bytes.
pub const MAX_META_BYTES: u32 = 4 << 20;
/// Largest VM definition in bytes.
pub const MAX_DEFINITION_BYTES: usize = 1 << 20;

const HEADER_MAGIC: &[u8; 8] = b"3SITESEG";
const TRAILER_MAGIC: &[u8; 8] = b"3SITEEND";
const FLAG_MORE_PARTS: u16 = 1;
const HEADER_HASHED: usize = 160;
const TRAILER_HASHED: usize = 128;
const GROUP_OFFSET: usize = 96;

/// What a segment says of itself and of its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Group whose changes it carries.
    pub group: GroupName,
    /// Generation of its writer.
    pub generation: Generation,
    /// Its place in the chain.
    pub sequence: Sequence,
    /// First epoch that it carries.
    pub first_epoch: Epoch,
    /// Last epoch that it carries.
    pub last_epoch: Epoch,
    /// Its place among the parts of the same epochs, from 0.
    pub part: u16,
    /// Whether a further part of the same epochs follows.
    pub more_parts: bool,
    /// When it was sealed, by the writer's clock.
    pub sealed_at: Timestamp,
    /// Hash of the segment before it, [`Hash::ZERO`] for the first.
    pub parent: Hash,
}

impl Header {
    /// The position that this segment ends at, given its hash.
    pub fn position(&self, hash: Hash) -> Position {
        Position { generation: self.generation, sequence: self.sequence, epoch: self.last_epoch, hash }
    }

    /// Encodes the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..8].copy_from_slice(HEADER_MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        let flags = if self.more_parts { FLAG_MORE_PARTS } else { 0 };
        out[12..14].copy_from_slice(&flags.to_le_bytes());
        out[14..16].copy_from_slice(&self.part.to_le_bytes());
        out[16..24].copy_from_slice(&self.generation.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.sequence.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.first_epoch.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.last_epoch.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.sealed_at.0.to_le_bytes());
        out[64..96].copy_from_slice(&self.parent.0);
        let group = self.group.as_str().as_bytes();
        out[GROUP_OFFSET] = group.len() as u8;
        out[GROUP_OFFSET + 1..GROUP_OFFSET + 1 + group.len()].copy_from_slice(group);
        let hash = Hash::of(&out[..HEADER_HASHED]);
        out[HEADER_HASHED..].copy_from_slice(&hash.0);
        out
    }

    /// Decodes and verifies a header.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`Header::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<Header, FormatError> {
        const PART: &str = "the segment's header";
        check_prefix(PART, bytes, HEADER_BYTES, HEADER_MAGIC)?;
        if bytes[HEADER_HASHED..HEADER_BYTES] != Hash::of(&bytes[..HEADER_HASHED]).0 {
            return Err(FormatError::Hash { part: PART });
        }
        let rule = |rule| FormatError::Rule { part: PART, rule };
        let flags = u16_at(bytes, 12);
        if flags & !FLAG_MORE_PARTS != 0 || u64_at(bytes, 56) != 0 {
            return Err(rule("an unknown flag or a reserved field is set"));
        }
        let header = Header {
            group: group_at(bytes).ok_or_else(|| rule("the group's name is not valid"))?,
            generation: Generation(u64_at(bytes, 16)),
            sequence: Sequence(u64_at(bytes, 24)),
            first_epoch: Epoch(u64_at(bytes, 32)),
            last_epoch: Epoch(u64_at(bytes, 40)),
            part: u16_at(bytes, 14),
            more_parts: flags & FLAG_MORE_PARTS != 0,
            sealed_at: Timestamp(u64_at(bytes, 48) as i64),
            parent: hash_at(bytes, 64),
        };
        if header.generation.0 == 0 || header.sequence.0 == 0 || header.first_epoch.0 == 0 {
            return Err(rule("generation, sequence and epoch begin at 1"));
        }
        if header.first_epoch > header.last_epoch {
            return Err(rule("the first epoch is later than the last"));
        }
        if (header.sequence.0 == 1) != (header.parent == Hash::ZERO) {
            return Err(rule("the first segment, and only the first, has no parent"));
        }
        Ok(header)
    }
}

/// Where the parts of a segment lie and what they hash to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Size of the whole segment in bytes.
    pub file_bytes: u64,
    /// Offset of the index in bytes; the frames lie between the header and it.
    pub index_offset: u64,
    /// Size of the index as stored, in bytes.
    pub index_stored_bytes: u32,
    /// Size of the index decompressed, in bytes.
    pub index_raw_bytes: u32,
    /// Entries in the frame table.
    pub frame_count: u32,
    /// Entries in the extent table.
    pub extent_count: u32,
    /// Size of the meta section in bytes; it follows the index.
    pub meta_bytes: u32,
    /// Sum of the frames' sizes before compression, in bytes.
    pub payload_bytes: u64,
    /// Hash of the index as stored.
    pub index_hash: Hash,
    /// Hash of the meta section.
    pub meta_hash: Hash,
    /// Hash of header and trailer: the segment's own, which names it in the chain.
    pub hash: Hash,
}

impl Trailer {
    /// Encodes the trailer and sets `hash` from `header`, the encoded header.
    pub(super) fn encode(&mut self, header: &[u8; HEADER_BYTES]) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        out[0..8].copy_from_slice(TRAILER_MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.file_bytes.to_le_bytes());
        out[24..32].copy_from_slice(&self.index_offset.to_le_bytes());
        out[32..36].copy_from_slice(&self.index_stored_bytes.to_le_bytes());
        out[36..40].copy_from_slice(&self.index_raw_bytes.to_le_bytes());
        out[40..44].copy_from_slice(&self.frame_count.to_le_bytes());
        out[44..48].copy_from_slice(&self.extent_count.to_le_bytes());
        out[48..52].copy_from_slice(&self.meta_bytes.to_le_bytes());
        out[56..64].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[64..96].copy_from_slice(&self.index_hash.0);
        out[96..128].copy_from_slice(&self.meta_hash.0);
        self.hash = segment_hash(header, &out);
        out[TRAILER_HASHED..].copy_from_slice(&self.hash.0);
        out
    }

    /// Decodes a trailer and verifies it together with `header`, the first [`HEADER_BYTES`] bytes of the same segment.
    ///
    /// # Errors
    /// [`FormatError`] if the trailer is damaged, belongs to another header, or states sizes over the format's limits or
    /// other than `file_bytes`.
    pub fn decode(bytes: &[u8], header: &[u8], file_bytes: u64) -> Result<Trailer, FormatError> {
        const PART: &str = "the segment's trailer";
        check_prefix(PART, bytes, TRAILER_BYTES, TRAILER_MAGIC)?;
        let hash = hash_at(bytes, TRAILER_HASHED);
        if header.len() < HEADER_BYTES || segment_hash(&header[..HEADER_BYTES], bytes) != hash {
            return Err(FormatError::Hash { part: PART });
        }
        let trailer = Trailer {
            file_bytes: u64_at(bytes, 16),
            index_offset: u64_at(bytes, 24),
            index_stored_bytes: u32_at(bytes, 32),
            index_raw_bytes: u32_at(bytes, 36),
            frame_count: u32_at(bytes, 40),
            extent_count: u32_at(bytes, 44),
            meta_bytes: u32_at(bytes, 48),
            payload_bytes: u64_at(bytes, 56),
            index_hash: hash_at(bytes, 64),
            meta_hash: hash_at(bytes, 96),
            hash,
        };
        if u32_at(bytes, 12) != 0 || u32_at(bytes, 52) != 0 {
            return Err(FormatError::Rule { part: PART, rule: "a reserved field is set" });
        }
        trailer.check_sizes(PART, file_bytes)?;
        Ok(trailer)
    }

    fn check_sizes(&self, part: &'static str, file_bytes: u64) -> Result<(), FormatError> {
        at_most("the segment", self.file_bytes, MAX_SEGMENT_BYTES)?;
        at_most("the segment's index", self.index_raw_bytes.into(), MAX_INDEX_RAW_BYTES.into())?;
        at_most("the segment's meta section", self.meta_bytes.into(), MAX_META_BYTES.into())?;
        if self.file_bytes != file_bytes {
            return Err(FormatError::Truncated { part, expected: self.file_bytes, actual: file_bytes });
        }
        let tail = u64::from(self.index_stored_bytes) + u64::from(self.meta_bytes) + TRAILER_BYTES as u64;
        let end = self.index_offset.checked_add(tail);
        if self.index_offset < HEADER_BYTES as u64 || end != Some(file_bytes) {
            return Err(FormatError::Rule { part, rule: "its parts do not fill the segment" });
        }
        Ok(())
    }
}

fn segment_hash(header: &[u8], trailer: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header).update(&trailer[..TRAILER_HASHED]);
    Hash(*hasher.finalize().as_bytes())
}

fn check_prefix(part: &'static str, bytes: &[u8], size: usize, magic: &[u8; 8]) -> Result<(), FormatError> {
    if bytes.len() < size {
        return Err(FormatError::Truncated { part, expected: size as u64, actual: bytes.len() as u64 });
    }
    if &bytes[..8] != magic {
        return Err(FormatError::Magic { part });
    }
    let found = u32_at(bytes, 8);
    if found != FORMAT_VERSION {
        return Err(FormatError::Version { found, supported: FORMAT_VERSION });
    }
    Ok(())
}

fn group_at(bytes: &[u8]) -> Option<GroupName> {
    padded_name(&bytes[GROUP_OFFSET..HEADER_HASHED])
}

/// A name behind its length in one byte, padded with zeroes.
pub(super) fn padded_name(field: &[u8]) -> Option<GroupName> {
    let (length, field) = field.split_first()?;
    let (name, padding) = field.split_at_checked(usize::from(*length))?;
    let padded = padding.iter().all(|&byte| byte == 0);
    padded.then(|| std::str::from_utf8(name).ok()?.parse().ok())?
}

pub(super) fn at_most(part: &'static str, actual: u64, limit: u64) -> Result<(), FormatError> {
    if actual <= limit { Ok(()) } else { Err(FormatError::TooLarge { part, actual, limit }) }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(super) fn hash_at(bytes: &[u8], at: usize) -> Hash {
    Hash(bytes[at..at + 32].try_into().expect("32 bytes"))
}
