//! Replies to requests.

use crate::errno::Errno;
use crate::export::StatusExtent;
use crate::negotiation::BASE_ALLOCATION_ID;
use crate::wire::{CHUNK_BYTES, MAGIC_CHUNK, MAGIC_SIMPLE_REPLY, SIMPLE_REPLY_BYTES, chunk, state};

/// Longest header of a reply to READ in bytes.
pub(crate) const READ_HEADER_BYTES_MAX: usize = CHUNK_BYTES + size_of::<u64>();

/// The kind of reply that a client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyStyle {
    Simple,
    Structured,
}

impl ReplyStyle {
    /// Bytes before the data in a reply to READ.
    pub(crate) fn read_header_bytes(self) -> usize {
        match self {
            ReplyStyle::Simple => SIMPLE_REPLY_BYTES,
            ReplyStyle::Structured => READ_HEADER_BYTES_MAX,
        }
    }

    /// Writes what goes before the data in a reply to READ; `header` has [`read_header_bytes`](Self::read_header_bytes).
    pub(crate) fn read_header(self, cookie: u64, offset: u64, length: u32, header: &mut [u8]) {
        match self {
            ReplyStyle::Simple => header.copy_from_slice(&simple(cookie, 0)),
            ReplyStyle::Structured => {
                let payload = length + size_of::<u64>() as u32;
                let (head, body) = header.split_at_mut(CHUNK_BYTES);
                head.copy_from_slice(&last_chunk(cookie, chunk::OFFSET_DATA, payload));
                body.copy_from_slice(&offset.to_be_bytes());
            }
        }
    }

    /// Appends an error.
    pub(crate) fn error(self, cookie: u64, errno: Errno, out: &mut Vec<u8>) {
        match self {
            ReplyStyle::Simple => out.extend(simple(cookie, errno.code())),
            ReplyStyle::Structured => {
                let message = errno.to_string();
                let payload = (size_of::<u32>() + size_of::<u16>() + message.len()) as u32;
                out.extend(last_chunk(cookie, chunk::ERROR, payload));
                out.extend(errno.code().to_be_bytes());
                out.extend((message.len() as u16).to_be_bytes());
                out.extend(message.as_bytes());
            }
        }
    }
}

/// The success of anything but READ and BLOCK_STATUS; simple also where structured replies were negotiated.
pub(crate) fn done(cookie: u64) -> [u8; SIMPLE_REPLY_BYTES] {
    simple(cookie, 0)
}

/// The success of a READ of no bytes with structured replies.
pub(crate) fn none(cookie: u64) -> [u8; CHUNK_BYTES] {
    last_chunk(cookie, chunk::NONE, 0)
}

/// Appends the answer to a READ whose range is zero; needs structured replies.
pub(crate) fn hole(cookie: u64, offset: u64, length: u32, out: &mut Vec<u8>) {
    out.extend(last_chunk(cookie, chunk::OFFSET_HOLE, 12));
    out.extend(offset.to_be_bytes());
    out.extend(length.to_be_bytes());
}

/// Appends the answer to BLOCK_STATUS: at most `extents_max` of the extents, at most `length` bytes of them. Neighbours
/// of the same status are merged, as the specification wishes. An export that says nothing has told of no hole.
pub(crate) fn block_status(
    cookie: u64,
    length: u32,
    extents: &[StatusExtent],
    extents_max: usize,
    out: &mut Vec<u8>,
) {
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(extents.len().min(extents_max));
    let mut rest = length;
    for extent in extents {
        let bytes = u32::try_from(extent.length).unwrap_or(u32::MAX).min(rest);
        let flags = if extent.hole { state::HOLE } else { 0 } | if extent.zero { state::ZERO } else { 0 };
        rest -= bytes;
        let full = merged.len() == extents_max;
        match merged.last_mut() {
            _ if bytes == 0 => {}
            Some(last) if last.1 == flags => last.0 += bytes,
            _ if full => break,
            _ => merged.push((bytes, flags)),
        }
    }
    if merged.is_empty() {
        merged.push((length, 0));
    }
    let payload = size_of::<u32>() + merged.len() * 2 * size_of::<u32>();
    out.extend(last_chunk(cookie, chunk::BLOCK_STATUS, payload as u32));
    out.extend(BASE_ALLOCATION_ID.to_be_bytes());
    for (bytes, flags) in merged {
        out.extend(bytes.to_be_bytes());
        out.extend(flags.to_be_bytes());
    }
}

fn simple(cookie: u64, code: u32) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[0..4].copy_from_slice(&MAGIC_SIMPLE_REPLY.to_be_bytes());
    bytes[4..8].copy_from_slice(&code.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

fn last_chunk(cookie: u64, kind: u16, payload_bytes: u32) -> [u8; CHUNK_BYTES] {
    let mut bytes = [0; CHUNK_BYTES];
    bytes[0..4].copy_from_slice(&MAGIC_CHUNK.to_be_bytes());
    bytes[4..6].copy_from_slice(&chunk::FLAG_DONE.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..20].copy_from_slice(&payload_bytes.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests;
