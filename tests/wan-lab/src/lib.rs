//! An emulated wide-area link for tests and measurements: one seeded model, several engines that put real programs on it.
//!
//! `WAN-LAB.md` is the definition; begin there. [`profile`] reads what a link is like, [`model`] decides the fate of each
//! packet without I/O and without a clock, the engines ([`virtual_time`], [`relay`], [`namespaces`]) drive it, [`report`] sums a run up and [`plot`] draws it.
//!
//! This crate does not know what travels over the link: no other crate of the workspace is used here.

pub mod error;
pub mod health;
pub mod lateness;
pub mod model;
pub mod namespaces;
pub mod plot;
pub mod profile;
mod pump;
pub mod relay;
pub mod report;
pub mod virtual_time;

pub use error::LabError;
pub use health::{Health, LatenessSummary};
pub use lateness::Lateness;
pub use model::{Counters, Direction, DropCause, Verdict};
pub use namespaces::{Namespaces, Side};
pub use profile::{
    Change, DirectionSettings, Directions, LinkProfile, LinkState, Outage, ProfileError, Rate, Share, Way,
};
pub use relay::{TcpRelay, UdpRelay};
pub use report::{Report, RunEnd, Sample};
pub use virtual_time::{VirtualNet, VirtualSocket};
