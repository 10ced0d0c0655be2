//! An emulated wide-area link for tests and measurements: one seeded model, several engines that put real programs on it.
//!
//! `WAN-LAB.md` is the definition; begin there. [`profile`] reads what a link is like, [`model`] decides the fate of each
//! packet without I/O and without a clock, the engines ([`virtual_time`]) drive it.
//!
//! This crate does not know what travels over the link: no other crate of the workspace is used here.

pub mod model;
pub mod profile;
pub mod virtual_time;

pub use model::{Counters, Direction, DropCause, Verdict};
pub use profile::{Change, DirectionSettings, Directions, LinkProfile, LinkState, ProfileError, Way};
pub use virtual_time::{VirtualNet, VirtualSocket};
