//! What blocks held before the open epoch changed them, where that was at hand cheaply: a block that changed in a few bytes then costs these.
//!
//! It is a hint. Whether the recovery site has what a difference is taken from is decided by its hash; content that was torn by a write in
//! flight, or is of another epoch, is nothing that the site has, and the block is carried whole.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use journal_format::BLOCK_BYTES;
use journal_nbd::Payload;

const BLOCK: usize = BLOCK_BYTES as usize;
/// A block that differs in more bytes than this is carried whole.
pub(crate) const DIFFERING_BYTES_MAX: usize = BLOCK / 4;
/// One of so many blocks of a write is looked at first.
const PROBE_STRIDE: usize = 16;
/// After looking in vain so often, only one of [`RARE`] writes is looked at, until one is similar.
const PATIENCE: u32 = 64;
const RARE: u32 = 32;

/// Previous content of blocks by their number.
pub(crate) type PreviousBlocks = HashMap<u64, Box<[u8]>>;

/// The previous content of blocks of one volume, as of the open epoch.
#[derive(Debug)]
pub(crate) struct Previous {
    blocks: Mutex<PreviousBlocks>,
    /// Writes looked at in vain since the last similar one.
    vain: AtomicU32,
}

/// Number of bytes in which two blocks differ.
pub(crate) fn differing_bytes(one: &[u8], other: &[u8]) -> usize {
    // Counted in bytes for as long as these cannot overflow, which is what the compiler turns into few vector instructions.
    one.chunks(128)
        .zip(other.chunks(128))
        .map(|(one, other)| {
            usize::from(one.iter().zip(other).map(|(one, other)| u8::from(one != other)).sum::<u8>())
        })
        .sum()
}

fn is_similar(one: &[u8], other: &[u8]) -> bool {
    differing_bytes(one, other) <= DIFFERING_BYTES_MAX
}

impl Previous {
    pub(crate) fn new() -> Self {
        Previous { blocks: Mutex::default(), vain: AtomicU32::new(0) }
    }

    /// Looks at what `read` finds under a write and keeps what is similar, as far as `budget` allows. `read` answers whether that was at hand.
    pub(crate) fn look(
        &self,
        offset: u64,
        payload: &Payload,
        budget: &PreviousBudget,
        mut read: impl FnMut(u64, &mut [u8]) -> bool,
    ) {
        if budget.limit_bytes == 0 || !self.is_worth_it() {
            return;
        }
        let first = offset.next_multiple_of(BLOCK_BYTES);
        let Some(skipped) = usize::try_from(first - offset).ok().filter(|&skipped| skipped < payload.len())
        else {
            return;
        };
        let data = &payload[skipped..];
        let mut found = false;
        for (number, stretch) in data.chunks(BLOCK * PROBE_STRIDE).enumerate() {
            let start = first + (number * BLOCK * PROBE_STRIDE) as u64;
            found |= self.look_at_stretch(start, stretch, budget, &mut read);
        }
        if found {
            self.vain.store(0, Ordering::Relaxed);
        } else {
            self.vain.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_worth_it(&self) -> bool {
        let vain = self.vain.load(Ordering::Relaxed);
        if vain < PATIENCE || vain.is_multiple_of(RARE) {
            return true;
        }
        self.vain.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Looks at the first block of a stretch, and at the others if that one is similar. Few bytes on the stack, which stay in the cache.
    fn look_at_stretch(
        &self,
        start: u64,
        stretch: &[u8],
        budget: &PreviousBudget,
        read: &mut impl FnMut(u64, &mut [u8]) -> bool,
    ) -> bool {
        let mut buffer = [0; BLOCK];
        let mut found = false;
        for (number, block) in stretch.chunks_exact(BLOCK).enumerate() {
            let offset = start + (number * BLOCK) as u64;
            if number > 1 && !found {
                break;
            }
            // Of a block that is written again in the same epoch there is nothing to find.
            if self.keeps(offset / BLOCK_BYTES) {
                found = true;
                continue;
            }
            if !read(offset, &mut buffer) {
                break;
            }
            if is_similar(&buffer, block) && buffer[..] != *block {
                found = true;
                self.keep(offset / BLOCK_BYTES, &buffer, budget);
            }
        }
        found
    }

    fn blocks(&self) -> MutexGuard<'_, PreviousBlocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keeps(&self, number: u64) -> bool {
        self.blocks().contains_key(&number)
    }

    fn keep(&self, number: u64, content: &[u8], budget: &PreviousBudget) {
        let mut blocks = self.blocks();
        // The first write of an epoch to a block sees what the epoch before left.
        if !blocks.contains_key(&number) && budget.take(BLOCK_BYTES) {
            blocks.insert(number, content.into());
        }
    }

    /// Hands out what was kept; the next epoch begins.
    pub(crate) fn take(&self) -> PreviousBlocks {
        std::mem::take(&mut *self.blocks())
    }
}

/// Memory for previous content, shared by the volumes of a group.
#[derive(Debug)]
pub(crate) struct PreviousBudget {
    limit_bytes: u64,
    held_bytes: AtomicU64,
}

impl PreviousBudget {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        PreviousBudget { limit_bytes, held_bytes: AtomicU64::new(0) }
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let more = |held: u64| held.checked_add(bytes).filter(|&sum| sum <= self.limit_bytes);
        self.held_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Gives back the memory of what was handed out.
    pub(crate) fn release(&self, blocks: &[PreviousBlocks]) {
        let bytes: u64 = blocks.iter().map(|blocks| blocks.len() as u64 * BLOCK_BYTES).sum();
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
