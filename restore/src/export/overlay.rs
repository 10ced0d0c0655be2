//! A volume that may be written to: writes go into a sparse file without a name, the point stays as it is.

use std::path::Path;
use std::sync::{PoisonError, RwLock};

use journal_format::SECTOR_BYTES;
use journal_nbd::{Errno, Export, FileDisk, Payload, StatusExtent, ZeroMode};

use super::PointExport;
use crate::error::{StoreError, io_error};

/// A volume of a point under an overlay. When it is dropped, what was written is gone.
pub(super) struct OverlayExport {
    base: PointExport,
    file: FileDisk,
    written: RwLock<SectorSet>,
}

impl OverlayExport {
    /// Makes an empty overlay in a folder.
    pub(super) fn create(base: PointExport, scratch: &Path) -> Result<Self, StoreError> {
        let made = tempfile::Builder::new().prefix("thirdsite-overlay-").tempfile_in(scratch);
        let made = made.map_err(io_error("make an overlay in", scratch))?;
        made.as_file().set_len(base.size_bytes()).map_err(io_error("size the overlay", made.path()))?;
        let file = FileDisk::open(made.path(), false).map_err(|error| {
            io_error("open the overlay", made.path())(std::io::Error::new(error.kind(), error))
        })?;
        let written = RwLock::new(SectorSet::new(base.size_bytes() / SECTOR_BYTES));
        Ok(OverlayExport { base, file, written })
    }

    /// The runs of a range, each with whether it was written.
    fn runs(&self, offset: u64, length: u64) -> Vec<(u64, u64, bool)> {
        let written = self.written.read().unwrap_or_else(PoisonError::into_inner);
        let (mut at, end) = (offset / SECTOR_BYTES, (offset + length) / SECTOR_BYTES);
        let mut runs = Vec::new();
        while at < end {
            let (next, set) = written.run(at, end);
            runs.push((at * SECTOR_BYTES, (next - at) * SECTOR_BYTES, set));
            at = next;
        }
        runs
    }

    /// Only after the bytes are in the file: a reader that sees the mark reads them there.
    fn mark(&self, offset: u64, length: u64) {
        let mut written = self.written.write().unwrap_or_else(PoisonError::into_inner);
        written.insert(offset / SECTOR_BYTES, (offset + length) / SECTOR_BYTES);
    }
}

impl Export for OverlayExport {
    fn size_bytes(&self) -> u64 {
        self.base.size_bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn description(&self) -> String {
        format!("{}, under a temporary overlay", self.base.description())
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
        let mut rest = buffer;
        for (at, length, written) in self.runs(offset, rest.len() as u64) {
            let (piece, behind) = rest.split_at_mut(length as usize);
            rest = behind;
            let done =
                if written { self.file.try_read(at, piece)? } else { self.base.try_read(at, piece)? };
            if !done {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let mut rest = buffer;
        for (at, length, written) in self.runs(offset, rest.len() as u64) {
            let (piece, behind) = rest.split_at_mut(length as usize);
            rest = behind;
            if written { self.file.read(at, piece)? } else { self.base.read(at, piece)? }
        }
        Ok(())
    }

    fn write(&self, offset: u64, payload: Payload) -> Result<(), Errno> {
        self.file.write(offset, &payload)?;
        self.mark(offset, payload.len() as u64);
        Ok(())
    }

    /// Nothing to do: the overlay does not outlive the process, nor the process a crash of the system.
    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.write_zeroes(offset, length, ZeroMode::MayPunch)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), Errno> {
        self.file.write_zeroes(offset, length, mode)?;
        self.mark(offset, length);
        Ok(())
    }

    fn block_status(&self, offset: u64, length: u64, extents: &mut Vec<StatusExtent>) -> Result<(), Errno> {
        for (at, length, written) in self.runs(offset, length) {
            let known = extents.len();
            if written {
                self.file.block_status(at, length, extents)?;
            } else {
                self.base.block_status(at, length, extents)?;
            }
            // Either answer may end early, and so may this one.
            if extents[known..].iter().map(|extent| extent.length).sum::<u64>() < length {
                break;
            }
        }
        Ok(())
    }

    fn zeroes_fast(&self, mode: ZeroMode) -> bool {
        self.file.zeroes_fast(mode)
    }
}

/// Sectors of a chunk: 4 KiB of bits for 16 MiB of disk.
const CHUNK_SECTORS: u64 = 1 << 15;

/// A set of sectors whose memory grows with what is in it: 4 KiB for each 16 MiB of disk that are touched.
struct SectorSet {
    chunks: Vec<Option<Box<[u64; (CHUNK_SECTORS / 64) as usize]>>>,
}

impl SectorSet {
    fn new(sectors: u64) -> Self {
        let chunks =
            usize::try_from(sectors.div_ceil(CHUNK_SECTORS)).expect("volumes fit into the address space");
        SectorSet { chunks: vec![None; chunks] }
    }

    fn insert(&mut self, start: u64, end: u64) {
        for sector in start..end {
            let chunk = &mut self.chunks[(sector / CHUNK_SECTORS) as usize];
            let bits = chunk.get_or_insert_with(|| Box::new([0; (CHUNK_SECTORS / 64) as usize]));
            bits[(sector % CHUNK_SECTORS / 64) as usize] |= 1 << (sector % 64);
        }
    }

    fn contains(&self, sector: u64) -> bool {
        self.chunks[(sector / CHUNK_SECTORS) as usize]
            .as_ref()
            .is_some_and(|bits| bits[(sector % CHUNK_SECTORS / 64) as usize] & (1 << (sector % 64)) != 0)
    }

    /// Where the run that begins at `start` ends, at `end` at the latest, and whether it is in the set.
    fn run(&self, start: u64, end: u64) -> (u64, bool) {
        let inside = self.contains(start);
        let mut at = start + 1;
        while at < end {
            if !inside && self.chunks[(at / CHUNK_SECTORS) as usize].is_none() {
                at = (at / CHUNK_SECTORS + 1) * CHUNK_SECTORS;
            } else if self.contains(at) == inside {
                at += 1;
            } else {
                break;
            }
        }
        (at.min(end), inside)
    }
}

#[cfg(test)]
mod tests;
