//! A segment as a file: read with ranged reads, verified before anything of it is used.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use journal_format::segment::{FrameEntry, HEADER_BYTES, Header, SegmentIndex, TRAILER_BYTES, Trailer};
use journal_format::{FormatError, Hash};

use crate::decoding::{Decode, Decoding};
use crate::error::{StoreError, io_error};
use crate::parallel::in_parallel_with;

/// Reads and verifies everything of a segment but its payload.
pub(crate) fn read_index(path: &Path) -> Result<SegmentIndex, StoreError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    index_of(&file, path)
}

/// Verifies every byte of a segment, with memory for its index and one frame for each core. What it refers to, and what its differences stand for,
/// is not looked at.
pub(crate) fn verify(path: &Path) -> Result<SegmentIndex, StoreError> {
    let index = read_index(path)?;
    verify_frames(path, &index)?;
    Ok(index)
}

/// Verifies the bytes of all frames. Answers the hashes of each frame's blocks; of a difference frame there are none.
pub(crate) fn verify_frames(path: &Path, index: &SegmentIndex) -> Result<Vec<Vec<Hash>>, StoreError> {
    let file = FrameFile::open(path)?;
    in_parallel_with(index.frames.len(), Decoding::default, |decoding, number| {
        file.hashes(&index.frames[number], decoding)
    })
}

/// A segment that is open for reading frames.
pub(crate) struct FrameFile<'a> {
    file: File,
    path: &'a Path,
}

impl<'a> FrameFile<'a> {
    pub(crate) fn open(path: &'a Path) -> Result<FrameFile<'a>, StoreError> {
        let file = File::open(path).map_err(io_error("open", path))?;
        Ok(FrameFile { file, path })
    }

    pub(crate) fn damaged(&self, source: FormatError) -> StoreError {
        damaged(self.path, source)
    }

    /// Reads and verifies a frame, before and after decompression. Answers the hashes of its blocks; of a difference there are none.
    pub(crate) fn hashes(
        &self,
        frame: &FrameEntry,
        decoding: &mut Decoding,
    ) -> Result<Vec<Hash>, StoreError> {
        self.read_stored(frame, decoding)?;
        decoding.hashes(frame).map_err(|source| self.damaged(source))
    }

    /// Reads a frame, verifies its stored bytes and decompresses it.
    pub(crate) fn verified<'b>(
        &self,
        frame: &FrameEntry,
        decoding: &'b mut Decoding,
    ) -> Result<&'b mut [u8], StoreError> {
        self.read_stored(frame, decoding)?;
        decoding.verified(frame).map_err(|source| self.damaged(source))
    }

    /// Reads a frame and decodes it.
    pub(crate) fn read(
        &self,
        frame: &FrameEntry,
        how: Decode,
        decoding: &mut Decoding,
    ) -> Result<Vec<u8>, StoreError> {
        self.read_stored(frame, decoding)?;
        decoding.decode(frame, how).map_err(|source| self.damaged(source))
    }

    fn read_stored(&self, frame: &FrameEntry, decoding: &mut Decoding) -> Result<(), StoreError> {
        let stored = decoding.stored();
        stored.resize(frame.stored_bytes as usize, 0);
        read_exact(&self.file, self.path, frame.offset, stored)
    }
}

fn damaged(path: &Path, source: FormatError) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), source }
}

/// Verifies the bytes of one frame as they are stored, without decompressing them.
pub(crate) fn check_frame(path: &Path, frame: &FrameEntry) -> Result<(), StoreError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let stored = read_range(&file, path, frame.offset, frame.stored_bytes as usize)?;
    frame.verify_stored(&stored).map_err(|source| damaged(path, source))
}

/// Reads what a segment says that it is: header and trailer, which are verified together.
pub(crate) fn read_outline(path: &Path) -> Result<(Header, Trailer), StoreError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let (header, trailer) = outline_of(&file, path)?;
    Header::decode(&header).map(|header| (header, trailer)).map_err(|source| damaged(path, source))
}

fn outline_of(file: &File, path: &Path) -> Result<(Vec<u8>, Trailer), StoreError> {
    let damaged = |source| damaged(path, source);
    let file_bytes = file.metadata().map_err(io_error("look at", path))?.len();
    let smallest = (HEADER_BYTES + TRAILER_BYTES) as u64;
    if file_bytes < smallest {
        let part = "the segment";
        return Err(damaged(FormatError::Truncated { part, expected: smallest, actual: file_bytes }));
    }
    let header = read_range(file, path, 0, HEADER_BYTES)?;
    let trailer = read_range(file, path, file_bytes - TRAILER_BYTES as u64, TRAILER_BYTES)?;
    let trailer = Trailer::decode(&trailer, &header, file_bytes).map_err(damaged)?;
    Ok((header, trailer))
}

fn index_of(file: &File, path: &Path) -> Result<SegmentIndex, StoreError> {
    let (header, trailer) = outline_of(file, path)?;
    // The trailer's sizes were checked against the format's limits and against the file's size.
    let tail_bytes = (trailer.file_bytes - trailer.index_offset) as usize;
    let tail = read_range(file, path, trailer.index_offset, tail_bytes)?;
    SegmentIndex::decode(&header, &tail, trailer.file_bytes).map_err(|source| damaged(path, source))
}

fn read_range(file: &File, path: &Path, offset: u64, size: usize) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0; size];
    read_exact(file, path, offset, &mut bytes)?;
    Ok(bytes)
}

fn read_exact(file: &File, path: &Path, offset: u64, bytes: &mut [u8]) -> Result<(), StoreError> {
    match file.read_exact_at(bytes, offset) {
        Ok(()) => Ok(()),
        // The file is shorter than its index says: damage, not a fault that passes.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            let (part, expected) = ("the segment", offset + bytes.len() as u64);
            let actual = file.metadata().map_or(0, |metadata| metadata.len());
            Err(damaged(path, FormatError::Truncated { part, expected, actual }))
        }
        Err(source) => Err(StoreError::Io { action: "read", path: path.to_owned(), source }),
    }
}
