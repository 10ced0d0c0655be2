//! Where segments come from: the folder of a store, a bucket, or several of them. Everything that lists and reads points goes through
//! [`Segments`]; what writes a store knows that it has a folder.

mod folder;

use std::path::PathBuf;

use bytes::Bytes;
use journal_format::segment::{FrameEntry, SegmentIndex, SegmentSource, verify_segment};
use journal_format::{Generation, GroupName, Hash, Sequence, Timestamp};
use transport::{Fingerprint, Heartbeat, PeerName};

use crate::catalog::SegmentRow;
use crate::decoding::{Decode, Decoding};
use crate::error::StoreError;

/// A segment as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ListedSegment {
    pub(crate) sequence: Sequence,
    /// What its name says, if that says one.
    pub(crate) generation: Option<Generation>,
    /// Number of the claim under which it was put into a bucket; 0 in a folder.
    pub(crate) claim: u64,
    pub(crate) size_bytes: u64,
    /// Its hash, if that is known without reading it.
    pub(crate) hash: Option<Hash>,
}

impl ListedSegment {
    /// The segment, as others refer to it, if its hash is known.
    pub(crate) fn source(&self, group: &GroupName) -> SegmentSource {
        SegmentSource {
            group: group.clone(),
            generation: self.generation.unwrap_or(Generation(0)),
            sequence: self.sequence,
            hash: self.hash.unwrap_or(Hash::ZERO),
        }
    }
}

/// What is known already of a group's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownChain {
    /// Its last segment.
    pub(crate) head: Sequence,
    /// The newest claim that any of its segments was put under.
    pub(crate) claim: u64,
}

impl KnownChain {
    /// Of a chain's segments, oldest first; nothing if there are none.
    pub(crate) fn of(rows: &[SegmentRow]) -> Option<KnownChain> {
        let head = rows.last()?.position.sequence;
        Some(KnownChain { head, claim: rows.iter().map(|row| row.claim).max().unwrap_or_default() })
    }
}

/// What a listing shows of a group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    /// Up to here what was known is the chain, and is not listed.
    pub(crate) kept: Sequence,
    /// In order.
    pub(crate) segments: Vec<ListedSegment>,
}

/// Who writes a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupWriter {
    pub(crate) name: PeerName,
    /// Fingerprint of its identity, where that is kept.
    pub(crate) fingerprint: Option<Fingerprint>,
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

    /// Segments that may be in a group's chain, in order. Of a chain that is known already, only those behind what still belongs to it may be
    /// listed.
    fn list(&self, group: &GroupName, known: Option<KnownChain>) -> Result<Listing, StoreError>;

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

    /// Reads and decodes a frame; of a difference frame the differences. What does not come from the place that it came from before is verified,
    /// however sound it was there.
    fn frame(
        &self,
        frame: &WantedFrame<'_>,
        how: Decode,
        decoding: &mut Decoding,
    ) -> Result<Vec<u8>, StoreError>;

    /// Whether it helps to say ahead what is going to be read.
    fn reads_ahead(&self) -> bool {
        false
    }

    /// Hears what is going to be read, in this order. Does not wait, and takes on what it has memory for.
    fn expect(&self, _frames: &[WantedFrame<'_>]) {}

    /// Reads and verifies every byte of a listed segment, as it is stored now. What it refers to, and what its differences stand for, is not
    /// looked at.
    fn verify(&self, group: &GroupName, listed: &ListedSegment) -> Result<SegmentIndex, StoreError>;

    /// Reads and verifies a segment like [`Segments::verify`].
    fn verify_named(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError>;

    /// Reads a segment as a whole, at most 256 MiB, and verifies every byte.
    fn whole(&self, segment: &SegmentSource) -> Result<Bytes, StoreError>;

    /// Who writes a group; nothing if nobody ever claimed it.
    fn writer(&self, group: &GroupName) -> Result<Option<GroupWriter>, StoreError>;

    /// Where a segment lies: a path or URL.
    fn place(&self, segment: &SegmentSource) -> PathBuf;

    /// Where a listed segment lies.
    fn place_listed(&self, group: &GroupName, listed: &ListedSegment) -> PathBuf;

    /// The group that this one is the seed of, if it is one.
    fn seed_of(&self, group: &GroupName) -> Result<Option<GroupName>, StoreError>;

    /// What a source last said of itself and when that was put, if it is kept beside the segments. A store that is written by a daemon has it in
    /// its catalog.
    fn heartbeat(&self, _group: &GroupName) -> Result<Option<(Heartbeat, Timestamp)>, StoreError> {
        Ok(None)
    }
}

/// Whether bytes are all of a segment, which is the one with this hash.
pub(crate) fn check_whole(
    segment: &SegmentSource,
    bytes: &[u8],
    place: impl FnOnce() -> PathBuf,
) -> Result<(), StoreError> {
    match verify_segment(bytes) {
        Ok(index) => same_segment(segment, &index, place),
        Err(source) => Err(StoreError::Damaged { path: place(), source }),
    }
}

/// Whether a segment that was found where another one named it is that one.
pub(crate) fn same_segment(
    expected: &SegmentSource,
    index: &SegmentIndex,
    place: impl FnOnce() -> PathBuf,
) -> Result<(), StoreError> {
    let (expected, actual) = (expected.hash, index.trailer.hash);
    if expected == actual {
        Ok(())
    } else {
        Err(StoreError::OtherSegment { path: place(), expected, actual })
    }
}
