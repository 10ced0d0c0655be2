//! The index: tables of frames, extents, and what lies in other segments. Stored as one zstd stream.

use super::frame::{FRAME_ENTRY_BYTES, FrameEntry, FrameKind};
use super::layout::{HEADER_BYTES, Trailer, hash_at, u16_at, u32_at, u64_at};
use super::reference::{
    BlockPlace, PLACE_BYTES, REFERENCE_ENTRY_BYTES, Reference, SOURCE_ENTRY_BYTES, SegmentSource,
};
use crate::{BLOCK_BYTES, FormatError, Hash, SECTOR_BYTES};

const COUNTS_BYTES: usize = 16;
pub(super) const EXTENT_ENTRY_BYTES: usize = 24;
const HASH_BYTES: usize = 32;
const PART: &str = "the segment's index";
const EXTENT_PART: &str = "the segment's extent table";

/// All tables of the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) frames: Vec<FrameEntry>,
    pub(super) extents: Vec<Extent>,
    pub(super) sources: Vec<SegmentSource>,
    pub(super) references: Vec<Reference>,
    pub(super) bases: Vec<BlockPlace>,
}

impl Tables {
    fn difference_hashes(&self) -> impl Iterator<Item = Hash> {
        self.frames.iter().filter_map(|frame| match frame.kind {
            FrameKind::Plain => None,
            FrameKind::Difference { bases_hash, .. } => Some(bases_hash),
        })
    }

    /// Size before compression, in bytes.
    pub(super) fn raw_bytes(&self) -> usize {
        // A difference frame for each frame is an upper bound that is near enough.
        COUNTS_BYTES
            + self.frames.len() * (FRAME_ENTRY_BYTES + HASH_BYTES)
            + self.extents.len() * EXTENT_ENTRY_BYTES
            + self.sources.len() * SOURCE_ENTRY_BYTES
            + self.references.len() * REFERENCE_ENTRY_BYTES
            + self.bases.len() * PLACE_BYTES
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.raw_bytes());
        let differences = self.difference_hashes().count();
        for count in [self.sources.len(), self.references.len(), differences, self.bases.len()] {
            out.extend_from_slice(&(count as u32).to_le_bytes());
        }
        self.frames.iter().for_each(|frame| frame.encode(&mut out));
        self.extents.iter().for_each(|extent| extent.encode(&mut out));
        self.sources.iter().for_each(|source| source.encode(&mut out));
        self.references.iter().for_each(|reference| reference.encode(&mut out));
        self.difference_hashes().for_each(|hash| out.extend_from_slice(&hash.0));
        self.bases.iter().for_each(|base| base.encode(&mut out));
        out
    }

    /// Decodes the tables; `raw` was verified. Checks every entry, and that the frames fill the space before the index.
    pub(super) fn decode(raw: &[u8], trailer: &Trailer) -> Result<Tables, FormatError> {
        let rule = |rule| FormatError::Rule { part: PART, rule };
        if raw.len() < COUNTS_BYTES {
            return Err(rule("its tables do not fill it"));
        }
        let [sources, references, differences, bases] = [0, 4, 8, 12].map(|at| u32_at(raw, at) as usize);
        let sizes = [
            trailer.frame_count as usize * FRAME_ENTRY_BYTES,
            trailer.extent_count as usize * EXTENT_ENTRY_BYTES,
            sources * SOURCE_ENTRY_BYTES,
            references * REFERENCE_ENTRY_BYTES,
            differences * HASH_BYTES,
            bases * PLACE_BYTES,
        ];
        if sizes.iter().sum::<usize>() != raw.len() - COUNTS_BYTES {
            return Err(rule("its tables do not fill it"));
        }
        let mut rest = &raw[COUNTS_BYTES..];
        let [frames, extents, sources, references, differences, bases] = sizes.map(|size| {
            let (table, behind) = rest.split_at(size);
            rest = behind;
            table
        });
        let sources: Vec<SegmentSource> = sources
            .chunks_exact(SOURCE_ENTRY_BYTES)
            .map(SegmentSource::decode_entry)
            .collect::<Result<_, _>>()?;
        let references = references
            .chunks_exact(REFERENCE_ENTRY_BYTES)
            .map(|entry| Reference::decode_entry(entry, sources.len()))
            .collect::<Result<Vec<_>, _>>()?;
        let bases = bases
            .chunks_exact(PLACE_BYTES)
            .map(|entry| BlockPlace::decode_entry(entry, sources.len()))
            .collect::<Result<Vec<_>, _>>()?;
        let frames = decode_frames(frames, trailer, differences, bases.len())?;
        let extents = extents
            .chunks_exact(EXTENT_ENTRY_BYTES)
            .map(|entry| Extent::decode_entry(entry, &frames, references.len()))
            .collect::<Result<_, _>>()?;
        Ok(Tables { frames, extents, sources, references, bases })
    }
}

fn decode_frames(
    table: &[u8],
    trailer: &Trailer,
    differences: &[u8],
    bases: usize,
) -> Result<Vec<FrameEntry>, FormatError> {
    let rule = |rule| FormatError::Rule { part: PART, rule };
    let mut frames = Vec::with_capacity(trailer.frame_count as usize);
    let (mut offset, mut payload_bytes) = (HEADER_BYTES as u64, 0);
    let (mut hashes, mut first_base) = (differences.chunks_exact(HASH_BYTES), 0);
    for entry in table.chunks_exact(FRAME_ENTRY_BYTES) {
        let frame = FrameEntry::decode_entry(entry, offset, |blocks| {
            let bases_hash = hash_at(hashes.next()?, 0);
            let kind = FrameKind::Difference { first_base: first_base as u32, bases_hash };
            first_base += blocks;
            (first_base <= bases).then_some(kind)
        })?;
        offset += u64::from(frame.stored_bytes);
        payload_bytes += u64::from(frame.raw_bytes);
        frames.push(frame);
    }
    if hashes.next().is_some() || first_base != bases {
        return Err(rule("there are bases without a difference"));
    }
    if offset != trailer.index_offset || payload_bytes != trailer.payload_bytes {
        return Err(rule("its frames do not fill the space before it"));
    }
    Ok(frames)
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
    /// Blocks of another segment: index into the references.
    Reference(u32),
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
            ExtentContent::Reference(number) => (2, number, 0),
        };
        out.extend_from_slice(&self.volume.to_le_bytes());
        out.extend_from_slice(&[kind, 0]);
        out.extend_from_slice(&((self.length / SECTOR_BYTES) as u32).to_le_bytes());
        out.extend_from_slice(&(self.offset / SECTOR_BYTES).to_le_bytes());
        out.extend_from_slice(&frame.to_le_bytes());
        out.extend_from_slice(&(offset / SECTOR_BYTES as u32).to_le_bytes());
    }

    fn decode_entry(bytes: &[u8], frames: &[FrameEntry], references: usize) -> Result<Extent, FormatError> {
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
            (2, 0) if (frame as usize) < references && sector == 0 => {
                if !length.is_multiple_of(BLOCK_BYTES) {
                    return Err(rule("a reference is not one to whole blocks"));
                }
                ExtentContent::Reference(frame)
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
