//! One connection: its thread reads many requests at once, performs them in their order, and answers them with one write.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use super::Shared;
use super::batch::Batch;
use super::jobs::{Line, ReadJob};
use crate::arena::{Payload, ReadBuffer, SHARED_PAYLOAD_BYTES_MAX};
use crate::errno::Errno;
use crate::export::StatusExtent;
use crate::negotiation::{Negotiation, NegotiationError, Step};
use crate::reply::{self, ReplyStyle};
use crate::request::{Command, Durable, Request, Session};
use crate::stream::Stream;
use crate::wire::REQUEST_BYTES;

/// Replies are sent at the latest when they have this many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// A request for more than this many bytes may take its time: those before it are answered first.
const LONG_WORK_BYTES: u32 = 1 << 20;

/// Why a connection ended other than by the client's wish.
#[derive(Debug, Error)]
pub(super) enum ConnectionError {
    #[error("the socket failed")]
    Io(#[from] io::Error),
    #[error("the negotiation failed: {0}")]
    Negotiation(#[from] NegotiationError),
    #[error("the negotiation took too long")]
    Deadline,
    #[error("the client closed the connection without saying goodbye")]
    Closed,
    #[error("a request does not begin with its magic number")]
    Magic,
}

/// Serves a connection to its end.
pub(super) fn serve(shared: &Shared, id: u64, stream: Arc<Stream>) -> Result<(), ConnectionError> {
    let mut input = ReadBuffer::new(shared.options.arena.clone());
    let Some(session) = negotiate(shared, &stream, &mut input)? else {
        return Ok(());
    };
    tracing::debug!(export = session.name(), "export opened");
    shared.note_opened(id, session.name());
    let options = &shared.options;
    let line = Line::new(session, Arc::clone(&stream), options.workers_max, options.waiting_requests_max);
    let closing = CloseOnDrop(&line);
    line.session.export().opened();
    let mut connection = Connection {
        shared,
        stream: &stream,
        line: &line,
        input,
        replies: Batch::default(),
        extents: Vec::new(),
    };
    let result = match connection.run() {
        // A shutdown ends the stream of requests in the same way as a client does.
        Err(ConnectionError::Closed) if shared.stopping() => Ok(()),
        other => other,
    };
    // Also answers what came before a request that ended the connection.
    let sent = connection.send_replies();
    drop(closing);
    result.and(sent)
}

/// The workers end with the connection, and the export hears of its end, even if it panics.
struct CloseOnDrop<'a>(&'a Line);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
        self.0.session.export().closed();
    }
}

/// `None` if the client has said goodbye.
fn negotiate(
    shared: &Shared,
    stream: &Stream,
    input: &mut ReadBuffer,
) -> Result<Option<Session>, ConnectionError> {
    let deadline = Instant::now() + shared.options.negotiation_timeout;
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(&mut out);
    loop {
        let (taken, step) = negotiation.handle_input(input.unparsed(), &shared.exports, &mut out)?;
        input.consume(taken);
        let waits = taken == 0 && matches!(step, Step::More);
        if !matches!(step, Step::More) || waits || out.len() >= BATCH_BYTES {
            limit_time(stream, deadline)?;
            stream.write_all(&out).map_err(late)?;
            out.clear();
        }
        match step {
            Step::Opened(session) => {
                stream.set_timeout(None)?;
                return Ok(Some(session));
            }
            Step::Aborted => return Ok(None),
            Step::More => {}
        }
        if waits {
            limit_time(stream, deadline)?;
            let need = input.unparsed().len() + 1;
            if input.fill(need, |buffer| stream.read(buffer)).map_err(late)? == 0 {
                return Err(ConnectionError::Closed);
            }
        }
    }
}

fn limit_time(stream: &Stream, deadline: Instant) -> Result<(), ConnectionError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ConnectionError::Deadline);
    }
    Ok(stream.set_timeout(Some(left))?)
}

