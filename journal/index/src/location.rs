//! What an entry consists of.

/// Entries are spread over this many shards by the highest bits of their fingerprints.
pub(crate) const SHARDS: usize = 1 << SHARD_BITS;
pub(crate) const SHARD_BITS: u32 = 4;

/// Where a block lies: the number of a segment in the index, a frame of the segment, and a sector in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location(u64);

impl Location {
    /// Puts a location together; `None` if `sector` is not below 8192 or `depth` not below 8.
    pub fn new(segment: u32, frame: u16, sector: u16, depth: u8) -> Option<Location> {
        let fits = sector < 1 << 13 && depth < 1 << 3;
        let bits =
            u64::from(segment) << 32 | u64::from(frame) << 16 | u64::from(sector) << 3 | u64::from(depth);
        fits.then_some(Location(bits))
    }

    /// Number of the segment, as [`Index::add_segment`](crate::Index::add_segment) gave it.
    pub fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Index into the segment's frame table.
    pub fn frame(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Offset in the decompressed frame, in sectors of 512 bytes; below 8192.
    pub fn sector(self) -> u16 {
        (self.0 >> 3) as u16 & 0x1FFF
    }

    /// How many steps of reference the block is away from stored bytes, below 8; the index gives it no meaning.
    pub fn depth(self) -> u8 {
        self.0 as u8 & 7
    }
}

/// The part of a block's hash that the index knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Fingerprint(pub(crate) u64);

impl Fingerprint {
    pub(crate) fn of(hash: &[u8; 32]) -> Fingerprint {
        let [a, b, c, d, e, f, g, h, ..] = *hash;
        Fingerprint(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    pub(crate) fn shard(self) -> usize {
        (self.0 >> (u64::BITS - SHARD_BITS)) as usize
    }

    /// The highest fingerprint of its shard.
    pub(crate) fn shard_end(self) -> Fingerprint {
        Fingerprint(self.0 | u64::MAX >> SHARD_BITS)
    }

    /// Where it would be among `count` equal parts of its shard: fingerprints are uniform.
    pub(crate) fn part_of(self, count: usize) -> usize {
        ((u128::from(self.0 << SHARD_BITS) * count as u128) >> 64) as usize
    }
}

/// A fingerprint and where its block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) location: Location,
}

impl Entry {
    pub(crate) const BYTES: usize = 16;

    pub(crate) fn to_bytes(self) -> [u8; Entry::BYTES] {
        (u128::from(self.fingerprint.0) | u128::from(self.location.0) << 64).to_le_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; Entry::BYTES]) -> Entry {
        let number = u128::from_le_bytes(bytes);
        Entry { fingerprint: Fingerprint(number as u64), location: Location((number >> 64) as u64) }
    }
}

#[cfg(test)]
mod tests;
