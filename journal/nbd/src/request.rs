//! Requests: what they look like, and which of them an export accepts.

use std::sync::Arc;

use crate::errno::Errno;
use crate::export::{Export, ZeroMode};
use crate::wire::{
    BLOCK_SIZE_BYTES_MIN, Fields, MAGIC_REQUEST, PAYLOAD_BYTES_MAX, REQUEST_BYTES, command, command_flag,
};

/// A request as it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// A request that was checked against its export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read,
    Write {
        sync: Durable,
    },
    Flush,
    Trim {
        sync: Durable,
    },
    WriteZeroes {
        mode: ZeroMode,
        sync: Durable,
    },
    BlockStatus {
        extents_max: usize,
    },
    Disconnect,
    /// A request of length 0, which the specification leaves open: it succeeds and does nothing.
    Nothing,
}

/// When a write has to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// Before its reply (FUA).
    BeforeReply,
    /// With the next flush.
    Later,
}

/// An opened export, with what was negotiated about it.
pub(crate) struct Session {
    name: String,
    export: Arc<dyn Export>,
    size_bytes: u64,
    read_only: bool,
    structured: bool,
    base_allocation: bool,
}

/// Most extents that one reply describes; the specification allows a reply to cover less than was asked for.
const STATUS_EXTENTS_MAX: usize = 4096;

impl Request {
    /// Parses a request's first [`REQUEST_BYTES`]; `None` if its magic number is wrong.
    pub(crate) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        let request = Request {
            flags: fields.u16()?,
            kind: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        };
        (magic == MAGIC_REQUEST).then_some(request)
    }

    /// Its first bytes, for a client.
    pub(crate) fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Bytes that follow the request.
    pub(crate) fn payload_bytes(&self) -> u32 {
        if self.kind == command::WRITE { self.length } else { 0 }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

impl Session {
    pub(crate) fn new(
        name: String,
        export: Arc<dyn Export>,
        structured: bool,
        base_allocation: bool,
    ) -> Self {
        let size_bytes = export.size_bytes();
        let read_only = export.read_only();
        Session { name, export, size_bytes, read_only, structured, base_allocation }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn export(&self) -> &Arc<dyn Export> {
        &self.export
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn structured(&self) -> bool {
        self.structured
    }

    /// Decides what a request means, or with which error it is refused.
    pub(crate) fn check(&self, request: &Request) -> Result<Command, Errno> {
        self.check_flags(request)?;
        let sync = if request.has(command_flag::FUA) { Durable::BeforeReply } else { Durable::Later };
        let checked = match request.kind {
            command::DISC => return Ok(Command::Disconnect),
            command::FLUSH if request.offset != 0 || request.length != 0 => return Err(Errno::Inval),
            command::FLUSH => return Ok(Command::Flush),
            command::READ => self.check_read(request)?,
            command::WRITE => self.check_write(request, PAYLOAD_BYTES_MAX, Command::Write { sync })?,
            command::WRITE_ZEROES => self.check_zeroes(request, sync)?,
            command::TRIM if self.read_only => return Err(Errno::Perm),
            command::TRIM => self.in_range(request, Errno::Inval).map(|()| Command::Trim { sync })?,
            command::BLOCK_STATUS => self.check_status(request)?,
            _ => return Err(Errno::Inval),
        };
        Ok(if request.length == 0 { Command::Nothing } else { checked })
    }

    fn check_flags(&self, request: &Request) -> Result<(), Errno> {
        let known = match request.kind {
            command::READ if self.structured => command_flag::DF,
            command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        // FUA is to be accepted on every command, also where it means nothing.
        if request.flags & !(known | command_flag::FUA) == 0 { Ok(()) } else { Err(Errno::Inval) }
    }

    fn check_read(&self, request: &Request) -> Result<Command, Errno> {
        if request.length > PAYLOAD_BYTES_MAX {
            return Err(if request.has(command_flag::DF) { Errno::Overflow } else { Errno::Inval });
        }
        self.in_range(request, Errno::Inval).map(|()| Command::Read)
    }

    fn check_write(&self, request: &Request, length_max: u32, command: Command) -> Result<Command, Errno> {
        if self.read_only {
            return Err(Errno::Perm);
        }
        if request.length > length_max {
            return Err(Errno::Inval);
        }
        self.in_range(request, Errno::NoSpc).map(|()| command)
    }

    fn check_zeroes(&self, request: &Request, sync: Durable) -> Result<Command, Errno> {
        let mode = if request.has(command_flag::NO_HOLE) { ZeroMode::Allocate } else { ZeroMode::MayPunch };
        let command = self.check_write(request, u32::MAX, Command::WriteZeroes { mode, sync })?;
        if request.has(command_flag::FAST_ZERO) && !self.export.zeroes_fast(mode) {
            return Err(Errno::NotSup);
        }
        Ok(command)
    }

    fn check_status(&self, request: &Request) -> Result<Command, Errno> {
        if !self.base_allocation || request.length == 0 {
            return Err(Errno::Inval);
        }
        let extents_max = if request.has(command_flag::REQ_ONE) { 1 } else { STATUS_EXTENTS_MAX };
        self.in_range(request, Errno::Inval).map(|()| Command::BlockStatus { extents_max })
    }

    fn in_range(&self, request: &Request, beyond: Errno) -> Result<(), Errno> {
        let unit = BLOCK_SIZE_BYTES_MIN;
        if !request.offset.is_multiple_of(u64::from(unit)) || !request.length.is_multiple_of(unit) {
            return Err(Errno::Inval);
        }
        match request.offset.checked_add(u64::from(request.length)) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(beyond),
        }
    }
}

#[cfg(test)]
mod tests;
