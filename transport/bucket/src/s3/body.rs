//! Reads an object, and goes on where an answer broke off.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::DateTime as SdkTime;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, Result};
use tokio::time::{Instant, timeout};

use super::classify::error_of;
use super::{Shared, changed};
use crate::meter::RequestKind;
use crate::retry::{Request, Tries};
use crate::store_error::{BucketError, Cause};

/// An object, or a range of it, that is being read.
#[derive(Debug)]
pub(super) struct Body {
    shared: Arc<Shared>,
    key: Path,
    meta: ObjectMeta,
    /// What is read.
    range: Range<u64>,
    /// Where the next byte is in the object.
    position: u64,
    chunks: ByteStream,
    /// How long this answer may still be waited for; the reader's own time does not count.
    patience: Duration,
    tries: Tries,
    /// When the first of `tries` began.
    begun: Instant,
}

/// What an answer says of itself.
struct Head {
    meta: ObjectMeta,
    range: Range<u64>,
    chunks: ByteStream,
}

impl Body {
    /// Asks for the object, and answers when its first bytes may be read.
    pub(super) async fn open(
        shared: Arc<Shared>,
        key: Path,
        options: GetOptions,
    ) -> Result<Self, BucketError> {
        let request = shared.request(RequestKind::Get, &key, 0);
        let head =
            shared.retrier.run(&request, async |_| ask(&shared, &request, &key, &options).await).await?;
        let policy = *shared.retrier.policy();
        let Head { meta, range, chunks } = head;
        Ok(Self {
            position: range.start,
            patience: policy.request_timeout(range.end - range.start),
            tries: Tries::new(policy),
            begun: Instant::now(),
            shared,
            key,
            meta,
            range,
            chunks,
        })
    }

    pub(super) fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    pub(super) fn into_stream(self) -> BoxStream<'static, Result<Bytes>> {
        let chunks = stream::try_unfold(self, |mut body| async move {
            let chunk = body.next().await?;
            Ok::<_, BucketError>(chunk.map(|chunk| (chunk, body)))
        });
        chunks.map_err(Into::into).boxed()
    }

    /// The next bytes; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, BucketError> {
        while self.position < self.range.end {
            let error = match self.receive().await {
                Ok(chunk) => {
                    self.position += chunk.len() as u64;
                    self.shared.retrier.meter().count_received(chunk.len() as u64);
                    // What makes progress is not given up: the deadline is for a server that gives nothing.
                    self.tries = Tries::new(*self.shared.retrier.policy());
                    self.begun = Instant::now();
                    return Ok(Some(chunk));
                }
                Err(error) => error,
            };
            self.shared.retrier.meter().count_broken_body();
            self.reopen(error).await?;
        }
        Ok(None)
    }

    /// One chunk of this answer.
    async fn receive(&mut self) -> Result<Bytes, BucketError> {
        let failed = |cause| BucketError::new("read the body of", place(&self.shared, &self.key), cause);
        let after = self.patience.min(self.shared.retrier.policy().request_base);
        let begun = Instant::now();
        let next = timeout(after, self.chunks.next()).await;
        self.patience = self.patience.saturating_sub(begun.elapsed());
        let chunk = match next {
            Err(_) => return Err(failed(Cause::TimedOut { after })),
            Ok(None) => {
                let what = format!("it ends at byte {}, expected {}", self.position, self.range.end);
                return Err(failed(Cause::BadAnswer { what }));
            }
            Ok(Some(Err(error))) => return Err(failed(Cause::Lost).with_source(error)),
            Ok(Some(Ok(chunk))) => chunk,
        };
        if chunk.len() as u64 > self.range.end - self.position {
            let what = format!("it goes on behind byte {}", self.range.end);
            return Err(failed(Cause::BadAnswer { what }));
        }
        Ok(chunk)
    }

    /// Asks for the rest of the same object, until the server gives it or `error` and its successors are final.
    async fn reopen(&mut self, mut error: BucketError) -> Result<(), BucketError> {
        let shared = Arc::clone(&self.shared);
        let options = GetOptions {
            range: Some(GetRange::Bounded(self.position..self.range.end)),
            if_match: self.meta.e_tag.clone(),
            ..GetOptions::default()
        };
        loop {
            shared.retrier.pause_or_give_up(&mut self.tries, self.begun, error).await?;
            let request = shared.request(RequestKind::Get, &self.key, 0);
            let asked =
                shared.retrier.once(&request, Box::pin(ask(&shared, &request, &self.key, &options))).await;
            error = match asked {
                // Not every server obeys `if-match`.
                Ok(head)
                    if head.range == (self.position..self.range.end)
                        && (head.meta.size, &head.meta.e_tag) == (self.meta.size, &self.meta.e_tag) =>
                {
                    self.patience = shared.retrier.policy().request_timeout(self.range.end - self.position);
                    self.chunks = head.chunks;
                    return Ok(());
                }
                Ok(_) => BucketError::new(request.kind.verb(), request.place, Cause::Changed),
                Err(error) => error,
            };
        }
    }
}

