//! When things are due. Pure: time is an argument, nothing is read and nothing is started.
//!
//! Begin with [`CutTimer`], which decides when a group's epoch ends.

mod cut_timer;

pub use cut_timer::{CutTimer, OpenEpoch};
