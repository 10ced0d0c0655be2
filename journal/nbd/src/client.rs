//! A small blocking client: for tests, benchmarks, and whoever reads an export without QEMU.

mod handshake;

use std::collections::HashMap;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;

use thiserror::Error;

use crate::errno::Errno;
use crate::export::{StatusExtent, ZeroMode};
use crate::request::Request;
use crate::stream::Stream;
use crate::wire::{
    Fields, MAGIC_CHUNK, MAGIC_SIMPLE_REPLY, PAYLOAD_BYTES_MAX, chunk, command, command_flag, state,
    transmission,
};

/// Longest chunk that is accepted, in bytes.
const CHUNK_PAYLOAD_BYTES_MAX: u32 = PAYLOAD_BYTES_MAX + 4096;
/// Bytes of the longest header, magic included.
const MESSAGE_BYTES_MAX: usize = 20;

/// What the client asks for in the negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Structured replies and `base:allocation`, if the server has them.
    Structured,
    /// Simple replies.
    Simple,
    /// `EXPORT_NAME` as the oldest clients send it.
    ExportName,
}

/// How a write is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// The reply is to come only when the write is durable.
    pub fua: bool,
    /// Zeroing that is no faster than writing is to be refused.
    pub fast: bool,
}

/// What the server said about the export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Transmission flags as on the wire.
    pub flags: u16,
    /// Smallest, preferred and largest unit in bytes, if the server said so.
    pub block_sizes: Option<(u32, u32, u32)>,
    /// The server's description, if it has one.
    pub description: Option<String>,
    /// Replies are structured.
    pub structured: bool,
    /// [`Client::block_status`] may be used.
    pub base_allocation: bool,
}

impl ExportInfo {
    /// Whether the server refuses writes.
    pub fn read_only(&self) -> bool {
        self.flags & transmission::READ_ONLY != 0
    }
}

/// An export that a server lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
}

/// Why talking to a server failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The socket failed, or the server closed it.
    #[error("the connection to the NBD server failed")]
    Io(#[from] io::Error),
    /// The server does not keep to the protocol.
    #[error("the NBD server answered {what}")]
    Protocol {
        /// What was wrong.
        what: &'static str,
    },
    /// The server refused an option.
    #[error("the NBD server refused option {option}: reply {reply:#x}, {message:?}")]
    Refused {
        /// Number of the option.
        option: u32,
        /// Type of the reply.
        reply: u32,
        /// What the server says about it.
        message: String,
    },
    /// The server failed a request.
    #[error("the NBD server failed the request")]
    Request(#[from] Errno),
}

impl ClientError {
    /// The nearest kind of an I/O error.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            ClientError::Io(error) => error.kind(),
            ClientError::Protocol { .. } => io::ErrorKind::InvalidData,
            ClientError::Refused { .. } => io::ErrorKind::Unsupported,
            ClientError::Request(_) => io::ErrorKind::Other,
        }
    }

    /// The error of the request, if the server failed it.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            ClientError::Request(errno) => Some(*errno),
            _ => None,
        }
    }
}

/// An answered request.
#[derive(Debug)]
pub struct Completion {
    /// The cookie that sending the request returned.
    pub cookie: u64,
    /// What the server said.
    pub result: Result<Body, Errno>,
}

/// What an answer carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    Done,
    /// The bytes of a read.
    Data(Vec<u8>),
    /// The extents of a status.
    Extents(Vec<StatusExtent>),
}

/// A connection to an export.
pub struct Client {
    wire: Wire,
    info: ExportInfo,
    next_cookie: u64,
    pending: HashMap<u64, Pending>,
    /// Answers that came while another one was waited for.
    early: HashMap<u64, Result<Body, Errno>>,
}

struct Pending {
    request: Request,
    body: Body,
    error: Option<Errno>,
}

/// A stream that is read in large pieces.
struct Wire {
    stream: Stream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Client {
    /// Opens an export of a server on a unix socket.
    ///
    /// # Errors
    /// If nobody listens, there is no such export, or the server speaks another protocol.
    pub fn connect_unix(path: &Path, export: &str, protocol: Protocol) -> Result<Self, ClientError> {
        Client::negotiate(Stream::Unix(UnixStream::connect(path)?), export, protocol)
    }

    /// Opens an export of a server on a TCP address.
    ///
    /// # Errors
    /// As [`connect_unix`](Self::connect_unix).
    pub fn connect_tcp(
        address: impl ToSocketAddrs,
        export: &str,
        protocol: Protocol,
    ) -> Result<Self, ClientError> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Client::negotiate(Stream::Tcp(stream), export, protocol)
    }

    /// Lists the exports of a server on a unix socket.
    ///
    /// # Errors
    /// If nobody listens or the server refuses.
    pub fn list_unix(path: &Path) -> Result<Vec<ListedExport>, ClientError> {
        handshake::list(&mut Wire::new(Stream::Unix(UnixStream::connect(path)?)))
    }

