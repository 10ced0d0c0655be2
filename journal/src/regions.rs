//! Sets of regions of a volume: what is marked in the intent map, what a resync has still to look at.

use std::ops::Range;

/// Size of a region in bytes.
pub const REGION_BYTES: u64 = 64 << 10;

/// A set of regions of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegionSet {
    words: Vec<u64>,
    size_bytes: u64,
    count: u64,
}

impl RegionSet {
    /// An empty set for a volume of `size_bytes`.
    pub(crate) fn new(size_bytes: u64) -> Self {
        let regions = size_bytes.div_ceil(REGION_BYTES);
        RegionSet { words: vec![0; regions.div_ceil(64) as usize], size_bytes, count: 0 }
    }

    /// A set with every region of a volume.
    pub(crate) fn full(size_bytes: u64) -> Self {
        let mut set = RegionSet::new(size_bytes);
        set.mark_all();
        set
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the regions in the set; the last region of a volume counts in full.
    pub(crate) fn bytes(&self) -> u64 {
        self.count * REGION_BYTES
    }

    /// Size of the volume in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Regions of the volume, in the set or not.
    pub(crate) fn regions(&self) -> u64 {
        self.size_bytes.div_ceil(REGION_BYTES)
    }

    /// Adds every region that the range touches.
    pub(crate) fn mark(&mut self, range: Range<u64>) {
        regions_of(&range).for_each(|region| self.insert(region));
    }

    /// Adds everything.
    pub(crate) fn mark_all(&mut self) {
        self.mark(0..self.size_bytes);
    }

    /// Whether every region that the range touches is in the set.
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        regions_of(range).all(|region| self.contains(region))
    }

    /// Adds a region by its number.
    pub(crate) fn insert(&mut self, region: u64) {
        let (word, bit) = place(region);
        self.count += u64::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    /// Removes a region by its number.
    pub(crate) fn remove(&mut self, region: u64) {
        let (word, bit) = place(region);
        self.count -= u64::from(self.words[word] & bit != 0);
        self.words[word] &= !bit;
    }

    /// Whether a region is in the set.
    pub(crate) fn contains(&self, region: u64) -> bool {
        let (word, bit) = place(region);
        self.words[word] & bit != 0
    }

    /// Numbers of the regions in the set at or behind `from`, in order.
    pub(crate) fn iter_from(&self, from: u64) -> impl Iterator<Item = u64> + '_ {
        std::iter::successors(self.next_set(from), |&region| self.next_set(region + 1))
    }

    /// The range of a region in bytes; the last one of a volume may be shorter.
    pub(crate) fn range_of(&self, region: u64) -> Range<u64> {
        region * REGION_BYTES..((region + 1) * REGION_BYTES).min(self.size_bytes)
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
}

/// Numbers of the regions that a range of bytes touches.
pub(crate) fn regions_of(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / REGION_BYTES..range.end.div_ceil(REGION_BYTES) }
}

fn place(region: u64) -> (usize, u64) {
    ((region / 64) as usize, 1 << (region % 64))
}

#[cfg(test)]
mod tests;
