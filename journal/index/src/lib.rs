//! An index of the 4 KiB blocks that the recovery site is known to keep: from a block's hash to where it lies.
//!
//! It is a hint that nobody trusts. Whoever gets a hit checks the block with its full hash, so a wrong or stale hit and a
//! missing entry cost bytes on the wire, and nothing else. That is why the index syncs nothing, drops what it cannot read,
//! and knows neither blocks nor segments, only numbers. `INDEX.md` states its files and what a crash leaves of them.
//!
//! It is a log-structured merge index of 16 shards, because a table with random places would cost the write of a page for
//! each block. Entries gather in memory; a full table becomes a sorted, immutable run; runs are merged. A look-up asks a
//! Bloom filter in memory for each run and reads one page for a hit.
//!
//! Merging is done by one background thread of the index. Steps between inserts would be simpler to reason about, but
//! whoever inserts is sealing a segment that others wait for, and an entry is merged four to seven times. A shard is merged
//! by itself: the largest merge takes a sixteenth of the entries, a second or two at 1 TiB, and for that time a sixteenth
//! more of memory and disk. An insert waits for it only if the thread is more than 32 tables of a shard behind, or if the
//! index is full.
//!
//! Memory, for each TiB of unique blocks (268 million entries): up to 270 MiB of filters and 8 MiB of fences; besides,
//! 17 MiB for the tables at their default size, and about 130 bytes for each known segment. On disk: 4.3 GiB.
//!
//! Begin with [`Index`].

mod error;
mod filter;
mod index;
mod location;
mod merge;
mod run;
mod segments;
mod shard;

pub use error::IndexError;
pub use index::{Discarded, Index, Opened, Options, Statistics};
pub use location::Location;
pub use segments::SegmentRecord;
