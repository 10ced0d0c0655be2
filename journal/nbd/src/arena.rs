//! Memory for payloads: chunks that a connection reads from its socket into and whose parts become [`Payload`]s.
//!
//! The only module with `unsafe`. Why it is sound:
//!
//! 1. A chunk's memory comes from a boxed slice (always initialised) and is freed as one; it is reached only through
//!    the raw pointer that [`Chunk`] owns. A pointer has one owner at a time: a `Chunk`, or the pool's list of free
//!    memory, which it enters only from `Chunk::drop`.
//! 2. A chunk has at most one writer: [`ReadBuffer`], which is not `Clone` and writes only in `&mut self` methods. It
//!    keeps `parsed ≤ filled ≤ capacity`.
//! 3. A [`Payload`] covers bytes below the writer's `parsed`. The writer makes `&mut` only to bytes at or above `filled`,
//!    so the two never overlap; bytes below `parsed` never change while a payload lives.
//! 4. `parsed` and `filled` go backwards only after `Arc::get_mut` on the chunk succeeded: no payload of it exists then,
//!    and the drop of the last one happened before (the acquire of `get_mut` pairs with the release of the drop).
//! 5. `unparsed` borrows the writer, so that no fill can happen while the slice lives.

#![expect(
    unsafe_code,
    reason = "payloads share a buffer with its writer; the proof is in the module's documentation"
)]

use std::fmt;
use std::io;
use std::ops::{Deref, Range};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of an ordinary chunk.
const CHUNK_BYTES: usize = 1 << 20;
/// Payloads above this get memory of their own; it bounds what is copied when one does not fit the chunk's rest.
pub(crate) const SHARED_PAYLOAD_BYTES_MAX: usize = 256 << 10;
/// A chunk with less room than this is left: reads would become small.
const ROOM_BYTES_MIN: usize = 64 << 10;
/// What is read after a large payload, whose successor is probably large too and had to be copied out of the chunk.
const READ_AFTER_LARGE_BYTES: usize = 4 << 10;
/// Large payloads get memory of a multiple of this, so that it can be used again for others of about that size.
const LARGE_STEP_BYTES: usize = 256 << 10;
/// Memory of a pool, used and kept for the next use, if its owner says nothing else.
const BYTES_MAX: usize = 64 << 20;

/// A pool of memory for payloads; clones share it.
#[derive(Clone)]
pub struct Arena {
    pool: Arc<Pool>,
}

/// What an arena holds at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// Chunks that a connection or a payload uses.
    pub live_chunks: usize,
    /// Memory of these chunks in bytes.
    pub chunk_bytes: usize,
    /// Memory kept for the next use in bytes.
    pub free_bytes: usize,
}

struct Pool {
    bytes_max: usize,
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    free: Vec<Memory>,
    stats: ArenaStats,
}

/// Memory of a former `Box<[u8]>`.
struct Memory(NonNull<[u8]>);

// SAFETY: `Memory` owns what it points to (point 1), bytes are `Send`.
unsafe impl Send for Memory {}

impl Memory {
    fn zeroed(capacity: usize) -> Self {
        Memory::from_box(vec![0; capacity].into_boxed_slice())
    }

    fn from_box(bytes: Box<[u8]>) -> Self {
        Memory(NonNull::from(Box::leak(bytes)))
    }

    fn capacity(&self) -> usize {
        self.0.len()
    }