    fn negotiate(stream: Stream, export: &str, protocol: Protocol) -> Result<Self, ClientError> {
        let mut wire = Wire::new(stream);
        let info = handshake::open(&mut wire, export, protocol)?;
        Ok(Client { wire, info, next_cookie: 1, pending: HashMap::new(), early: HashMap::new() })
    }

    /// What the server said about the export.
    pub fn info(&self) -> &ExportInfo {
        &self.info
    }

    /// Reads `length` bytes, at most 32 MiB.
    ///
    /// # Errors
    /// If the server fails the request or the connection fails; so for all the others.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, ClientError> {
        let cookie = self.send_read(offset, length)?;
        match self.wait_for(cookie)? {
            Body::Data(data) => Ok(data),
            _ => Err(protocol("a read without data")),
        }
    }

    /// Writes at most 32 MiB.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&mut self, offset: u64, data: &[u8], flags: WriteFlags) -> Result<(), ClientError> {
        let cookie = self.send_write(offset, data, flags)?;
        self.wait_for(cookie).map(drop)
    }

    /// Waits until everything that was answered is durable.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn flush(&mut self) -> Result<(), ClientError> {
        let cookie = self.send_flush()?;
        self.wait_for(cookie).map(drop)
    }

    /// Says that a range is not needed any more.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn trim(&mut self, offset: u64, length: u32, flags: WriteFlags) -> Result<(), ClientError> {
        let cookie = self.send(command::TRIM, wire_flags(flags), offset, length, &[])?;
        self.wait_for(cookie).map(drop)
    }

    /// Makes a range zero.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write_zeroes(
        &mut self,
        offset: u64,
        length: u32,
        mode: ZeroMode,
        flags: WriteFlags,
    ) -> Result<(), ClientError> {
        let mode = if mode == ZeroMode::Allocate { command_flag::NO_HOLE } else { 0 };
        let cookie = self.send(command::WRITE_ZEROES, wire_flags(flags) | mode, offset, length, &[])?;
        self.wait_for(cookie).map(drop)
    }

    /// Asks for the status of a range; the answer may end before the range does.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn block_status(&mut self, offset: u64, length: u32) -> Result<Vec<StatusExtent>, ClientError> {
        let cookie = self.send(command::BLOCK_STATUS, 0, offset, length, &[])?;
        match self.wait_for(cookie)? {
            Body::Extents(extents) => Ok(extents),
            _ => Err(protocol("a status without extents")),
        }
    }

    /// Sends a read without waiting for its answer; returns its cookie.
    ///
    /// # Errors
    /// If the connection fails; so for the other `send_…`.
    pub fn send_read(&mut self, offset: u64, length: u32) -> Result<u64, ClientError> {
        self.send(command::READ, 0, offset, length, &[])
    }

    /// Sends a write without waiting for its answer; returns its cookie.
    ///
    /// # Errors
    /// As [`send_read`](Self::send_read).
    pub fn send_write(&mut self, offset: u64, data: &[u8], flags: WriteFlags) -> Result<u64, ClientError> {
        self.send(command::WRITE, wire_flags(flags), offset, data.len() as u32, data)
    }

    /// Sends a flush without waiting for its answer; returns its cookie.
    ///
    /// # Errors
    /// As [`send_read`](Self::send_read).
    pub fn send_flush(&mut self) -> Result<u64, ClientError> {
        self.send(command::FLUSH, 0, 0, 0, &[])
    }

    /// Waits for the next answer to any request that was sent.
    ///
    /// # Errors
    /// If the connection fails; a request that failed is an answer.
    pub fn recv_reply(&mut self) -> Result<Completion, ClientError> {
        if let Some(cookie) = self.early.keys().next().copied()
            && let Some(result) = self.early.remove(&cookie)
        {
            return Ok(Completion { cookie, result });
        }
        loop {
            if let Some(completion) = self.recv_message()? {
                return Ok(completion);
            }
        }
    }

    /// Says goodbye and waits until the server has closed the connection.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        self.send(command::DISC, 0, 0, 0, &[])?;
        let mut rest = [0; 64];
        while self.wire.stream.read(&mut rest)? > 0 {}
        Ok(())
    }

    fn send(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> Result<u64, ClientError> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let request = Request { flags, kind, cookie, offset, length };
        let header = request.encode();
        if data.is_empty() {
            self.wire.stream.write_all(&header)?;
        } else {
            self.wire.stream.write_all(&[&header, data].concat())?;
        }
        self.pending.insert(cookie, Pending { request, body: Body::Done, error: None });
        Ok(cookie)
    }

    fn wait_for(&mut self, cookie: u64) -> Result<Body, ClientError> {
        loop {
            if let Some(completion) = self.recv_message()? {
                if completion.cookie == cookie {
                    return Ok(completion.result?);
                }
                self.early.insert(completion.cookie, completion.result);
            }
        }
    }

    /// Takes one simple reply or chunk; `None` if more chunks of its request follow.
    fn recv_message(&mut self) -> Result<Option<Completion>, ClientError> {
        let magic = u32::from_be_bytes(self.wire.take()?);
        match magic {
            MAGIC_SIMPLE_REPLY => self.recv_simple().map(Some),
            MAGIC_CHUNK => self.recv_chunk(),
            _ => Err(protocol("a reply without a magic number")),
        }
    }

    fn recv_simple(&mut self) -> Result<Completion, ClientError> {
        let code = u32::from_be_bytes(self.wire.take()?);
        let cookie = u64::from_be_bytes(self.wire.take()?);
        let pending = self.pending.remove(&cookie).ok_or(protocol("an unknown cookie"))?;
        if code != 0 {
            return Ok(Completion { cookie, result: Err(Errno::from_code(code)) });
        }
        if pending.request.kind != command::READ {
            return Ok(Completion { cookie, result: Ok(Body::Done) });
        }
        if self.info.structured {
            return Err(protocol("a simple reply to a read, though structured replies were negotiated"));
        }
        let mut data = vec![0; pending.request.length as usize];
        self.wire.read_exact(&mut data)?;
        Ok(Completion { cookie, result: Ok(Body::Data(data)) })
    }

    fn recv_chunk(&mut self) -> Result<Option<Completion>, ClientError> {
        let flags = u16::from_be_bytes(self.wire.take()?);
        let kind = u16::from_be_bytes(self.wire.take()?);
        let cookie = u64::from_be_bytes(self.wire.take()?);
        let length = u32::from_be_bytes(self.wire.take()?);
        if length > CHUNK_PAYLOAD_BYTES_MAX {
            return Err(protocol("a chunk longer than any that was asked for"));
        }
        let pending = self.pending.get_mut(&cookie).ok_or(protocol("an unknown cookie"))?;
        let mut payload = vec![0; length as usize];
        self.wire.read_exact(&mut payload)?;
        pending.take_chunk(kind, &payload).ok_or(protocol("a malformed chunk"))?;
        if flags & chunk::FLAG_DONE == 0 {
            return Ok(None);
        }
        let pending = self.pending.remove(&cookie).ok_or(protocol("an unknown cookie"))?;
        let empty_read = pending.request.kind == command::READ && pending.body == Body::Done;
        let body = if empty_read { Body::Data(Vec::new()) } else { pending.body };
        Ok(Some(Completion { cookie, result: pending.error.map_or(Ok(body), Err) }))
    }
}