fn place(shared: &Shared, key: &Path) -> String {
    format!("s3://{}/{key}", shared.bucket)
}

async fn ask(
    shared: &Shared,
    request: &Request,
    key: &Path,
    options: &GetOptions,
) -> Result<Head, BucketError> {
    let answer = shared
        .client
        .get_object()
        .bucket(&shared.bucket)
        .key(key.as_ref())
        .set_range(options.range.as_ref().map(ToString::to_string))
        .set_if_match(options.if_match.clone())
        .set_if_none_match(options.if_none_match.clone())
        .send()
        .await
        .map_err(|error| changed(error_of(request, error)))?;
    head(request, key, options.range.is_some(), answer)
}

fn head(request: &Request, key: &Path, ranged: bool, answer: GetObjectOutput) -> Result<Head, BucketError> {
    let bytes = length(request, answer.content_length)?;
    let (range, size) = match (answer.content_range.as_deref(), ranged) {
        (None, false) => (0..bytes, bytes),
        (Some(text), true) => content_range(text)
            .filter(|(range, _)| range.end - range.start == bytes)
            .ok_or_else(|| bad_answer(request, format!("its range is '{text}', of {bytes} bytes")))?,
        (None, true) => {
            let cause = Cause::NotSupported { what: "reading a range of an object".into() };
            return Err(BucketError::new(request.kind.verb(), &*request.place, cause));
        }
        (Some(text), false) => {
            return Err(bad_answer(request, format!("a range '{text}', though none was asked for")));
        }
    };
    let meta = ObjectMeta {
        location: key.clone(),
        last_modified: time(answer.last_modified),
        size,
        e_tag: answer.e_tag,
        version: answer.version_id,
    };
    Ok(Head { meta, range, chunks: answer.body })
}

fn bad_answer(request: &Request, what: String) -> BucketError {
    BucketError::new(request.kind.verb(), &*request.place, Cause::BadAnswer { what })
}

/// A length that the server must state.
pub(super) fn length(request: &Request, length: Option<i64>) -> Result<u64, BucketError> {
    let length = length.and_then(|length| u64::try_from(length).ok());
    length.ok_or_else(|| bad_answer(request, "it does not state its length".into()))
}

/// The range and the size in `bytes 0-9/100`.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then_some((first..last + 1, size))
}

pub(super) fn time(time: Option<SdkTime>) -> DateTime<Utc> {
    time.and_then(|time| DateTime::from_timestamp(time.secs(), time.subsec_nanos())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_understood_or_refused() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0..10, 100)));
        assert_eq!(content_range("bytes 99-99/100"), Some((99..100, 100)));
        for wrong in ["", "bytes */100", "bytes 9-0/100", "bytes 0-100/100", "bytes 0-9/*", "bytes -1-9/100"]
        {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
