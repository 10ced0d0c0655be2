//! Ids, hashes and every byte layout of `thirdsite`: what a segment is, and nothing about where it lies.
//!
//! This crate does no I/O, knows no clock and starts no thread. It turns bytes into checked values and back, so that the
//! protected site, the wire, the recovery site and a bucket share one definition. Start with `FORMAT.md`, then
//! [`segment`].

mod block_hash;
pub mod definition;
mod error;
mod ids;
pub mod seed;
pub mod segment;

pub use block_hash::hash_blocks;
pub use error::{ErrorKind, FormatError, with_causes};
pub use ids::{
    BookmarkName, Epoch, Generation, GroupName, Hash, PointId, Position, Sequence, Timestamp, VolumeName,
};

/// Smallest unit of a write, of an extent and of a volume's size, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// Unit of change detection and of zero elision, in bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Comparing with itself one byte further is a memcmp, which is vectorised.
    bytes.split_first().is_none_or(|(&first, rest)| first == 0 && rest == &bytes[..rest.len()])
}
