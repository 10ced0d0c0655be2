//! What differs between two images, in blocks of 4 KiB.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::BLOCK_BYTES;

/// Largest request that a range becomes, as from a guest's queue.
const REQUEST_BYTES: u64 = 256 << 10;
const BUFFER_BYTES: usize = 1 << 20;

/// Blocks to write, next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// All of them are zero in the newer image.
    pub(super) zero: bool,
}

/// Ranges in the order of their offsets.
pub(super) struct Delta {
    pub(super) ranges: Vec<Range>,
}

impl Delta {
    /// Compares two images of the same size.
    pub(super) fn between(old: &Path, new: &Path) -> anyhow::Result<Delta> {
        let mut delta = Delta { ranges: Vec::new() };
        each_pair(old, new, |offset, old, new| {
            let block = BLOCK_BYTES as usize;
            for (place, (old, new)) in old.chunks(block).zip(new.chunks(block)).enumerate() {
                if old != new {
                    let zero = new.iter().all(|&byte| byte == 0);
                    delta.push(offset + (place * block) as u64, new.len() as u64, zero);
                }
            }
            true
        })?;
        Ok(delta)
    }

    fn push(&mut self, offset: u64, length: u64, zero: bool) {
        match self.ranges.last_mut() {
            Some(last)
                if last.zero == zero
                    && last.offset + last.length == offset
                    && last.length + length <= REQUEST_BYTES =>
            {
                last.length += length;
            }
            _ => self.ranges.push(Range { offset, length, zero }),
        }
    }

    /// Bytes changed.
    pub(super) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.length).sum()
    }

    /// Bytes changed to zero.
    pub(super) fn zero_bytes(&self) -> u64 {
        self.ranges.iter().filter(|range| range.zero).map(|range| range.length).sum()
    }
}

/// Offset of the first difference of two files, if any.
pub(super) fn first_difference(one: &Path, other: &Path) -> anyhow::Result<Option<u64>> {
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(Some(one.metadata()?.len().min(other.metadata()?.len())));
    }
    let mut found = None;
    each_pair(one, other, |offset, one, other| {
        if one == other {
            return true;
        }
        let place = one.iter().zip(other).position(|(a, b)| a != b);
        found = place.map(|place| offset + place as u64);
        false
    })?;
    Ok(found)
}

/// Reads two files side by side until `visit` answers false.
fn each_pair(
    one: &Path,
    other: &Path,
    mut visit: impl FnMut(u64, &[u8], &[u8]) -> bool,
) -> anyhow::Result<()> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let size = one.metadata()?.len();
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(BUFFER_BYTES as u64) as usize;
        one.read_exact(&mut left[..length])?;
        other.read_exact(&mut right[..length])?;
        if !visit(offset, &left[..length], &right[..length]) {
            break;
        }
        offset += length as u64;
    }
    Ok(())
}
