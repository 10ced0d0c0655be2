//! The recovery site: keeps received segments, knows their points, and makes disks and running VMs of them again.
//!
//! [`ReceivedCounters, StoreWriter`] takes in what the transport receives, and [`import_seed`] what was carried. [`Store`] lists points and works without any daemon.
//! [`PointView`] is a point that is open for reading; everything that gives its bytes away is made from one:
//! an NBD server, raw, qcow2, device, and QEMU. `STORE.md` defines the folder.
//!
//! # What it deliberately does not know
//! - Where segments come from: it implements the transport's [`Inbox`](transport::Inbox) and sees no network.
//! - Any async runtime: everything is synchronous, with threads where they help.
//! - Settings and the command line: callers pass options.
//!
//! # Where to begin reading
//! `store/attach.rs` decides what becomes part of a timeline; `catalog/refresh.rs` makes the catalog agree with the
//! segments; `view/map.rs` merges segments to a volume; `boot/command_line.rs` makes QEMU's arguments.

mod blocks;
mod boot;
mod cache;
mod catalog;
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
mod store;
mod verify;
mod view;

pub use boot::{BootError, BootOptions, BootReport, Console, Monitor, Network, Stopper, Vm};
pub use catalog::{GroupSummary, HeartbeatRecord, Point};
pub use error::StoreError;
pub use export::{Access, exports_of};
pub use image::{ImageError, ImageFormat, ImageOptions, Restored, restore_volume};
pub use program::ProgramError;
pub use seed::{ImportError, ImportedSeed, SEED_PEER, import_seed};
pub use select::Selector;
pub use store::{ReceivedCounters, Store, StoreWriter, WriterOptions};
pub use verify::{DamagedSegment, GroupReport, verify_store};
pub use view::{PointView, ViewOptions, VolumeView, ZeroRun};
