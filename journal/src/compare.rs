//! What a resync asks the recovery site.

use journal_format::{Hash, Position, VolumeName};

/// What the site says of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionState {
    /// It has the same bytes.
    Equal,
    /// It has blocks with these hashes: one for each 4096 bytes, the last may be shorter.
    Blocks(Vec<Hash>),
}

/// An answer: what the site holds as of a position of the group's timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The position; `None` if the site has nothing.
    pub head: Option<Position>,
    /// One for each region that was asked for; fewer if the site says nothing of the last ones.
    pub regions: Vec<RegionState>,
}

/// Compares regions with what the recovery site has.
pub trait Comparer: Send + Sync {
    /// Compares consecutive regions of 65536 bytes of a volume of `size_bytes` from `offset` on, the last of a volume may be shorter, given by the hashes of their
    /// bytes. May take as long as the way to the site; `None` if it cannot be asked now.
    fn compare(
        &self,
        volume: &VolumeName,
        size_bytes: u64,
        offset: u64,
        regions: &[Hash],
    ) -> Option<Compared>;
}
