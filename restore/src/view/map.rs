//! Merging the extents of a chain to the map of one volume: the newest segment that says something of a sector wins.

use std::collections::BTreeMap;

use journal_format::SECTOR_BYTES;
use journal_format::segment::{Extent, ExtentContent};

use super::ZeroRun;

/// Sectors whose bytes lie together in one frame. Numbers are in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    start: u64,
    sectors: u32,
    /// Number of the frame in the view.
    pub(crate) frame: u32,
    frame_sector: u32,
}

impl Piece {
    pub(crate) fn start_bytes(&self) -> u64 {
        self.start * SECTOR_BYTES
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        u64::from(self.sectors) * SECTOR_BYTES
    }

    /// Where its bytes begin in the frame.
    pub(crate) fn frame_bytes(&self) -> u64 {
        u64::from(self.frame_sector) * SECTOR_BYTES
    }

    fn end_bytes(&self) -> u64 {
        self.start_bytes() + self.size_bytes()
    }
}

/// Covered sectors by their start.
#[derive(Clone, Copy)]
struct Cover {
    end: u64,
    /// Frame and sector in it; `None` for zeroes.
    source: Option<(u32, u32)>,
}

/// Takes the extents of a volume, newest segment first.
pub(super) struct MapBuilder {
    /// What is behind it in older segments was cut off since.
    limit_sectors: u64,
    covers: BTreeMap<u64, Cover>,
}

impl MapBuilder {
    pub(super) fn new(size_bytes: u64) -> Self {
        MapBuilder { limit_sectors: size_bytes / SECTOR_BYTES, covers: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.covers.len()
    }

    /// Hears the size of the volume in the segment whose extents come next: a volume that was smaller for a while, or not
    /// there, has lost what was behind its end.
    pub(super) fn limit_to(&mut self, size_bytes: u64) {
        self.limit_sectors = self.limit_sectors.min(size_bytes / SECTOR_BYTES);
    }

    /// Adds those sectors of an extent that nothing newer covers. `place` is asked for the number of the extent's
    /// frame and the offset in it in bytes if any of it is visible; it answers nothing for zeroes.
    pub(super) fn add(
        &mut self,
        extent: &Extent,
        mut place: impl FnMut(ExtentContent) -> Option<(u32, u32)>,
    ) {
        let start = extent.offset / SECTOR_BYTES;
        let end = (extent.end() / SECTOR_BYTES).min(self.limit_sectors);
        if start >= end {
            return;
        }
        for (from, to) in self.gaps(start, end) {
            let source = place(extent.content)
                .map(|(frame, offset)| (frame, (u64::from(offset) / SECTOR_BYTES + (from - start)) as u32));
            self.covers.insert(from, Cover { end: to, source });
        }
    }

    /// Uncovered ranges between `start` and `end`.
    fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let before = self.covers.range(..=start).next_back().map_or(start, |(_, cover)| cover.end);
        let mut at = start.max(before);
        for (&covered, cover) in self.covers.range(start..end) {
            if covered > at {
                gaps.push((at, covered));
            }
            at = at.max(cover.end);
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    pub(super) fn finish(self) -> VolumeMap {
        let mut pieces: Vec<Piece> = Vec::new();
        for (start, cover) in self.covers {
            let Some((frame, frame_sector)) = cover.source else { continue };
            let sectors = (cover.end - start) as u32;
            match pieces.last_mut() {
                Some(last)
                    if last.frame == frame
                        && last.start + u64::from(last.sectors) == start
                        && last.frame_sector + last.sectors == frame_sector =>
                {
                    last.sectors += sectors;
                }
                _ => pieces.push(Piece { start, sectors, frame, frame_sector }),
            }
        }
        pieces.shrink_to_fit();
        VolumeMap { pieces }
    }
}

/// Where the bytes of a volume are. What no piece covers is zero.
pub(super) struct VolumeMap {
    /// Sorted, without overlaps.
    pieces: Vec<Piece>,
}

impl VolumeMap {
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The pieces that end behind `offset`.
    pub(super) fn from(&self, offset: u64) -> &[Piece] {
        &self.pieces[self.pieces.partition_point(|piece| piece.end_bytes() <= offset)..]
    }

    /// Fills `buffer` with the bytes from `offset` on: zeroes, and what `read` puts there, which is given a piece, an
    /// offset in it in bytes, and where its bytes go.
    pub(super) fn walk<E>(
        &self,
        offset: u64,
        buffer: &mut [u8],
        mut read: impl FnMut(&Piece, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = offset + buffer.len() as u64;
        let mut at = offset;
        for piece in self.from(offset) {
            if piece.start_bytes() >= end {
                break;
            }
            let from = piece.start_bytes().max(offset);
            let to = piece.end_bytes().min(end);
            buffer[(at - offset) as usize..(from - offset) as usize].fill(0);
            let target = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            read(piece, from - piece.start_bytes(), target)?;
            at = to;
        }
        buffer[(at - offset) as usize..].fill(0);
        Ok(())
    }

    pub(super) fn run(&self, offset: u64, length: u64) -> ZeroRun {
        let end = offset + length;
        let pieces = self.from(offset);
        let first = pieces.first().map_or(end, |piece| piece.start_bytes().min(end));
        if first > offset {
            return ZeroRun { length: first - offset, zero: true };
        }
        let mut at = offset;
        for piece in pieces {
            if piece.start_bytes() > at || at >= end {
                break;
            }
            at = piece.end_bytes();
        }
        ZeroRun { length: at.min(end) - offset, zero: false }
    }
}

#[cfg(test)]
mod tests;
