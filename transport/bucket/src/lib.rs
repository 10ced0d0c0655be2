//! Keeps groups in object storage: the road to a recovery site that has no server of ours.
//!
//! `BUCKET.md` is the definition; begin there. [`keys`] and [`documents`] are what lies in a bucket, [`chain`] decides which of its
//! segments are a group's. [`BucketSettings`] opens a bucket as an `object_store::ObjectStore`, whatever it is: S3 (`s3`), a
//! directory, or memory. [`BucketLink`] ships groups into it, [`lister`] is what reads it. What one request may meet is in `retry`
//! and `store_error`.

pub mod chain;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod cost;
pub mod documents;
mod error;
#[cfg(any(test, feature = "testing"))]
pub mod faults;
pub mod keys;
pub mod lister;
mod meter;
mod probe;
mod put_file;
mod retry;
mod road;
mod s3;
mod settings;
mod staged;
mod store_error;

pub use cost::{MonthlyCost, Prices};
pub use error::RoadError;
pub use meter::{Meter, MeteredStore, RequestKind, Traffic};
pub use probe::{Ability, ProbeReport, probe};
pub use put_file::put_file;
pub use retry::{Decision, RetryPolicy, Tries};
pub use road::{BucketGroupStatus, BucketLink, BucketLinkHandle, BucketLinkOptions, ReceiptRule};
pub use s3::{
    Authority, AuthorityError, Checksums, CredentialsSource, IfAbsent, KeyFileError, S3Options, S3Store,
};
pub use settings::{BucketSettings, BucketSettingsError, Fencing, OpenBucket, Receipts};
pub use staged::StagedStore;
pub use store_error::{BucketError, Cause};

#[cfg(test)]
mod rig;
#[cfg(test)]
mod testing;