    fn start(&self) -> *mut u8 {
        self.0.as_ptr().cast()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the pointer is that of a leaked box, owned by `self` alone (point 1).
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Default for Arena {
    fn default() -> Self {
        Arena::new(BYTES_MAX)
    }
}

impl Arena {
    /// A pool that keeps unused memory for the next use, as long as it has no more than `bytes_max` with what is in use.
    pub fn new(bytes_max: usize) -> Self {
        Arena { pool: Arc::new(Pool { bytes_max, state: Mutex::default() }) }
    }

    /// What the arena holds now.
    pub fn stats(&self) -> ArenaStats {
        self.pool.lock().stats
    }

    fn chunk(&self, capacity: usize) -> Arc<Chunk> {
        Arc::new(Chunk { memory: Some(self.pool.take(capacity)), pool: Some(Arc::clone(&self.pool)) })
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, capacity: usize) -> Memory {
        let mut state = self.lock();
        state.stats.live_chunks += 1;
        state.stats.chunk_bytes += capacity;
        // The last one that came back is the likeliest to be in a CPU cache still.
        let Some(found) = state.free.iter().rposition(|memory| memory.capacity() == capacity) else {
            let surplus = state.surplus(self.bytes_max);
            drop(state);
            drop(surplus);
            return Memory::zeroed(capacity);
        };
        state.stats.free_bytes -= capacity;
        state.free.remove(found)
    }

    fn give_back(&self, memory: Memory) {
        let capacity = memory.capacity();
        let mut state = self.lock();
        state.stats.live_chunks -= 1;
        state.stats.chunk_bytes -= capacity;
        if capacity > self.bytes_max {
            return;
        }
        state.stats.free_bytes += capacity;
        state.free.push(memory);
        let surplus = state.surplus(self.bytes_max);
        drop(state);
        drop(surplus);
    }
}

impl PoolState {
    /// Takes out what is free beyond `bytes_max` with what is in use; to be dropped without the lock.
    fn surplus(&mut self, bytes_max: usize) -> Vec<Memory> {
        let mut surplus = Vec::new();
        while self.stats.chunk_bytes + self.stats.free_bytes > bytes_max && !self.free.is_empty() {
            // The oldest goes, so that sizes that are not asked for any more do not stay for ever.
            let oldest = self.free.remove(0);
            self.stats.free_bytes -= oldest.capacity();
            surplus.push(oldest);
        }
        surplus
    }
}

/// A piece of memory that one writer and any number of payloads share.
struct Chunk {
    /// `None` only while it is dropped.
    memory: Option<Memory>,
    /// `None` if the memory did not come from a pool.
    pool: Option<Arc<Pool>>,
}

// SAFETY: shared access only reads, and only bytes that the one writer does not write to any more (points 2 to 4).
unsafe impl Sync for Chunk {}

impl Chunk {
    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("memory is taken only by drop")
    }

    fn capacity(&self) -> usize {
        self.memory().capacity()
    }

    fn start(&self) -> *mut u8 {
        self.memory().start()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let (Some(memory), Some(pool)) = (self.memory.take(), &self.pool) {
            pool.give_back(memory);
        }
    }
}

/// The payload of a write: an immutable, reference-counted piece of memory. Cloning does not copy the bytes.
///
/// A payload keeps the whole chunk alive that it is a part of (1 MiB for small ones); who keeps few of many for long
/// copies them with [`Payload::from_vec`].
#[derive(Clone)]
pub struct Payload {
    chunk: Arc<Chunk>,
    start: usize,
    length: usize,
}

impl Payload {
    /// Takes over the bytes of a vector.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let length = bytes.len();
        let memory = Memory::from_box(bytes.into_boxed_slice());
        Payload { chunk: Arc::new(Chunk { memory: Some(memory), pool: None }), start: 0, length }
    }

    /// A part of the payload, sharing its memory.
    ///
    /// # Panics
    /// If the range is not within the payload.
    pub fn slice(&self, range: Range<usize>) -> Payload {
        assert!(
            range.start <= range.end && range.end <= self.length,
            "{range:?} is not within {}",
            self.length
        );
        Payload { chunk: Arc::clone(&self.chunk), start: self.start + range.start, length: range.len() }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is within the chunk and below the writer's cursor (point 3), or the chunk has no writer.
        unsafe { slice::from_raw_parts(self.chunk.start().add(self.start), self.length) }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.length)
    }
}

/// The reading end of a connection: bytes come in with [`fill`](ReadBuffer::fill) and leave as parsed headers or as
/// payloads.
pub(crate) struct ReadBuffer {
    arena: Arena,
    chunk: Arc<Chunk>,
    parsed: usize,
    filled: usize,
    read_bytes_max: usize,
}