fn late(error: io::Error) -> ConnectionError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ConnectionError::Deadline,
        _ => ConnectionError::Io(error),
    }
}

struct Connection<'a> {
    shared: &'a Shared,
    stream: &'a Stream,
    line: &'a Arc<Line>,
    input: ReadBuffer,
    replies: Batch,
    extents: Vec<StatusExtent>,
}

/// Whether requests follow.
enum Next {
    /// More bytes are needed for the next request: that many at least.
    Needs(usize),
    Goodbye,
}

impl Connection<'_> {
    fn run(&mut self) -> Result<(), ConnectionError> {
        loop {
            let need = match self.handle_input()? {
                Next::Needs(bytes) => bytes,
                Next::Goodbye => return Ok(()),
            };
            self.send_replies()?;
            if self.shared.stopping() {
                return Ok(());
            }
            self.fill(need)?;
        }
    }

    fn fill(&mut self, need: usize) -> Result<(), ConnectionError> {
        let stream = self.stream;
        let count = self.input.fill(need, |buffer| stream.read(buffer))?;
        if count == 0 { Err(ConnectionError::Closed) } else { Ok(()) }
    }

    /// Performs all requests that have come in whole.
    fn handle_input(&mut self) -> Result<Next, ConnectionError> {
        loop {
            let Some(head) = self.input.unparsed().first_chunk::<REQUEST_BYTES>() else {
                return Ok(Next::Needs(REQUEST_BYTES));
            };
            let request = Request::parse(head).ok_or(ConnectionError::Magic)?;
            match self.line.session.check(&request) {
                Ok(Command::Disconnect) => return Ok(Next::Goodbye),
                Ok(Command::Write { sync }) => {
                    let whole = REQUEST_BYTES + request.length as usize;
                    if request.length as usize <= SHARED_PAYLOAD_BYTES_MAX
                        && self.input.unparsed().len() < whole
                    {
                        return Ok(Next::Needs(whole));
                    }
                    self.input.consume(REQUEST_BYTES);
                    let payload = self.take_payload(request.length as usize)?;
                    let result = self.line.session.export().write(request.offset, payload);
                    self.finish_write(&request, result, sync)?;
                }
                Ok(command) => {
                    self.input.consume(REQUEST_BYTES);
                    self.perform(&request, command)?;
                }
                Err(errno) => {
                    self.input.consume(REQUEST_BYTES);
                    self.drain(request.payload_bytes() as usize)?;
                    self.reply_error(&request, errno)?;
                }
            }
        }
    }

    fn take_payload(&mut self, length: usize) -> Result<Payload, ConnectionError> {
        if length <= SHARED_PAYLOAD_BYTES_MAX || length <= self.input.unparsed().len() {
            return Ok(self.input.take_payload(length));
        }
        // The client may take long to send the rest.
        self.send_replies()?;
        let stream = self.stream;
        Ok(self.input.take_large(length, |buffer| stream.read_exact(buffer))?)
    }

    /// Skips the payload of a refused write.
    fn drain(&mut self, mut length: usize) -> Result<(), ConnectionError> {
        loop {
            let here = self.input.unparsed().len().min(length);
            self.input.consume(here);
            length -= here;
            if length == 0 {
                return Ok(());
            }
            self.send_replies()?;
            self.fill(1)?;
        }
    }

    fn perform(&mut self, request: &Request, command: Command) -> Result<(), ConnectionError> {
        let Request { cookie, offset, length, .. } = *request;
        if length > LONG_WORK_BYTES && command != Command::Read {
            self.send_replies()?;
        }
        let export = self.line.session.export();
        match command {
            Command::Read => self.read(request),
            Command::Flush => self.sync(cookie),
            Command::Trim { sync } => {
                let result = export.trim(offset, u64::from(length));
                self.finish_write(request, result, sync)
            }
            Command::WriteZeroes { mode, sync } => {
                let result = export.write_zeroes(offset, u64::from(length), mode);
                self.finish_write(request, result, sync)
            }
            Command::BlockStatus { extents_max } => {
                self.extents.clear();
                match export.block_status(offset, u64::from(length), &mut self.extents) {
                    Ok(()) => {
                        let extents = &self.extents;
                        self.replies
                            .append(|out| reply::block_status(cookie, length, extents, extents_max, out));
                        self.bound_replies()
                    }
                    Err(errno) => self.reply_error(request, errno),
                }
            }
            Command::Nothing => self.reply_nothing(request),
            Command::Write { .. } | Command::Disconnect => Ok(()),
        }
    }

    fn read(&mut self, request: &Request) -> Result<(), ConnectionError> {
        let Request { cookie, offset, length, .. } = *request;
        let style = self.line.style;
        let session = &self.line.session;
        if style == ReplyStyle::Structured && session.export().reads_as_zero(offset, u64::from(length)) {
            self.replies.append(|out| reply::hole(cookie, offset, length, out));
            return self.bound_replies();
        }
        let header = style.read_header_bytes();
        if self.replies.len() + header + length as usize > BATCH_BYTES {
            self.send_replies()?;
        }
        let (head, data) = self.replies.room(header + length as usize).split_at_mut(header);
        match session.export().try_read(offset, data) {
            Ok(true) => {
                style.read_header(cookie, offset, length, head);
                self.replies.keep(header + length as usize);
                self.bound_replies()
            }
            Ok(false) => {
                self.send_before_queueing()?;
                self.line.submit_read(ReadJob { cookie, offset, length });
                Ok(())
            }
            Err(errno) => self.reply_error(request, errno),
        }
    }

    fn finish_write(
        &mut self,
        request: &Request,
        result: Result<(), Errno>,
        sync: Durable,
    ) -> Result<(), ConnectionError> {
        match (result, sync) {
            (Ok(()), Durable::BeforeReply) => self.sync(request.cookie),
            (Ok(()), Durable::Later) => {
                self.replies.push(&reply::done(request.cookie));
                self.bound_replies()
            }
            (Err(errno), _) => self.reply_error(request, errno),
        }
    }

    fn sync(&mut self, cookie: u64) -> Result<(), ConnectionError> {
        match self.line.flush_now() {
            Some(Ok(())) => {
                self.replies.push(&reply::done(cookie));
                return self.bound_replies();
            }
            Some(Err(errno)) => {
                let style = self.line.style;
                self.replies.append(|out| style.error(cookie, errno, out));
                return self.bound_replies();
            }
            None => {}
        }
        self.send_before_queueing()?;
        self.line.submit_sync(cookie);
        Ok(())
    }

    /// Who waits for a place in the queue must not hold back replies meanwhile.
    fn send_before_queueing(&mut self) -> Result<(), ConnectionError> {
        if self.line.is_full() { self.send_replies() } else { Ok(()) }
    }

    fn reply_error(&mut self, request: &Request, errno: Errno) -> Result<(), ConnectionError> {
        tracing::debug!(?request, %errno, export = self.line.session.name(), "request failed");
        let style = self.line.style;
        self.replies.append(|out| style.error(request.cookie, errno, out));
        self.bound_replies()
    }

    fn reply_nothing(&mut self, request: &Request) -> Result<(), ConnectionError> {
        if self.line.style == ReplyStyle::Structured {
            self.replies.push(&reply::none(request.cookie));
        } else {
            self.replies.push(&reply::done(request.cookie));
        }
        self.bound_replies()
    }

    fn bound_replies(&mut self) -> Result<(), ConnectionError> {
        if self.replies.len() >= BATCH_BYTES { self.send_replies() } else { Ok(()) }
    }

    fn send_replies(&mut self) -> Result<(), ConnectionError> {
        let replies = self.replies.bytes();
        if !replies.is_empty() {
            self.line.send(replies)?;
            self.replies.clear();
        }
        Ok(())
    }
}
