//! Takes one segment from its stream into a sink.

use std::sync::Arc;

use journal_format::{GroupName, Position};
use quinn::RecvStream;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::quic::code;
use crate::traits::{Begin, Inbox, SegmentSink};
use crate::wire::{Refusal, RefusalKind, SegmentDescriptor};

/// Bytes handed to a sink at once; fixed, whatever a descriptor claims.
const BUFFER_BYTES: usize = 128 * 1024;

/// What became of a segment.
pub(super) enum Outcome {
    /// It was here already.
    Had(Option<Position>),
    /// It is durable and verified.
    Committed(Option<Position>),
    Refused(Refusal),
    /// Its stream broke, or the session ended. Nothing is kept, and nobody is told: the source knows.
    Lost,
}

/// Runs the implementer's code on a blocking thread. A panic there counts as a passing fault of the site.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    spawn_blocking(call).await.unwrap_or_else(|error| {
        tracing::error!(%error, "the store failed while it was taking a segment");
        Err(Refusal::new(
            RefusalKind::Retry,
            "the site failed while it was taking the segment",
            "see the site's log",
        ))
    })
}

/// Receives `segment`. Ends early, without harm, when `cancelled`; blocking calls are waited for.
pub(super) async fn receive(
    inbox: Arc<dyn Inbox>,
    group: GroupName,
    segment: SegmentDescriptor,
    mut stream: RecvStream,
    cancelled: CancellationToken,
) -> Outcome {
    let begun = {
        let inbox = inbox.clone();
        blocking(move || inbox.begin(&group, &segment)).await
    };
    let outcome = match begun {
        Ok(Begin::Have(head)) => Outcome::Had(head),
        Ok(Begin::Receive(sink)) => fill(sink, &segment, &mut stream, &cancelled).await,
        Err(refusal) => Outcome::Refused(refusal),
    };
    let stop = match &outcome {
        Outcome::Had(_) => Some(code::STREAM_HAVE),
        Outcome::Refused(_) => Some(code::STREAM_REFUSED),
        Outcome::Committed(_) | Outcome::Lost => None,
    };
    if let Some(code) = stop {
        // A stream that has ended needs no stopping.
        stream.stop(code).ok();
    }
    outcome
}

async fn fill(
    mut sink: Box<dyn SegmentSink>,
    segment: &SegmentDescriptor,
    stream: &mut RecvStream,
    cancelled: &CancellationToken,
) -> Outcome {
    let mut left = segment.size_bytes;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = tokio::select! {
            read = read_full(stream, &mut buffer) => read,
            () = cancelled.cancelled() => return dropped(sink).await,
        };
        let Ok(length) = read else { return dropped(sink).await };
        if length == 0 {
            break;
        }
        if length as u64 > left {
            return refuse_size(sink, "more").await;
        }
        left -= length as u64;
        let written = blocking(move || {
            sink.write(&buffer[..length])?;
            Ok((sink, buffer))
        });
        (sink, buffer) = match written.await {
            Ok(returned) => returned,
            Err(refusal) => return Outcome::Refused(refusal),
        };
    }
    if left > 0 {
        return refuse_size(sink, "fewer").await;
    }
    match blocking(move || sink.commit()).await {
        Ok(head) => Outcome::Committed(head),
        Err(refusal) => Outcome::Refused(refusal),
    }
}

/// Fills the buffer unless the stream ends before; answers how many bytes it holds.
async fn read_full(stream: &mut RecvStream, buffer: &mut [u8]) -> Result<usize, quinn::ReadError> {
    let mut length = 0;
    while length < buffer.len() {
        match stream.read(&mut buffer[length..]).await? {
            Some(read) => length += read,
            None => break,
        }
    }
    Ok(length)
}

async fn refuse_size(sink: Box<dyn SegmentSink>, than: &'static str) -> Outcome {
    dropped(sink).await;
    Outcome::Refused(Refusal::new(
        RefusalKind::Corrupt,
        format!("{than} bytes arrived than the segment's descriptor says"),
        "the source's journal or release is at fault; nothing of it was kept",
    ))
}

/// Drops a sink where it may block: it discards what it wrote.
async fn dropped(sink: Box<dyn SegmentSink>) -> Outcome {
    let discard = blocking(move || {
        drop(sink);
        Ok(())
    });
    match discard.await {
        Ok(()) => Outcome::Lost,
        Err(refusal) => Outcome::Refused(refusal),
    }
}
