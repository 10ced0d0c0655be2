//! Replies that are sent with one write.

/// Memory above this, which a large read has asked for, is not kept.
const KEPT_BYTES_MAX: usize = 2 << 20;

/// Replies in the order in which they are sent. Its memory stays initialised, so that room for a read's data costs nothing.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    length: usize,
    scratch: Vec<u8>,
}

impl Batch {
    /// The bytes to send.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Number of bytes to send.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn push(&mut self, reply: &[u8]) {
        self.room(reply.len()).copy_from_slice(reply);
        self.keep(reply.len());
    }

    /// Adds what `encode` appends to a vector.
    pub(super) fn append(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut scratch = std::mem::take(&mut self.scratch);
        encode(&mut scratch);
        self.push(&scratch);
        scratch.clear();
        self.scratch = scratch;
    }

    /// Room behind the last reply, with arbitrary content; it becomes a part of the batch with [`keep`](Self::keep).
    pub(super) fn room(&mut self, length: usize) -> &mut [u8] {
        let end = self.length + length;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.length..end]
    }

    /// Keeps the first bytes of the room that was asked for last.
    pub(super) fn keep(&mut self, length: usize) {
        self.length += length;
    }

    pub(super) fn clear(&mut self) {
        self.length = 0;
        if self.bytes.len() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }
}
