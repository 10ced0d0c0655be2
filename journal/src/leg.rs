//! Legs: one host's copy of a volume.

mod guard;

use std::io;
use std::path::Path;

use journal_nbd::{Errno, FileDisk, StatusExtent, ZeroMode};
use serde::{Deserialize, Serialize};

pub(crate) use self::guard::LegGuard;

/// What tells whether a leg was changed while nobody watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegStamp {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Time of the last change in nanoseconds since 1970.
    pub modified_ns: i64,
    /// Device and inode number.
    pub identity: (u64, u64),
}

/// The disk under a tap. Called from several threads at once.
pub trait Leg: Send + Sync + 'static {
    /// Where it is, if it is a file or device of this host.
    fn path(&self) -> Option<&Path>;
    /// Size in bytes, a multiple of 512.
    fn size_bytes(&self) -> u64;
    /// Reads if that does not wait for a disk; `Ok(false)` if it would.
    ///
    /// # Errors
    /// What the medium answers.
    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno>;
    /// Reads.
    ///
    /// # Errors
    /// What the medium answers.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno>;
    /// Writes; survives the end of this process when it returns.
    ///
    /// # Errors
    /// What the medium answers.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno>;
    /// Makes a range zero.
    ///
    /// # Errors
    /// What the medium answers.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), Errno>;
    /// Makes all finished writes durable.
    ///
    /// # Errors
    /// What the medium answers.
    fn flush(&self) -> Result<(), Errno>;
    /// Says which parts of a range are known to be zero.
    ///
    /// # Errors
    /// What the medium answers.
    fn block_status(&self, offset: u64, length: u64, extents: &mut Vec<StatusExtent>) -> Result<(), Errno>;
    /// Whether a range is known, without looking at its bytes, to read as zero.
    fn reads_as_zero(&self, offset: u64, length: u64) -> bool;
    /// Whether making zeroes in this mode is much faster than writing them.
    fn zeroes_fast(&self, mode: ZeroMode) -> bool;
    /// What a later start compares to see whether the leg was changed in between; `None` if the medium cannot tell.
    fn stamp(&self) -> Option<LegStamp>;
}

/// A raw file or a block device.
pub struct FileLeg {
    disk: FileDisk,
}

impl FileLeg {
    /// Opens a leg for reading and writing.
    ///
    /// # Errors
    /// If it is missing, not a file or block device, not writable, or of a size that is not a multiple of 512.
    pub fn open(path: &Path) -> io::Result<FileLeg> {
        FileDisk::open(path, false).map(|disk| FileLeg { disk }).map_err(io::Error::other)
    }

    /// Opens a leg that is only read.
    ///
    /// # Errors
    /// As [`FileLeg::open`], except that it need not be writable.
    pub fn open_for_reading(path: &Path) -> io::Result<FileLeg> {
        FileDisk::open(path, true).map(|disk| FileLeg { disk }).map_err(io::Error::other)
    }
}

impl Leg for FileLeg {
    fn path(&self) -> Option<&Path> {
        Some(self.disk.path())
    }

    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
        self.disk.try_read(offset, buffer)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.disk.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.disk.write(offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), Errno> {
        self.disk.write_zeroes(offset, length, mode)
    }

    fn flush(&self) -> Result<(), Errno> {
        self.disk.flush()
    }

    fn block_status(&self, offset: u64, length: u64, extents: &mut Vec<StatusExtent>) -> Result<(), Errno> {
        self.disk.block_status(offset, length, extents)
    }

    fn reads_as_zero(&self, offset: u64, length: u64) -> bool {
        self.disk.reads_as_zero(offset, length)
    }

    fn zeroes_fast(&self, mode: ZeroMode) -> bool {
        self.disk.zeroes_fast(mode)
    }

    fn stamp(&self) -> Option<LegStamp> {
        let stat = rustix::fs::fstat(self.disk.file()).ok()?;
        // A block device's times do not follow its content.
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        let modified_ns = stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec as i64;
        let identity = (stat.st_dev, stat.st_ino);
        is_file.then(|| LegStamp { size_bytes: self.size_bytes(), modified_ns, identity })
    }
}
