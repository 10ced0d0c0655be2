//! Keeps groups in object storage: the road to a recovery site that has no server of ours.
//!
//! `BUCKET.md` is the definition; begin there. [`keys`] and [`documents`] are what lies in a bucket, [`chain`] decides which of its
//! segments are a group's. [`lister`] reads one.

pub mod chain;
pub mod documents;
mod error;
pub mod keys;
pub mod lister;

pub use error::RoadError;
