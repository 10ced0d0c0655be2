//! When a failed request is tried again, and when it is given up.
//!
//! [`Tries`] decides and knows no clock; [`Retrier`] performs. Pauses are full jitter over a doubling bound (Brooker,
//! "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): writers that failed together do not come back together.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::meter::{Meter, Outcome, RequestKind};
use crate::store_error::{BucketError, Cause};

/// How long and how often a request is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// From the first try until no other one is begun.
    pub deadline: Duration,
    /// Bound of the first pause; each further one is twice as long.
    pub first_pause: Duration,
    /// No bound is longer.
    pub longest_pause: Duration,
    /// What one request may take besides the time for its bytes; also how long one may make no progress.
    pub request_base: Duration,
    /// Slowest rate at which a request's bytes may go, per second.
    pub request_bytes_per_second: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            deadline: Duration::from_mins(10),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(20),
            request_base: Duration::from_secs(30),
            request_bytes_per_second: 64 * 1024,
        }
    }
}

impl RetryPolicy {
    /// What one request with so many bytes, sent or received, may take.
    #[must_use]
    pub fn request_timeout(&self, bytes: u64) -> Duration {
        let transfer = Duration::from_secs(bytes.div_ceil(self.request_bytes_per_second.max(1)));
        self.request_base.saturating_add(transfer)
    }
}

/// What follows from a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again after this pause.
    Again(Duration),
    /// The failure is the answer.
    GiveUp,
}

/// The tries of one request.
#[derive(Clone, Debug)]
pub struct Tries {
    policy: RetryPolicy,
    failed: u32,
}

impl Tries {
    /// No try has been made.
    #[must_use]
    pub fn new(policy: RetryPolicy) -> Self {
        Self { policy, failed: 0 }
    }

    /// How many tries have failed.
    #[must_use]
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// Takes in that a try failed, `elapsed` after the first one began, and decides. `random` is uniform in 0..=`u64::MAX`.
    ///
    /// What the server asks to wait for is the least that is waited; the jitter comes on top, because all that it told the
    /// same would else come back at once.
    pub fn handle_failure(
        &mut self,
        elapsed: Duration,
        passing: bool,
        retry_after: Option<Duration>,
        random: u64,
    ) -> Decision {
        self.failed += 1;
        if !passing {
            return Decision::GiveUp;
        }
        let doublings = (self.failed - 1).min(30);
        let bound = self.policy.first_pause.saturating_mul(1 << doublings).min(self.policy.longest_pause);
        let pause = retry_after.unwrap_or_default().saturating_add(share(bound, random));
        if elapsed.saturating_add(pause) >= self.policy.deadline {
            return Decision::GiveUp;
        }
        Decision::Again(pause)
    }
}

/// `random` in the range 0..=`whole`.
fn share(whole: Duration, random: u64) -> Duration {
    let nanoseconds = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    let part = (u128::from(nanoseconds) * u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(part).unwrap_or(nanoseconds))
}

/// What a request is, for its time, its errors and the counters.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) kind: RequestKind,
    /// Object, or place of the bucket.
    pub(crate) place: String,
    /// Bytes that are sent, or expected.
    pub(crate) bytes: u64,
}

/// Performs requests until they succeed or are given up.
#[derive(Debug)]
pub(crate) struct Retrier {
    policy: RetryPolicy,
    meter: Meter,
}

impl Retrier {
    pub(crate) fn new(policy: RetryPolicy, meter: Meter) -> Self {
        Self { policy, meter }
    }

    pub(crate) fn policy(&self) -> &RetryPolicy {
        &self.policy
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Makes `attempt`, each time with the number of tries that failed before, until it succeeds or is given up.
    ///
    /// # Errors
    /// The last try's error, with the number of tries and the time they took.
    ///
    /// # Cancel safety
    /// The request may or may not have taken effect when this is dropped.
    pub(crate) async fn run<T, F>(
        &self,
        request: &Request,
        mut attempt: impl FnMut(u32) -> F,
    ) -> Result<T, BucketError>
    where
        F: Future<Output = Result<T, BucketError>>,
    {
        let mut tries = Tries::new(self.policy);
        let begun = Instant::now();
        loop {
            let error = match self.once(request, Box::pin(attempt(tries.failed()))).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            self.pause_or_give_up(&mut tries, begun, error).await?;
        }
    }

    /// Makes one try, in the time that it may take, and counts it.
    pub(crate) async fn once<T>(
        &self,
        request: &Request,
        attempt: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        let after = self.policy.request_timeout(request.bytes);
        let result = timeout(after, attempt).await.unwrap_or_else(|_| {
            Err(BucketError::new(request.kind.verb(), &*request.place, Cause::TimedOut { after }))
        });
        let sent = if request.kind.sends_bytes() { request.bytes } else { 0 };
        self.meter.count(request.kind, sent, result.as_ref().err().map_or(Outcome::Done, Outcome::of));
        result
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// `error`, when there is no next try.
    pub(crate) async fn pause_or_give_up(
        &self,
        tries: &mut Tries,
        begun: Instant,
        mut error: BucketError,
    ) -> Result<(), BucketError> {
        let elapsed = begun.elapsed();
        let passing = error.cause.is_passing();
        let retry_after = error.retry_after_seconds.map(|seconds| Duration::from_secs(seconds.into()));
        match tries.handle_failure(elapsed, passing, retry_after, fastrand::u64(..)) {
            Decision::Again(pause) => {
                tracing::debug!(%error, pause_ms = pause.as_millis(), "trying again");
                self.meter.count_retry();
                sleep(pause).await;
                Ok(())
            }
            Decision::GiveUp => {
                error.tries = tries.failed();
                error.over = elapsed;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests;
