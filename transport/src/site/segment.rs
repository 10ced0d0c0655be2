//! Takes one piece of a segment from its stream.

use std::sync::Arc;
use std::time::Duration;

use journal_format::{GroupName, Position};
use quinn::{ReadError, RecvStream};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::connection::Offer;
use super::partials::{Chunk, Incomplete, Partials, Taken};
use crate::quic::code;
use crate::traits::Inbox;
use crate::wire::{PieceHeader, Refusal, RefusalKind};

/// Bytes handed to a sink at once; fixed, whatever a header claims.
const BATCH_BYTES: usize = 64 * 1024;

/// How long a piece's bytes are gathered before they are handed on: on a slow line every packet would wake a thread otherwise.
const GATHER: Duration = Duration::from_millis(5);

/// What became of a piece.
pub(super) enum Outcome {
    /// Its segment was here already.
    Had(Option<Position>),
    /// It was the last, and its segment is durable and verified.
    Committed(Option<Position>),
    /// It is here; others of its segment are not.
    Taken,
    Refused(Refusal),
    /// Its stream broke, or the session ended. What arrived is kept, and nobody is told: the source knows.
    Lost,
}

/// What a piece needs of its session.
pub(super) struct Receiver {
    pub(super) inbox: Arc<dyn Inbox>,
    pub(super) partials: Arc<Partials>,
    pub(super) group: GroupName,
    pub(super) incomplete: Arc<Incomplete>,
    pub(super) cancelled: CancellationToken,
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

impl Receiver {
    /// Receives a piece. Ends early, without harm, when cancelled; blocking calls are waited for.
    pub(super) async fn receive(self, offer: Offer) -> Outcome {
        let Offer { header, begin, mut stream } = offer;
        let begun = {
            let (inbox, group, incomplete) =
                (self.inbox.clone(), self.group.clone(), self.incomplete.clone());
            blocking(move || incomplete.begin(&*inbox, &group)).await
        };
        let outcome = match begun {
            Ok(None) => self.fill(&header, begin, &mut stream).await,
            Ok(Some(taken)) => outcome_of(taken),
            Err(refusal) => Outcome::Refused(refusal),
        };
        let stop = match &outcome {
            Outcome::Had(_) => Some(code::STREAM_HAVE),
            Outcome::Refused(_) => Some(code::STREAM_REFUSED),
            Outcome::Committed(_) | Outcome::Taken | Outcome::Lost => None,
        };
        if let Some(code) = stop {
            // A stream that has ended needs no stopping.
            stream.stop(code).ok();
        }
        match &outcome {
            Outcome::Taken | Outcome::Lost => {}
            Outcome::Had(_) | Outcome::Committed(_) => self.partials.remove(&self.group, &self.incomplete),
            Outcome::Refused(_) => self.discard().await,
        }
        outcome
    }

    /// Removes what is here of the segment, where it may block.
    async fn discard(&self) {
        self.partials.remove(&self.group, &self.incomplete);
        let incomplete = self.incomplete.clone();
        // What a panic there says was logged.
        let _ = blocking(move || {
            incomplete.discard();
            Ok(())
        })
        .await;
    }

    /// Reads in whatever order bytes come, so that a lost packet holds up nothing behind it.
    async fn fill(&self, header: &PieceHeader, begin: u64, stream: &mut RecvStream) -> Outcome {
        let mut received = 0;
        loop {
            let read = tokio::select! {
                read = read_batch(stream) => read,
                () = self.cancelled.cancelled() => return Outcome::Lost,
            };
            let (mut chunks, end) = match read {
                Ok(read) => read,
                Err(_) => return Outcome::Lost,
            };
            for (offset, bytes) in &mut chunks {
                // quinn counts from the beginning of the stream, where the header was.
                *offset = offset.saturating_sub(begin);
                received += bytes.len() as u64;
                if *offset + bytes.len() as u64 > header.length {
                    return refused_size("more");
                }
                *offset += header.offset;
            }
            if !chunks.is_empty() {
                let incomplete = self.incomplete.clone();
                match blocking(move || incomplete.take(&chunks)).await {
                    Ok(Taken::Written) => {}
                    Ok(taken) => return outcome_of(taken),
                    Err(refusal) => return Outcome::Refused(refusal),
                }
            }
            match end {
                End::Open => {}
                End::Finished if received < header.length => return refused_size("fewer"),
                End::Finished => return Outcome::Taken,
                End::Broken => return Outcome::Lost,
            }
        }
    }
}

fn outcome_of(taken: Taken) -> Outcome {
    match taken {
        Taken::Written => Outcome::Taken,
        Taken::Committed(head) => Outcome::Committed(head),
        Taken::Had(head) => Outcome::Had(head),
    }
}

enum End {
    Open,
    Finished,
    Broken,
}

/// Waits for bytes, and takes what comes within [`GATHER`]. What was read before the stream broke counts.
async fn read_batch(stream: &mut RecvStream) -> Result<(Vec<Chunk>, End), ReadError> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut length = 0;
    let mut gathered = false;
    while length < BATCH_BYTES {
        let read = stream.read_chunk(BATCH_BYTES - length, false);
        let read = if chunks.is_empty() {
            read.await
        } else {
            match if_ready(read).await {
                Some(read) => read,
                None if gathered => break,
                None => {
                    sleep(GATHER).await;
                    gathered = true;
                    continue;
                }
            }
        };
        match read {
            Ok(Some(chunk)) => {
                length += chunk.bytes.len();
                chunks.push((chunk.offset, chunk.bytes));
            }
            Ok(None) => return Ok((chunks, End::Finished)),
            Err(error) if chunks.is_empty() => return Err(error),
            Err(_) => return Ok((chunks, End::Broken)),
        }
    }
    Ok((chunks, End::Open))
}

/// What a future answers at once.
async fn if_ready<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

fn refused_size(than: &'static str) -> Outcome {
    Outcome::Refused(Refusal::new(
        RefusalKind::Corrupt,
        format!("{than} bytes arrived than the piece's header says"),
        "the source's journal or release is at fault; nothing of the segment was kept",
    ))
}
