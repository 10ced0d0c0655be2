//! Writes one segment, in pieces that have a stream each.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use journal_format::{Position, Sequence, Timestamp};
use quinn::{Connection, SendStream, StoppedError, WriteError};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::turns::{Turns, UnderWay};
use crate::asking::blocking;
use crate::quic::code;
use crate::ranges::Ranges;
use crate::session::WriteFailure;
use crate::traits::Outbox;
use crate::wire::{PieceHeader, Refusal, RefusalKind, SegmentDescriptor, encode};

/// Bytes read from the journal at once.
const READ_BYTES: u64 = 256 * 1024;
/// Bytes handed to quinn at once: an acknowledged part of a larger piece would keep the whole in memory.
const WRITE_BYTES: usize = 64 * 1024;
/// What the site has between two gaps is sent again if it is shorter: another stream would cost as much.
const RESENT_BYTES: u64 = 4096;

/// The stream of a piece, which is reset when it is dropped before its end. quinn would finish it, which looks like a short piece.
struct AbandonOnDrop {
    stream: SendStream,
    under_way: UnderWay,
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

/// A segment to be shipped, and what that needs.
pub(super) struct Shipment {
    pub(super) connection: Connection,
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) segment: SegmentDescriptor,
    /// What the site has of it already.
    pub(super) held: Ranges,
    pub(super) turns: Arc<Turns>,
    /// Told when the last byte was handed over.
    pub(super) written: mpsc::UnboundedSender<Sequence>,
}

impl Shipment {
    /// Ships the segment; returns when the site's endpoint has all of it.
    pub(super) async fn run(self) -> Result<Sequence, WriteFailure> {
        let sequence = self.segment.position.sequence;
        match self.write().await {
            Ok(()) | Err(Fault::Had) => Ok(sequence),
            Err(Fault::Failure(failure)) => Err(failure),
        }
    }

    async fn write(self) -> Result<(), Fault> {
        let SegmentDescriptor { position: Position { sequence, .. }, size_bytes, .. } = self.segment;
        let unreadable = |error: io::Error| Fault::Failure(read_failure(sequence, &error));
        let segment = self.segment;
        let opened = blocking(&self.outbox, move |outbox| Ok((outbox.open(sequence)?, outbox.due(&segment))));
        let (file, due) = opened.await.map_err(unreadable)?;
        let file = Arc::new(file);
        let mut pieces = VecDeque::from(self.held.missing(size_bytes, u64::MAX, RESENT_BYTES));
        if pieces.is_empty() {
            // The site has it all and waits for one more byte to look at it.
            pieces.push_back(0..1);
        }
        let mut delivering = JoinSet::new();
        while let Some(mut piece) = pieces.pop_front() {
            let end = piece.end.min(piece.start.saturating_add(self.turns.piece_bytes()));
            if end < piece.end {
                pieces.push_front(end..piece.end);
                piece.end = end;
            }
            let stream = self.write_piece(&file, piece, due).await?;
            delivering.spawn(delivered(stream));
            // What the site refused, or has, needs no more pieces.
            while let Some(result) = delivering.try_join_next() {
                settled(result)?;
            }
        }
        // Whoever does not listen any more has ended the session.
        self.written.send(sequence).ok();
        while let Some(result) = delivering.join_next().await {
            settled(result)?;
        }
        Ok(())
    }

    async fn write_piece(
        &self,
        file: &Arc<File>,
        piece: Range<u64>,
        due: Option<Timestamp>,
    ) -> Result<AbandonOnDrop, Fault> {
        let sequence = self.segment.position.sequence;
        let group = self.outbox.group();
        let lost = || Fault::Failure(WriteFailure::Lost);
        let mut opened: Option<AbandonOnDrop> = None;
        let mut at = piece.start;
        while at < piece.end {
            let wanted = (piece.end - at).min(READ_BYTES);
            let from = file.clone();
            let read = blocking(&self.outbox, move |_| read_part(&from, at, wanted)).await;
            let mut bytes =
                Bytes::from(read.map_err(|error| Fault::Failure(read_failure(sequence, &error)))?);
            at += wanted;
            while !bytes.is_empty() {
                let part = bytes.split_to(bytes.len().min(WRITE_BYTES));
                let turn = self.turns.turn(group, sequence, due, part.len() as u64).await.ok_or_else(lost)?;
                // Not before the turn: the site waits for the header of a stream as soon as a later one is used.
                let guard = match &mut opened {
                    Some(guard) => guard,
                    None => opened.insert(self.open(&piece).await?),
                };
                guard.under_way.add(part.len() as u64);
                guard.stream.write_chunk(part).await?;
                drop(turn);
            }
        }
        let mut guard = opened.ok_or_else(lost)?;
        guard.stream.finish().map_err(|_| lost())?;
        guard.finished = true;
        Ok(guard)
    }

    /// Opens the stream of a piece and writes its header.
    async fn open(&self, piece: &Range<u64>) -> Result<AbandonOnDrop, Fault> {
        let stream = self.connection.open_uni().await.map_err(|_| Fault::Failure(WriteFailure::Lost))?;
        // Only fails if the stream is gone, which the first write tells as well.
        stream.set_priority(self.turns.next_priority()).ok();
        let mut guard = AbandonOnDrop { stream, under_way: self.turns.under_way(), finished: false };
        let header = PieceHeader {
            group: self.outbox.group().clone(),
            segment: self.segment,
            offset: piece.start,
            length: piece.end - piece.start,
        };
        guard.stream.write_all(&encode(&header)).await?;
        Ok(guard)
    }
}

/// Waits until the site's endpoint has a piece.
async fn delivered(piece: AbandonOnDrop) -> Result<(), Fault> {
    match piece.stream.stopped().await {
        Ok(None) => Ok(()),
        Ok(Some(code)) => Err(WriteError::Stopped(code).into()),
        Err(StoppedError::ConnectionLost(_) | StoppedError::ZeroRttRejected) => {
            Err(Fault::Failure(WriteFailure::Lost))
        }
    }
}

fn settled(result: Result<Result<(), Fault>, JoinError>) -> Result<(), Fault> {
    // Only the end of the runtime ends such a task early.
    result.unwrap_or(Err(Fault::Failure(WriteFailure::Lost)))
}

fn read_part(file: &File, offset: u64, wanted: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; wanted as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
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
