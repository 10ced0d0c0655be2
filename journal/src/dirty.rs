//! Which regions of a volume the recovery site may not have: the set that a resync works off.

use std::ops::Range;

/// Size of a region in bytes.
pub(crate) const REGION_BYTES: u64 = 64 << 10;

/// A set of regions of one volume.
#[derive(Debug)]
pub(crate) struct DirtyMap {
    words: Vec<u64>,
    size_bytes: u64,
    count: u64,
}

impl DirtyMap {
    /// An empty set for a volume of `size_bytes`.
    pub(crate) fn new(size_bytes: u64) -> Self {
        let regions = size_bytes.div_ceil(REGION_BYTES);
        DirtyMap { words: vec![0; regions.div_ceil(64) as usize], size_bytes, count: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the regions in the set; the last region of a volume counts in full.
    pub(crate) fn bytes(&self) -> u64 {
        self.count * REGION_BYTES
    }

    /// Adds every region that the range touches.
    pub(crate) fn mark(&mut self, range: Range<u64>) {
        for region in Self::regions(&range) {
            let (word, bit) = Self::place(region);
            self.count += u64::from(self.words[word] & bit == 0);
            self.words[word] |= bit;
        }
    }

    /// Adds everything.
    pub(crate) fn mark_all(&mut self) {
        self.mark(0..self.size_bytes);
    }

    /// Removes every region that the range touches.
    pub(crate) fn clear(&mut self, range: Range<u64>) {
        for region in Self::regions(&range) {
            let (word, bit) = Self::place(region);
            self.count -= u64::from(self.words[word] & bit != 0);
            self.words[word] &= !bit;
        }
    }

    /// The first run of regions at or behind `from` bytes, as a byte range of at most `limit_bytes` that ends within the
    /// volume; `None` if there is none.
    pub(crate) fn next_run(&self, from: u64, limit_bytes: u64) -> Option<Range<u64>> {
        let last = self.words.len() as u64 * 64;
        let first = self.next_set(from / REGION_BYTES)?;
        let limit = last.min(first + (limit_bytes / REGION_BYTES).max(1));
        let end = (first..limit).find(|&region| !self.contains(region)).unwrap_or(limit);
        Some(first * REGION_BYTES..(end * REGION_BYTES).min(self.size_bytes))
    }

    fn next_set(&self, from: u64) -> Option<u64> {
        let mut word = (from / 64) as usize;
        let mut bits = self.words.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.words.get(word)?;
        }
        Some(word as u64 * 64 + u64::from(bits.trailing_zeros()))
    }

    fn contains(&self, region: u64) -> bool {
        let (word, bit) = Self::place(region);
        self.words[word] & bit != 0
    }

    fn place(region: u64) -> (usize, u64) {
        ((region / 64) as usize, 1 << (region % 64))
    }

    fn regions(range: &Range<u64>) -> Range<u64> {
        if range.is_empty() { 0..0 } else { range.start / REGION_BYTES..range.end.div_ceil(REGION_BYTES) }
    }
}

#[cfg(test)]
mod tests;
