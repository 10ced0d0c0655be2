//! A raw file or block device as a disk, through the page cache.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::{Errno as Os, ReadWriteFlags};
use thiserror::Error;

use crate::arena::Payload;
use crate::errno::Errno;
use crate::export::{Export, StatusExtent, ZeroMode};
use crate::wire::BLOCK_SIZE_BYTES_MIN;

/// Extents that one look at the status returns at most: each costs two system calls.
const STATUS_EXTENTS_MAX: usize = 1024;
/// Reads below this are not worth a look for holes.
const HOLE_LOOKUP_BYTES_MIN: u64 = 64 << 10;
/// What is written where zeroes have to be written.
static ZEROES: [u8; 256 << 10] = [0; 256 << 10];
/// `f_type` of tmpfs, see statfs(2).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// A raw file or a block device. All operations may be called from several threads at once.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    read_only: bool,
    /// Its memory is its medium: no read waits.
    in_memory: bool,
    /// `preadv2` can say whether a read would wait.
    nowait: AtomicBool,
    /// Known only after it was done once: a trial would change the file's times, by which others see whether it was written to.
    punching_works: AtomicBool,
    allocated_zeroes_work: AtomicBool,
    /// A flush has failed: the kernel has dropped pages and would report the next flush as a success.
    lost_writes: AtomicBool,
}

/// Why a file cannot be served.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It is missing, or may not be opened.
    #[error("{} cannot be opened", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a pipe or the like.
    #[error("{} is neither a regular file nor a block device", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
    },
    /// Its size is not a whole number of sectors.
    #[error("{} has {size_bytes} bytes, which is not a multiple of 512: is it a raw image?", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size_bytes: u64,
    },
}

impl OpenError {
    /// The nearest kind of an I/O error.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            OpenError::Io { source, .. } => source.kind(),
            OpenError::NotADisk { .. } | OpenError::Size { .. } => io::ErrorKind::InvalidInput,
        }
    }
}

