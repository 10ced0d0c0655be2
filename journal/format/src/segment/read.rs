//! Reading and verifying a segment.

use super::index::{EXTENT_ENTRY_BYTES, Extent, FRAME_ENTRY_BYTES, FrameEntry, check_order};
use super::layout::{HEADER_BYTES, Header, TRAILER_BYTES, Trailer};
use super::meta::SegmentMeta;
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
        let (frames, extents) = decode_index(index, &trailer)?;
        check_order(&extents, &meta.volume_sizes())?;
        Ok(SegmentIndex { header: decoded_header, trailer, frames, extents, meta })
    }

    /// The position that the segment ends at.
    pub fn position(&self) -> Position {
        self.header.position(self.trailer.hash)
    }
}

fn decode_index(index: &[u8], trailer: &Trailer) -> Result<(Vec<FrameEntry>, Vec<Extent>), FormatError> {
    const PART: &str = "the segment's index";
    let raw_bytes = trailer.index_raw_bytes as usize;
    let frame_bytes = trailer.frame_count as usize * FRAME_ENTRY_BYTES;
    if frame_bytes + trailer.extent_count as usize * EXTENT_ENTRY_BYTES != raw_bytes {
        return Err(FormatError::Rule { part: PART, rule: "its tables do not fill it" });
    }
    let raw = zstd::bulk::decompress(index, raw_bytes)
        .ok()
        .filter(|raw| raw.len() == raw_bytes)
        .ok_or(FormatError::Decompress { raw_bytes: raw_bytes as u64 })?;
    let (frame_table, extent_table) = raw.split_at(frame_bytes);
    let mut frames = Vec::with_capacity(trailer.frame_count as usize);
    let (mut offset, mut payload_bytes) = (HEADER_BYTES as u64, 0);
    for entry in frame_table.chunks_exact(FRAME_ENTRY_BYTES) {
        let frame = FrameEntry::decode_entry(entry, offset)?;
        offset += u64::from(frame.stored_bytes);
        payload_bytes += u64::from(frame.raw_bytes);
        frames.push(frame);
    }
    if offset != trailer.index_offset || payload_bytes != trailer.payload_bytes {
        return Err(FormatError::Rule { part: PART, rule: "its frames do not fill the space before it" });
    }
    let extents = extent_table
        .chunks_exact(EXTENT_ENTRY_BYTES)
        .map(|entry| Extent::decode_entry(entry, &frames))
        .collect::<Result<_, _>>()?;
    Ok((frames, extents))
}

/// Verifies every byte of a whole segment in memory.
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
    for frame in &index.frames {
        let start = frame.offset as usize;
        frame.decode(&bytes[start..start + frame.stored_bytes as usize])?;
    }
    Ok(index)
}
