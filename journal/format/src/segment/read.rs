//! Reading and verifying a segment.

use super::frame::{FrameDecoder, FrameEntry};
use super::index::{Extent, Tables, check_order};
use super::layout::{HEADER_BYTES, Header, TRAILER_BYTES, Trailer};
use super::meta::SegmentMeta;
use super::reference::{BlockPlace, Reference, SegmentSource};
use crate::{FormatError, Hash, Position};

/// Everything of a segment but its payload, verified.
#[derive(Clone, Debug)]
pub struct SegmentIndex {
    /// The header.
    pub header: Header,
    /// The trailer.
    pub trailer: Trailer,
    /// Frames in the order of their offsets.
    pub frames: Vec<FrameEntry>,
    /// Extents in the order of volume and offset.
    pub extents: Vec<Extent>,
    /// Segments that blocks are referred to in.
    pub sources: Vec<SegmentSource>,
    /// Blocks of the sources that are content of this segment.
    pub references: Vec<Reference>,
    /// Blocks of the sources that differences are taken from.
    pub bases: Vec<BlockPlace>,
    /// Volumes, point and definition.
    pub meta: SegmentMeta,
}

impl SegmentIndex {
    /// Verifies and decodes. `header` is the segment's first [`HEADER_BYTES`] bytes, `tail` all bytes from
    /// [`Trailer::index_offset`] to the end, `file_bytes` the size of the whole.
    ///
    /// # Errors
    /// [`FormatError`] if any of these bytes is not what it was when the segment was sealed.
    pub fn decode(header: &[u8], tail: &[u8], file_bytes: u64) -> Result<SegmentIndex, FormatError> {
        let decoded_header = Header::decode(header)?;
        let trailer_at = tail.len().saturating_sub(TRAILER_BYTES);
        let trailer = Trailer::decode(&tail[trailer_at..], header, file_bytes)?;
        if tail.len() as u64 != file_bytes - trailer.index_offset {
            let (expected, actual) = (file_bytes - trailer.index_offset, tail.len() as u64);
            return Err(FormatError::Truncated { part: "the segment's index", expected, actual });
        }
        let (index, meta) = tail[..trailer_at].split_at(trailer.index_stored_bytes as usize);
        if Hash::of(index) != trailer.index_hash {
            return Err(FormatError::Hash { part: "the segment's index" });
        }
        if Hash::of(meta) != trailer.meta_hash {
            return Err(FormatError::Hash { part: "the segment's meta section" });
        }
        let meta = SegmentMeta::decode(meta, decoded_header.last_epoch)?;
        if decoded_header.more_parts && meta.point.is_some() {
            let rule = "a part that others follow completes no point";
            return Err(FormatError::Rule { part: "the segment's meta section", rule });
        }
        let Tables { frames, extents, sources, references, bases } = decode_index(index, &trailer)?;
        check_order(&extents, &meta.volume_sizes())?;
        Ok(SegmentIndex {
            header: decoded_header,
            trailer,
            frames,
            extents,
            sources,
            references,
            bases,
            meta,
        })
    }

    /// Frees the memory of all tables.
    pub fn drop_tables(&mut self) {
        (self.frames, self.extents) = (Vec::new(), Vec::new());
        (self.sources, self.references, self.bases) = (Vec::new(), Vec::new(), Vec::new());
    }

    /// The position that the segment ends at.
    pub fn position(&self) -> Position {
        self.header.position(self.trailer.hash)
    }
}

fn decode_index(index: &[u8], trailer: &Trailer) -> Result<Tables, FormatError> {
    let raw_bytes = trailer.index_raw_bytes as usize;
    let raw = zstd::bulk::decompress(index, raw_bytes)
        .ok()
        .filter(|raw| raw.len() == raw_bytes)
        .ok_or(FormatError::Decompress { raw_bytes: raw_bytes as u64 })?;
    Tables::decode(&raw, trailer)
}

/// Verifies every byte of a whole segment in memory. What it refers to is not looked at.
///
/// # Errors
/// [`FormatError`] if any byte is not what it was when the segment was sealed.
pub fn verify_segment(bytes: &[u8]) -> Result<SegmentIndex, FormatError> {
    let file_bytes = bytes.len() as u64;
    let Some(trailer) = bytes.len().checked_sub(TRAILER_BYTES).map(|at| &bytes[at..]) else {
        let expected = (HEADER_BYTES + TRAILER_BYTES) as u64;
        return Err(FormatError::Truncated { part: "the segment", expected, actual: file_bytes });
    };
    let index_offset = Trailer::decode(trailer, bytes, file_bytes)?.index_offset as usize;
    let index = SegmentIndex::decode(bytes, &bytes[index_offset..], file_bytes)?;
    let mut decoder = FrameDecoder::default();
    for frame in &index.frames {
        let start = frame.offset as usize;
        frame.decode_hashed(&mut decoder, &bytes[start..start + frame.stored_bytes as usize])?;
    }
    Ok(index)
}