impl FileDisk {
    /// Opens a raw file or block device, `read_only` or for writing too.
    ///
    /// # Errors
    /// If it is missing, may not be opened so, is something else, or has a size that is not a multiple of 512.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OpenError> {
        let os = |source: Os| OpenError::Io { path: path.to_owned(), source: source.into() };
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        // NONBLOCK: opening a pipe by mistake must not wait for its other end. It means nothing to files and disks.
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(os)?);
        let stat = rustix::fs::fstat(&file).map_err(os)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::NotADisk { path: path.to_owned() });
        }
        let size_bytes = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(os)?;
        if !size_bytes.is_multiple_of(u64::from(BLOCK_SIZE_BYTES_MIN)) {
            return Err(OpenError::Size { path: path.to_owned(), size_bytes });
        }
        let in_memory =
            rustix::fs::fstatfs(&file).is_ok_and(|fs| fs.f_type as u64 == TMPFS_MAGIC) && kind.is_file();
        Ok(FileDisk {
            file,
            path: path.to_owned(),
            size_bytes,
            read_only,
            in_memory,
            nowait: AtomicBool::new(!in_memory),
            punching_works: AtomicBool::new(false),
            allocated_zeroes_work: AtomicBool::new(false),
            lost_writes: AtomicBool::new(false),
        })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes at the time of opening.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether it was opened for reading only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Reads what is in the page cache; `Ok(false)` if a disk would have to be waited for.
    ///
    /// # Errors
    /// What the medium answers.
    pub fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
        if self.in_memory {
            return self.read(offset, buffer).map(|()| true);
        }
        if !self.nowait.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT)
        {
            Ok(count) => Ok(count == buffer.len()),
            Err(Os::OPNOTSUPP | Os::NOSYS | Os::INVAL) => {
                self.nowait.store(false, Ordering::Relaxed);
                Ok(false)
            }
            // Errors are told by the read that may wait.
            Err(_) => Ok(false),
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// What the medium answers; `Io` if the file has become shorter.
    pub fn read(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<(), Errno> {
        while !buffer.is_empty() {
            match rustix::io::pread(&self.file, &mut *buffer, offset) {
                Ok(0) => return Err(Errno::Io),
                Ok(count) => {
                    offset += count as u64;
                    buffer = &mut buffer[count..];
                }
                Err(Os::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes to the page cache.
    ///
    /// # Errors
    /// What the medium answers.
    pub fn write(&self, mut offset: u64, mut data: &[u8]) -> Result<(), Errno> {
        while !data.is_empty() {
            match rustix::io::pwrite(&self.file, data, offset) {
                Ok(0) => return Err(Errno::Io),
                Ok(count) => {
                    offset += count as u64;
                    data = &data[count..];
                }
                Err(Os::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes everything durable that was written before. After a failure every later flush fails too: the system drops
    /// what it could not write and would call the next one a success. Opening the file again starts afresh.
    ///
    /// # Errors
    /// What the medium answers.
    pub fn flush(&self) -> Result<(), Errno> {
        if self.lost_writes.load(Ordering::Acquire) {
            return Err(Errno::Io);
        }
        if self.read_only {
            return Ok(());
        }
        rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.file)).map_err(|error| {
            self.lost_writes.store(true, Ordering::Release);
            tracing::error!(path = %self.path.display(), %error, "flush failed: earlier writes may be lost");
            Errno::from(error)
        })
    }

    /// Gives the space of a range back where the medium can; it reads as zero then, and as before otherwise.
    ///
    /// # Errors
    /// What the medium answers.
    pub fn trim(&self, offset: u64, length: u64) -> Result<(), Errno> {
        match punch(&self.file, offset, length) {
            Err(error) if unsupported(error) => Ok(()),
            other => other.map_err(Errno::from),
        }
    }

    /// Makes a range zero, by the cheapest way that the medium knows.
    ///
    /// # Errors
    /// What the medium answers.
    pub fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), Errno> {
        let (done, works) = match mode {
            ZeroMode::MayPunch => {
                let punched = punch(&self.file, offset, length);
                (punched.or_else(|_| zero_range(&self.file, offset, length)), &self.punching_works)
            }
            ZeroMode::Allocate => {
                let zeroed = zero_range(&self.file, offset, length).or_else(|_| {
                    punch(&self.file, offset, length)?;
                    fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, length)
                });
                (zeroed, &self.allocated_zeroes_work)
            }
        };
        if done.is_err() {
            // Whatever is wrong with the medium, writing tells it in the terms of a write.
            return self.write_out_zeroes(offset, length);
        }
        works.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether [`write_zeroes`](Self::write_zeroes) in this mode is known to need no writing.
    pub fn zeroes_fast(&self, mode: ZeroMode) -> bool {
        match mode {
            ZeroMode::MayPunch => self.punching_works.load(Ordering::Relaxed),
            ZeroMode::Allocate => self.allocated_zeroes_work.load(Ordering::Relaxed),
        }
    }

    fn write_out_zeroes(&self, mut offset: u64, mut length: u64) -> Result<(), Errno> {
        while length > 0 {
            let piece = length.min(ZEROES.len() as u64);
            self.write(offset, &ZEROES[..piece as usize])?;
            offset += piece;
            length -= piece;
        }
        Ok(())
    }

    /// Appends which parts of a range are holes, for the first thousand parts at most.
    ///
    /// # Errors
    /// None as yet: what cannot be found out is reported as data.
    pub fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), Errno> {
        let end = offset + length;
        let mut at = offset;
        for _ in 0..STATUS_EXTENTS_MAX {
            if at >= end {
                break;
            }
            let (next, hole) = self.next_extent(at, end);
            extents.push(StatusExtent { length: next - at, hole, zero: hole });
            at = next;
        }
        Ok(())
    }

    /// Whether a range of 64 KiB or more lies in a hole; smaller ones are not worth the look.
    pub fn reads_as_zero(&self, offset: u64, length: u64) -> bool {
        if length < HOLE_LOOKUP_BYTES_MIN {
            return false;
        }
        // Only where data begins: asking where a hole begins makes tmpfs walk over all pages of the file.
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data >= offset + length,
            Err(error) => error == Os::NXIO,
        }
    }

    /// Where the extent that begins at `at` ends, and whether it is a hole.
    fn next_extent(&self, at: u64, end: u64) -> (u64, bool) {
        // A file offset is shared by threads, but nothing here uses it after the call that has set it.
        match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) if data > at => (data.min(end), true),
            Ok(_) => match rustix::fs::seek(&self.file, SeekFrom::Hole(at)) {
                // Both answers come from a file that others write to: an extent has at least a sector.
                Ok(hole) if hole >= at + u64::from(BLOCK_SIZE_BYTES_MIN) => (hole.min(end), false),
                _ => (end, false),
            },
            Err(Os::NXIO) => (end, true),
            Err(_) => (end, false),
        }
    }
}

impl Export for FileDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn description(&self) -> String {
        self.path.display().to_string()
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
        FileDisk::try_read(self, offset, buffer)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        FileDisk::read(self, offset, buffer)
    }

    fn write(&self, offset: u64, payload: Payload) -> Result<(), Errno> {
        FileDisk::write(self, offset, &payload)
    }

    fn flush(&self) -> Result<(), Errno> {
        FileDisk::flush(self)
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), Errno> {
        FileDisk::trim(self, offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), Errno> {
        FileDisk::write_zeroes(self, offset, length, mode)
    }

    fn block_status(&self, offset: u64, length: u64, extents: &mut Vec<StatusExtent>) -> Result<(), Errno> {
        FileDisk::block_status(self, offset, length, extents)
    }

    fn zeroes_fast(&self, mode: ZeroMode) -> bool {
        FileDisk::zeroes_fast(self, mode)
    }

    fn reads_as_zero(&self, offset: u64, length: u64) -> bool {
        FileDisk::reads_as_zero(self, offset, length)
    }
}

fn punch(file: impl AsFd, offset: u64, length: u64) -> Result<(), Os> {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
}

fn zero_range(file: impl AsFd, offset: u64, length: u64) -> Result<(), Os> {
    fallocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, length)
}

fn fallocate(file: impl AsFd, flags: FallocateFlags, offset: u64, length: u64) -> Result<(), Os> {
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(&file, flags, offset, length))
}

/// Errors that say that the medium cannot do it, or not in this alignment.
fn unsupported(error: Os) -> bool {
    matches!(error, Os::OPNOTSUPP | Os::NOSYS | Os::INVAL | Os::NODEV | Os::NOTTY)
}

#[cfg(test)]
mod tests;
