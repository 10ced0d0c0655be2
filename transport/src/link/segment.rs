//! Writes one segment to a stream of its own.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use journal_format::Sequence;
use quinn::{Connection, SendStream, StoppedError, WriteError};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::group::blocking;
use crate::quic::code;
use crate::session::WriteFailure;
use crate::traits::Outbox;
use crate::wire::{Refusal, RefusalKind, SegmentDescriptor, SegmentHeader, encode};

/// Bytes read from the journal at once.
const READ_BYTES: u64 = 256 * 1024;
/// Bytes handed to quinn at once: an acknowledged part of a larger piece would keep the whole in memory.
const WRITE_BYTES: usize = 64 * 1024;

/// A stream that is reset when it is dropped before its end. quinn would finish it, which looks like a short segment.
struct AbandonOnDrop {
    stream: SendStream,
    finished: bool,
}

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        if !self.finished {
            // A stream that the site stopped needs no reset.
            self.stream.reset(code::STREAM_ABANDONED).ok();
        }
    }
}

enum Fault {
    /// The site has the segment already.
    Had,
    Failure(WriteFailure),
}

impl From<WriteError> for Fault {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code::STREAM_HAVE) => Fault::Had,
            WriteError::Stopped(_) => Fault::Failure(WriteFailure::Stopped),
            _ => Fault::Failure(WriteFailure::Lost),
        }
    }
}

/// Ships `segment`; tells `written` when its last byte was handed over, and returns when the site's endpoint has it.
pub(super) async fn ship(
    connection: Connection,
    outbox: Arc<dyn Outbox>,
    segment: SegmentDescriptor,
    permit: OwnedSemaphorePermit,
    written: mpsc::UnboundedSender<Sequence>,
) -> Result<Sequence, WriteFailure> {
    let sequence = segment.position.sequence;
    match write(&connection, &outbox, segment, permit, &written).await {
        Ok(()) | Err(Fault::Had) => Ok(sequence),
        Err(Fault::Failure(failure)) => Err(failure),
    }
}

async fn write(
    connection: &Connection,
    outbox: &Arc<dyn Outbox>,
    segment: SegmentDescriptor,
    permit: OwnedSemaphorePermit,
    written: &mpsc::UnboundedSender<Sequence>,
) -> Result<(), Fault> {
    let sequence = segment.position.sequence;
    let unreadable = |error: io::Error| Fault::Failure(read_failure(sequence, &error));
    let mut file = blocking(outbox, move |outbox| outbox.open(sequence)).await.map_err(unreadable)?;
    let stream = connection.open_uni().await.map_err(|_| Fault::Failure(WriteFailure::Lost))?;
    let mut guard = AbandonOnDrop { stream, finished: false };
    let header = SegmentHeader { group: outbox.group().clone(), segment };
    guard.stream.write_all(&encode(&header)).await?;

    let mut left = segment.size_bytes;
    while left > 0 {
        let wanted = left.min(READ_BYTES);
        let (returned, bytes) =
            blocking(outbox, move |_| read_part(file, wanted)).await.map_err(unreadable)?;
        file = returned;
        left -= wanted;
        let mut bytes = Bytes::from(bytes);
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(WRITE_BYTES));
            guard.stream.write_chunk(part).await?;
        }
    }
    guard.stream.finish().map_err(|_| Fault::Failure(WriteFailure::Lost))?;
    guard.finished = true;
    drop(permit);
    // Whoever does not listen any more has ended the session.
    written.send(sequence).ok();
    match guard.stream.stopped().await {
        Ok(None) => Ok(()),
        Ok(Some(code)) => Err(WriteError::Stopped(code).into()),
        Err(StoppedError::ConnectionLost(_) | StoppedError::ZeroRttRejected) => {
            Err(Fault::Failure(WriteFailure::Lost))
        }
    }
}

fn read_part(mut file: File, wanted: u64) -> io::Result<(File, Vec<u8>)> {
    let mut bytes = vec![0; wanted as usize];
    file.read_exact(&mut bytes)?;
    Ok((file, bytes))
}

fn read_failure(sequence: Sequence, error: &io::Error) -> WriteFailure {
    let refusal = match error.kind() {
        // A receipt, or a rebase, trimmed it after it was named; the next session asks anew.
        io::ErrorKind::NotFound => return WriteFailure::Lost,
        io::ErrorKind::UnexpectedEof => Refusal::new(
            RefusalKind::Corrupt,
            "the segment in the journal is shorter than it should be",
            "the journal's disk may be failing; the data is read from the VM's disk and sent again",
        ),
        _ => Refusal::new(
            RefusalKind::Retry,
            format!("the segment cannot be read from the journal: {error}"),
            "check the journal's disk; it is tried again",
        ),
    };
    WriteFailure::Local(refusal.of_segment(sequence))
}
