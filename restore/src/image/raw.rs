//! Raw images: frames are read, verified and written by several threads, each frame once.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use journal_nbd::{FileDisk, ZeroMode};
use rustix::fs::OFlags;

use super::{ImageError, io_error};
use crate::parallel::in_parallel;
use crate::view::{Piece, VolumeView};

/// How much of both ends of a device is looked at for content: partition tables, file systems and RAID have theirs there.
const LOOK_BYTES: u64 = 1 << 20;

/// How many frames are said ahead to be read, and how often that is said.
const AHEAD_FRAMES: usize = 96;
const AHEAD_STEP: usize = 16;

/// Makes a sparse file with the bytes of a volume, and makes it durable.
pub(super) fn write_file(
    volume: &VolumeView,
    path: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<(), ImageError> {
    // Disks hold secrets: nobody else reads them until their owner says so.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(io_error("create", path))?;
    file.set_len(volume.size_bytes()).map_err(io_error("size", path))?;
    write_frames(volume, &file, path, progress)?;
    file.sync_all().map_err(io_error("sync", path))
}

/// Writes the bytes of a volume to a block device, and zeroes where it has none.
pub(super) fn write_device(
    volume: &VolumeView,
    path: &Path,
    overwrite: bool,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<(), ImageError> {
    // Exclusive: the system refuses a device that is mounted or part of another one.
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(OFlags::EXCL.bits().cast_signed()).open(path);
    let file = file.map_err(io_error("open", path))?;
    let disk = FileDisk::open(path, false)
        .map_err(|error| io_error("open", path)(io::Error::new(error.kind(), error)))?;
    let (size_bytes, needed_bytes) = (disk.size_bytes(), volume.size_bytes());
    if size_bytes < needed_bytes {
        return Err(ImageError::TooSmall { path: path.to_owned(), size_bytes, needed_bytes });
    }
    if !overwrite && has_content(&file, size_bytes).map_err(io_error("read", path))? {
        return Err(ImageError::Exists { path: path.to_owned() });
    }
    let mut at = 0;
    while at < needed_bytes {
        let run = volume.zero_run(at, needed_bytes - at);
        if run.zero {
            disk.write_zeroes(at, run.length, ZeroMode::MayPunch)
                .map_err(|error| io_error("write zeroes to", path)(io::Error::other(format!("{error:?}"))))?;
        }
        at += run.length;
    }
    write_frames(volume, &file, path, progress)?;
    file.sync_all().map_err(io_error("sync", path))
}

fn has_content(device: &File, size_bytes: u64) -> io::Result<bool> {
    let mut buffer = vec![0; LOOK_BYTES.min(size_bytes) as usize];
    for offset in [0, size_bytes - buffer.len() as u64] {
        device.read_exact_at(&mut buffer, offset)?;
        if !journal_format::is_zero(&buffer) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn write_frames(
    volume: &VolumeView,
    file: &File,
    path: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<(), ImageError> {
    let mut pieces: Vec<Piece> = volume.pieces().to_vec();
    pieces.sort_by_key(|piece| (piece.frame, piece.start_bytes()));
    let frames: Vec<&[Piece]> = pieces.chunk_by(|one, other| one.frame == other.frame).collect();
    let total: u64 = pieces.iter().map(Piece::size_bytes).sum();
    let done = AtomicU64::new(0);
    in_parallel(frames.len(), |number| {
        if number.is_multiple_of(AHEAD_STEP) {
            let ahead = &frames[number..frames.len().min(number + AHEAD_FRAMES)];
            volume.expect_pieces(ahead.iter().filter_map(|pieces| pieces.first()));
        }
        volume.read_pieces(frames[number], |piece, data| {
            file.write_all_at(data, piece.start_bytes()).map_err(io_error("write", path))
        })?;
        let written: u64 = frames[number].iter().map(Piece::size_bytes).sum();
        progress(done.fetch_add(written, Ordering::Relaxed) + written, total);
        Ok(())
    })
    .map(drop)
}