impl ReadBuffer {
    pub(crate) fn new(arena: Arena) -> Self {
        let chunk = arena.chunk(CHUNK_BYTES);
        ReadBuffer { arena, chunk, parsed: 0, filled: 0, read_bytes_max: CHUNK_BYTES }
    }

    /// Bytes that came in and were not taken yet.
    pub(crate) fn unparsed(&self) -> &[u8] {
        // SAFETY: within the chunk (point 2); nobody writes while `self` is borrowed (point 5).
        unsafe { slice::from_raw_parts(self.chunk.start().add(self.parsed), self.filled - self.parsed) }
    }

    /// Drops bytes from the front of [`unparsed`](Self::unparsed).
    pub(crate) fn consume(&mut self, length: usize) {
        assert!(length <= self.filled - self.parsed, "only what came in can be taken");
        self.parsed += length;
    }

    /// Takes a payload off the front of [`unparsed`](Self::unparsed).
    pub(crate) fn take_payload(&mut self, length: usize) -> Payload {
        let start = self.parsed;
        self.consume(length);
        Payload { chunk: Arc::clone(&self.chunk), start, length }
    }

    /// Takes a payload that has only partly come in: the rest is read into memory of its own.
    pub(crate) fn take_large(
        &mut self,
        length: usize,
        read_exact: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<Payload> {
        let mut own = ReadBuffer {
            chunk: self.arena.chunk(length.next_multiple_of(LARGE_STEP_BYTES).max(LARGE_STEP_BYTES)),
            arena: self.arena.clone(),
            parsed: 0,
            filled: 0,
            read_bytes_max: 0,
        };
        let here = self.unparsed().len().min(length);
        own.room()[..here].copy_from_slice(&self.unparsed()[..here]);
        self.consume(here);
        read_exact(&mut own.room()[here..length])?;
        own.filled = length;
        self.read_bytes_max = READ_AFTER_LARGE_BYTES;
        Ok(own.take_payload(length))
    }

    /// Reads more, so that [`unparsed`](Self::unparsed) can grow to `need` bytes at least. Returns how many came in.
    pub(crate) fn fill(
        &mut self,
        need: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        debug_assert!(need <= CHUNK_BYTES / 2, "larger payloads are taken with take_large");
        self.make_room(need);
        let read_bytes_max = self.read_bytes_max.max(need);
        let room = self.room();
        let offered = room.len().min(read_bytes_max);
        let count = read(&mut room[..offered])?;
        assert!(count <= offered, "a read cannot return more than was asked for");
        self.filled += count;
        self.read_bytes_max = CHUNK_BYTES;
        Ok(count)
    }

    fn room(&mut self) -> &mut [u8] {
        let length = self.chunk.capacity() - self.filled;
        // SAFETY: bytes at or above `filled` are the writer's alone (points 2 and 3).
        unsafe { slice::from_raw_parts_mut(self.chunk.start().add(self.filled), length) }
    }

    fn make_room(&mut self, need: usize) {
        let rest = self.filled - self.parsed;
        let enough = self.chunk.capacity() - self.parsed >= need
            && self.chunk.capacity() - self.filled >= ROOM_BYTES_MIN.max(need - rest.min(need));
        if rest == 0 || !enough {
            // Going back to the front keeps a connection, whose payloads are not kept, in the CPU's caches.
            if Arc::get_mut(&mut self.chunk).is_some() {
                self.move_rest(self.chunk.start(), rest);
            } else if !enough {
                let next = self.arena.chunk(CHUNK_BYTES);
                self.move_rest(next.start(), rest);
                self.chunk = next;
            }
        }
    }

    /// Moves what was not parsed yet to the front of a chunk that no payload points into.
    fn move_rest(&mut self, to: *mut u8, rest: usize) {
        // SAFETY: `to` is the start of a chunk that only this writer knows: its own after `get_mut` (point 4), or a new
        // one; `rest` fits every chunk that a connection reads into. Source and target may overlap.
        unsafe { ptr::copy(self.chunk.start().add(self.parsed), to, rest) };
        self.parsed = 0;
        self.filled = rest;
    }
}

#[cfg(test)]
mod tests;
