//! Counts what is asked of a bucket: requests by kind, bytes both ways, errors and repetitions.
//!
//! [`crate::S3Store`] counts each request of HTTP by itself, repeated ones included, because that is what is paid for.
//! [`MeteredStore`] counts the calls of any other backend.

mod layer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub use self::layer::MeteredStore;
use crate::store_error::{BucketError, Cause};

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A whole object is put.
    Put,
    /// A multipart upload is begun.
    Begin,
    /// A part is put.
    Part,
    /// A multipart upload is completed.
    Complete,
    /// A multipart upload is given up.
    Abort,
    /// An object, or a range of it, is read.
    Get,
    /// An object's size and name are asked for.
    Head,
    /// A page of names is listed.
    List,
    /// An object is deleted.
    Delete,
}

impl RequestKind {
    /// What is done, for messages: "cannot … the object".
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Begin => "begin a multipart upload of",
            Self::Part => "put a part of",
            Self::Complete => "complete the multipart upload of",
            Self::Abort => "abort the multipart upload of",
            Self::Get => "get",
            Self::Head => "look at",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }

    pub(crate) fn sends_bytes(self) -> bool {
        matches!(self, Self::Put | Self::Part)
    }
}

/// How a request ended, as far as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    Throttled,
}

impl Outcome {
    /// That an object exists, or does not, is an answer and no error.
    pub(crate) fn of(error: &BucketError) -> Self {
        match error.cause {
            Cause::Exists | Cause::NotFound | Cause::Changed => Self::Done,
            Cause::Busy { .. } => Self::Throttled,
            _ => Self::Failed,
        }
    }
}

/// Counters of one bucket; clones count together.
#[derive(Clone, Debug)]
pub struct Meter {
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Counters {
    since: Instant,
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    errors: AtomicU64,
    throttled: AtomicU64,
    retries: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

/// What was asked of a bucket since its meter was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Time over which it was counted.
    pub seconds: u64,
    /// Requests that put: objects, and parts, beginnings and ends of multipart uploads.
    pub puts: u64,
    /// Requests that read an object or look at it.
    pub gets: u64,
    /// Pages of names.
    pub lists: u64,
    /// Requests that delete or abort.
    pub deletes: u64,
    /// Requests, out of those above, that failed.
    pub errors: u64,
    /// Requests, out of those that failed, that the server was too busy for.
    pub throttled: u64,
    /// Requests, out of those above, that repeat one that failed.
    pub retries: u64,
    /// Bytes of objects that were sent, each time they were.
    pub bytes_sent: u64,
    /// Bytes of objects that were received.
    pub bytes_received: u64,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    /// Counts from now on.
    #[must_use]
    pub fn new() -> Self {
        let zero = || AtomicU64::new(0);
        let counters = Counters {
            since: Instant::now(),
            puts: zero(),
            gets: zero(),
            lists: zero(),
            deletes: zero(),
            errors: zero(),
            throttled: zero(),
            retries: zero(),
            bytes_sent: zero(),
            bytes_received: zero(),
        };
        Self { counters: Arc::new(counters) }
    }

    pub(crate) fn count(&self, kind: RequestKind, sent: u64, outcome: Outcome) {
        let counters = &self.counters;
        let requests = match kind {
            RequestKind::Put | RequestKind::Begin | RequestKind::Part | RequestKind::Complete => {
                &counters.puts
            }
            RequestKind::Get | RequestKind::Head => &counters.gets,
            RequestKind::List => &counters.lists,
            RequestKind::Delete | RequestKind::Abort => &counters.deletes,
        };
        add(requests, 1);
        add(&counters.bytes_sent, sent);
        add(&counters.errors, u64::from(outcome != Outcome::Done));
        add(&counters.throttled, u64::from(outcome == Outcome::Throttled));
    }

    pub(crate) fn count_retry(&self) {
        add(&self.counters.retries, 1);
    }

    pub(crate) fn count_received(&self, bytes: u64) {
        add(&self.counters.bytes_received, bytes);
    }

    /// Counts a body that broke off, whose request was counted as done when its answer began.
    pub(crate) fn count_broken_body(&self) {
        add(&self.counters.errors, 1);
    }

    /// What was counted until now.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let counters = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            seconds: self.observed().as_secs(),
            puts: read(&counters.puts),
            gets: read(&counters.gets),
            lists: read(&counters.lists),
            deletes: read(&counters.deletes),
            errors: read(&counters.errors),
            throttled: read(&counters.throttled),
            retries: read(&counters.retries),
            bytes_sent: read(&counters.bytes_sent),
            bytes_received: read(&counters.bytes_received),
        }
    }

    fn observed(&self) -> Duration {
        self.counters.since.elapsed()
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
