//! Where segments come from: the folder of a store, a bucket, or several of them. Everything that lists and reads points goes through
//! [`Segments`]; what writes a store knows that it has a folder.

mod folder;

use std::path::PathBuf;

use journal_format::segment::{FrameEntry, SegmentIndex, SegmentSource};
use journal_format::{Generation, GroupName, Sequence};

use crate::error::StoreError;

/// A segment as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ListedSegment {
    pub(crate) sequence: Sequence,
    pub(crate) generation: Generation,
    /// Number of the claim under which it was put into a bucket; 0 in a folder.
    pub(crate) claim: u32,
    pub(crate) size_bytes: u64,
}

/// A frame that is going to be read.
#[derive(Clone, Copy)]
pub(crate) struct WantedFrame<'a> {
    pub(crate) segment: &'a SegmentSource,
    pub(crate) entry: &'a FrameEntry,
}

/// Segments that can be listed and read; used by many threads at once.
pub(crate) trait Segments: Send + Sync {
    /// The store, for people: its folder or its URL.
    fn location(&self) -> String;

    /// Groups that have segments, in the order of their names.
    fn groups(&self) -> Result<Vec<GroupName>, StoreError>;

    /// Segments that may be in a group's chain, in order.
    fn list(&self, group: &GroupName) -> Result<Vec<ListedSegment>, StoreError>;

    /// How many listed segments are worth reading with one call.
    fn at_once(&self) -> usize {
        1
    }

    /// Reads and verifies everything of listed segments but their payload, in their order.
    fn read_listed(
        &self,
        group: &GroupName,
        listed: &[ListedSegment],
    ) -> Vec<Result<SegmentIndex, StoreError>>;

    /// Reads everything of a segment but its payload. It is the one with this hash.
    fn index(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError>;

    /// Reads many of them and hands them over in their order.
    fn indexes(
        &self,
        segments: &[SegmentSource],
        take: &mut dyn FnMut(SegmentIndex) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        segments.iter().try_for_each(|segment| take(self.index(segment)?))
    }

    /// Reads, verifies and decompresses a frame.
    fn frame(&self, frame: &WantedFrame<'_>) -> Result<Vec<u8>, StoreError>;

    /// Whether it helps to say ahead what is going to be read.
    fn reads_ahead(&self) -> bool {
        false
    }

    /// Hears what is going to be read, in this order. Does not wait, and takes on what it has memory for.
    fn expect(&self, _frames: &[WantedFrame<'_>]) {}

    /// Reads and verifies every byte of a listed segment, as it is stored now.
    fn verify(&self, group: &GroupName, listed: &ListedSegment) -> Result<SegmentIndex, StoreError>;

    /// Reads and verifies every byte of a segment, as it is stored now.
    fn verify_named(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError>;

    /// Where a segment lies: a path or URL.
    fn place(&self, segment: &SegmentSource) -> PathBuf;

    /// Where a listed segment lies.
    fn place_listed(&self, group: &GroupName, listed: &ListedSegment) -> PathBuf;

    /// The group that this one is the seed of, if it is one.
    fn seed_of(&self, group: &GroupName) -> Result<Option<GroupName>, StoreError>;
}
