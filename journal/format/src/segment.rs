//! The segment: an immutable, sealed file with the changes of one or more epochs. Layout in `FORMAT.md`.
//!
//! [`SegmentWriter`] makes one from frames and extents, [`SegmentBuilder`] from ranges of bytes. [`SegmentIndex`] is all of one but its payload; it can be read with three
//! ranged reads and is verified before it is handed out. [`FrameEntry::decode`] checks and decompresses one frame.

mod build;
mod frame;
mod index;
mod layout;
mod meta;
mod name;
mod read;
mod reference;

pub use build::{
    BuildOptions, FrameSlot, SealedSegment, SegmentBuilder, SegmentTail, SegmentWriter, block_pieces,
};
pub use frame::{
    EncodedFrame, FrameCodec, FrameDecoder, FrameEncoder, FrameEntry, FrameKind, apply_difference,
    block_hashes, combined_hash,
};
pub use index::{Extent, ExtentContent};
pub use layout::{
    DIFFERENCE_STEPS_MAX, FORMAT_VERSION, HEADER_BYTES, Header, MAX_DEFINITION_BYTES, MAX_FRAME_RAW_BYTES,
    MAX_INDEX_RAW_BYTES, MAX_META_BYTES, MAX_SEGMENT_BYTES, TRAILER_BYTES, Trailer,
};
pub use meta::{PointKind, PointRecord, SegmentMeta, VolumeKind, VolumeRecord};
pub use name::{file_name, sequence_of};
pub use read::{SegmentIndex, verify_segment};
pub use reference::{BlockPlace, Reference, SegmentSource};

#[cfg(test)]
mod tests;
