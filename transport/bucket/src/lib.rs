//! Keeps groups in object storage: the road to a recovery site that has no server of ours.
//!
//! `BUCKET.md` is the definition; begin there. [`keys`] and [`documents`] are what lies in a bucket, [`chain`] decides which of its
//! segments are a group's. [`BucketLink`] ships groups into a bucket, [`lister`] is what reads one.

pub mod chain;
pub mod documents;
mod error;
pub mod keys;
pub mod lister;
mod putter;
mod road;

pub use error::RoadError;
pub use putter::{SegmentPutter, WholePutter};
pub use road::{BucketGroupStatus, BucketLink, BucketLinkOptions, ReceiptRule};

#[cfg(test)]
mod rig;
