//! Reading a segment's index from a bucket: everything but the payload, with one request or two, and from this machine's disk the next time.

use std::sync::Arc;

use bytes::Bytes;
use journal_format::segment::{HEADER_BYTES, SegmentIndex, TRAILER_BYTES, Trailer};
use journal_format::{FormatError, Hash};
use object_store::GetRange;
use object_store::path::Path;

use super::objects::{Objects, SharedError};
use crate::disk_cache::{DiskCache, Kind};

/// A segment that is not larger is read whole, with one request.
const WHOLE_BYTES_MAX: u64 = 256 << 10;
/// How much of the end of a larger one is asked for before it is known where its index begins: two of three indexes are smaller.
const TAIL_BYTES: u64 = 64 << 10;
/// Behind the size of the segment, and in front of the header, in a file of the cache.
const SIZE_BYTES: usize = 8;

/// What was read of a segment; not verified.
pub(super) struct Outline {
    object_bytes: u64,
    header: Bytes,
    tail: Bytes,
    /// The payload, if it came along.
    payload: Option<Bytes>,
}

/// Why a segment's index cannot be had.
#[derive(Debug)]
pub(super) enum IndexError {
    /// The bucket does not answer, or has no such object.
    Request(SharedError),
    /// The object is damaged.
    Damaged(FormatError),
}

impl From<SharedError> for IndexError {
    fn from(error: SharedError) -> Self {
        IndexError::Request(error)
    }
}

/// Reads the outline of an object. `size_bytes` is what a listing says, if there was one.
pub(super) async fn fetch(
    objects: &Objects,
    key: &Path,
    size_bytes: Option<u64>,
) -> Result<Outline, IndexError> {
    match size_bytes {
        Some(size) if size <= WHOLE_BYTES_MAX => {
            let piece = objects.get(key, Some(GetRange::Bounded(0..size))).await?;
            whole(piece.bytes)
        }
        Some(_) => {
            let header = objects.get(key, Some(GetRange::Bounded(0..HEADER_BYTES as u64)));
            let tail = objects.get(key, Some(GetRange::Suffix(TAIL_BYTES)));
            let (header, tail) = futures::try_join!(header, tail)?;
            assemble(objects, key, header.bytes, tail.meta.size, tail.bytes).await
        }
        None => {
            let tail = objects.get(key, Some(GetRange::Suffix(TAIL_BYTES))).await?;
            if tail.start == 0 {
                return whole(tail.bytes);
            }
            let header = objects.get(key, Some(GetRange::Bounded(0..HEADER_BYTES as u64))).await?;
            assemble(objects, key, header.bytes, tail.meta.size, tail.bytes).await
        }
    }
}

/// Adds what lies before `tail`, if the index begins there.
async fn assemble(
    objects: &Objects,
    key: &Path,
    header: Bytes,
    object_bytes: u64,
    tail: Bytes,
) -> Result<Outline, IndexError> {
    let index_offset = index_offset(&header, &tail, object_bytes)?;
    let tail_at = object_bytes - tail.len() as u64;
    let tail = if index_offset >= tail_at {
        tail.slice((index_offset - tail_at) as usize..)
    } else {
        let rest = objects.get(key, Some(GetRange::Bounded(index_offset..tail_at))).await?;
        [&rest.bytes[..], &tail[..]].concat().into()
    };
    Ok(Outline { object_bytes, header, tail, payload: None })
}

fn whole(bytes: Bytes) -> Result<Outline, IndexError> {
    let object_bytes = bytes.len() as u64;
    let header = bytes.slice(..bytes.len().min(HEADER_BYTES));
    let index_offset = index_offset(&header, &bytes, object_bytes)?;
    let tail = bytes.slice(index_offset as usize..);
    Ok(Outline { object_bytes, header, tail, payload: Some(bytes) })
}

/// Where the index begins, which is checked against the format's limits and the object's size.
fn index_offset(header: &[u8], tail: &[u8], object_bytes: u64) -> Result<u64, IndexError> {
    let smallest = (HEADER_BYTES + TRAILER_BYTES) as u64;
    if object_bytes < smallest || header.len() < HEADER_BYTES || tail.len() < TRAILER_BYTES {
        let part = "the segment";
        return Err(IndexError::Damaged(FormatError::Truncated {
            part,
            expected: smallest,
            actual: object_bytes,
        }));
    }
    let trailer = Trailer::decode(&tail[tail.len() - TRAILER_BYTES..], header, object_bytes);
    trailer.map(|trailer| trailer.index_offset).map_err(IndexError::Damaged)
}

impl Outline {
    /// Verifies it.
    pub(super) fn decode(&self) -> Result<SegmentIndex, IndexError> {
        SegmentIndex::decode(&self.header, &self.tail, self.object_bytes).map_err(IndexError::Damaged)
    }

    /// Keeps what was verified, and the payload if it came along.
    pub(super) fn keep(&self, index: &SegmentIndex, disk: &DiskCache) {
        let size = self.object_bytes.to_le_bytes();
        disk.put(Kind::Index, &index.trailer.hash, &[&size, &self.header, &self.tail]);
        let Some(payload) = &self.payload else { return };
        for frame in &index.frames {
            let from = frame.offset as usize;
            if let Some(stored) = payload.get(from..from + frame.stored_bytes as usize) {
                disk.put(Kind::Frame, &frame.stored_hash, &[stored]);
            }
        }
    }
}

/// What is kept of a segment on this machine; nothing if there is nothing, or it is damaged.
pub(super) fn kept(disk: &Arc<DiskCache>, hash: &Hash) -> Option<SegmentIndex> {
    let bytes = disk.get(Kind::Index, hash)?;
    let index = decode_kept(&bytes).filter(|index| index.trailer.hash == *hash);
    if index.is_none() {
        disk.remove(Kind::Index, hash);
    }
    index
}

fn decode_kept(bytes: &[u8]) -> Option<SegmentIndex> {
    let (size, rest) = bytes.split_first_chunk::<SIZE_BYTES>()?;
    let (header, tail) = rest.split_at_checked(HEADER_BYTES)?;
    let object_bytes = u64::from_le_bytes(*size);
    let trailer = tail.len().checked_sub(TRAILER_BYTES).map(|at| &tail[at..])?;
    Trailer::decode(trailer, header, object_bytes).ok()?;
    SegmentIndex::decode(header, tail, object_bytes).ok()
}
