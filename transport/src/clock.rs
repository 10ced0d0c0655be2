//! The clock that is used unless a caller passes another one.

use std::time::{SystemTime, UNIX_EPOCH};

use journal_format::Timestamp;

/// Answers the time of a host's clock. Only reported, never used to decide anything.
pub type Clock = fn() -> Timestamp;

/// The time of this machine's clock.
pub fn system_time() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