impl Pending {
    fn take_chunk(&mut self, kind: u16, payload: &[u8]) -> Option<()> {
        let mut fields = Fields(payload);
        match kind {
            chunk::NONE => payload.is_empty().then_some(()),
            chunk::OFFSET_DATA => {
                let offset = fields.u64()?;
                self.part_of_read(offset, fields.0.len())?.copy_from_slice(fields.0);
                Some(())
            }
            chunk::OFFSET_HOLE => {
                let (offset, length) = (fields.u64()?, fields.u32()?);
                self.part_of_read(offset, length as usize)?.fill(0);
                Some(())
            }
            chunk::BLOCK_STATUS => {
                let _context = fields.u32()?;
                let mut extents = Vec::new();
                while !fields.is_empty() {
                    let (length, flags) = (u64::from(fields.u32()?), fields.u32()?);
                    let (hole, zero) = (flags & state::HOLE != 0, flags & state::ZERO != 0);
                    extents.push(StatusExtent { length, hole, zero });
                }
                self.body = Body::Extents(extents);
                Some(())
            }
            chunk::ERROR | chunk::ERROR_OFFSET => {
                self.error = Some(Errno::from_code(fields.u32()?));
                Some(())
            }
            _ => None,
        }
    }

    fn part_of_read(&mut self, offset: u64, length: usize) -> Option<&mut [u8]> {
        if self.request.kind != command::READ {
            return None;
        }
        if self.body == Body::Done {
            self.body = Body::Data(vec![0; self.request.length as usize]);
        }
        let start = usize::try_from(offset.checked_sub(self.request.offset)?).ok()?;
        let Body::Data(data) = &mut self.body else {
            return None;
        };
        data.get_mut(start..start.checked_add(length)?)
    }
}

impl Wire {
    fn new(stream: Stream) -> Self {
        Wire { stream, buffer: vec![0; 64 << 10], start: 0, end: 0 }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        const { assert!(N <= MESSAGE_BYTES_MAX) };
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn read_exact(&mut self, mut target: &mut [u8]) -> io::Result<()> {
        while !target.is_empty() {
            if self.start == self.end {
                if target.len() >= self.buffer.len() {
                    return self.stream.read_exact(target);
                }
                self.start = 0;
                self.end = self.stream.read(&mut self.buffer)?;
                if self.end == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            let count = target.len().min(self.end - self.start);
            target[..count].copy_from_slice(&self.buffer[self.start..][..count]);
            self.start += count;
            target = &mut target[count..];
        }
        Ok(())
    }
}

fn wire_flags(flags: WriteFlags) -> u16 {
    let fua = if flags.fua { command_flag::FUA } else { 0 };
    let fast = if flags.fast { command_flag::FAST_ZERO } else { 0 };
    fua | fast
}

fn protocol(what: &'static str) -> ClientError {
    ClientError::Protocol { what }
}
