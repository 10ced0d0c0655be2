//! The recovery site: keeps received segments, knows their points, and makes disks and running VMs of them again.
//!
//! [`ReceivedCounters, StoreWriter`] takes in what the transport receives, and [`import_seed`] what was carried. [`Store`] lists points and works without any daemon.
//! [`PointView`] is a point that is open for reading; everything that gives its bytes away is made from one:
//! an NBD server, raw, qcow2, device, and QEMU. `STORE.md` defines the folder.
//!
//! # What it deliberately does not know
//! - How segments arrive: it implements the transport's [`Inbox`](transport::Inbox) and sees no network. A bucket is an `ObjectStore` to it.
//! - Any async runtime but to make requests to a bucket on: everything is synchronous, with threads where they help.
//! - Settings and the command line: callers pass options.
//!
//! # Where to begin reading
//! `store/attach.rs` decides what becomes part of a timeline; `catalog/refresh.rs` makes the catalog agree with the
//! segments; `view/map.rs` merges segments to a volume; `boot/command_line.rs` makes QEMU's arguments.

mod blocks;
mod boot;
mod bucket;
mod cache;
mod catalog;
mod check;
mod copy;
mod decoding;
mod disk_cache;
mod error;
mod export;
mod frames;
mod image;
mod local_server;
mod parallel;
mod program;
mod seed;
mod segment_file;
mod segments;
mod select;
mod sound;
mod store;
mod verify;
mod view;

pub use boot::{BootError, BootOptions, BootReport, Console, Monitor, Network, Stopper, Vm};
pub use bucket::BucketPlace;
pub use catalog::{GroupSummary, HeartbeatRecord, Point};
pub use check::{CheckedGroup, Checker};
pub use copy::{BucketCopy, Copied, CopyError, copy_to_bucket, copy_to_folder};
pub use disk_cache::CacheOptions;
pub use error::StoreError;
pub use export::{Access, exports_of};
pub use image::{ImageError, ImageFormat, ImageOptions, Restored, restore_volume};
pub use program::ProgramError;
pub use seed::{ImportError, ImportedSeed, SEED_PEER, import_seed};
pub use select::Selector;
pub use store::{Place, ReceivedCounters, Store, StoreWriter, WriterOptions};
pub use verify::{DamagedSegment, GroupReport, verify_store};
pub use view::{PointView, ViewOptions, VolumeView, ZeroRun};
