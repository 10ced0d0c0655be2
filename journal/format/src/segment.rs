//! The segment: an immutable, sealed file with the changes of one or more epochs. Layout in `FORMAT.md`.
//!
//! [`SegmentBuilder`] makes one in memory. [`SegmentIndex`] is all of one but its payload; it can be read with three
//! ranged reads and is verified before it is handed out. [`FrameEntry::decode`] checks and decompresses one frame.

mod build;
mod index;
mod layout;
mod meta;
mod read;

pub use build::{BuildOptions, SealedSegment, SegmentBuilder, SegmentTail};
pub use index::{Extent, ExtentContent, FrameCodec, FrameEntry};
pub use layout::{
    FORMAT_VERSION, HEADER_BYTES, Header, MAX_DEFINITION_BYTES, MAX_FRAME_RAW_BYTES, MAX_INDEX_RAW_BYTES,
    MAX_META_BYTES, MAX_SEGMENT_BYTES, TRAILER_BYTES, Trailer,
};
pub use meta::{PointKind, PointRecord, SegmentMeta, VolumeKind, VolumeRecord};
pub use read::{SegmentIndex, verify_segment};

#[cfg(test)]
mod tests;
