//! The protocol's state changes, one machine for a group on each side, without I/O: `handle_*` takes events in, `poll_*`
//! gives actions out, and time is an argument.

mod backoff;
mod site;
mod source;

pub use backoff::Backoff;
pub(crate) use site::{Opened, SiteAction, SiteSession};
pub(crate) use source::{SourceAction, SourceEnd, SourceSession, SourceSessionOptions, WriteFailure};

#[cfg(test)]
mod tests;
