//! A blocked Bloom filter: one cache line for each key (Putze, Sanders, Singler: "Cache-, Hash- and Space-Efficient Bloom
//! Filters", 2007). `INDEX.md` states its bits.

use crate::location::Fingerprint;

/// Entries for each block of 512 bits: 8.26 bits for each entry.
const BLOCK_ENTRIES: usize = 62;

/// The same in runs of up to `SMALL_ENTRIES`. They cost a look-up as much as large ones do, and little memory.
const SMALL_BLOCK_ENTRIES: usize = 48;
const SMALL_ENTRIES: usize = 1 << 20;

/// Bits for each key. Of a block filled by 62 random keys on average, 5 and 6 bits both let 2.1 % of foreign keys pass; by 48,
/// 5 bits 0.8 %.
const BITS: u32 = 5;

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

pub(crate) const BLOCK_BYTES: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(64))]
struct Block([u64; 8]);

/// Says of a fingerprint that it is not in a run, or that it may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    blocks: Box<[Block]>,
}

impl Filter {
    /// A filter that holds nothing yet.
    pub(crate) fn for_entries(entries: u64) -> Filter {
        let entries = entries as usize;
        let of_block = if entries <= SMALL_ENTRIES { SMALL_BLOCK_ENTRIES } else { BLOCK_ENTRIES };
        let count = entries.div_ceil(of_block).max(1);
        Filter { blocks: vec![Block::default(); count].into() }
    }

    pub(crate) fn insert(&mut self, fingerprint: Fingerprint) {
        let block = &mut self.blocks[fingerprint.part_of(self.blocks.len())];
        for (word, bit) in bits(fingerprint) {
            block.0[word] |= bit;
        }
    }

    /// Whether the fingerprint may have been inserted. Always looks at all bits: a branch for each would be mispredicted.
    pub(crate) fn contains(&self, fingerprint: Fingerprint) -> bool {
        let block = &self.blocks[fingerprint.part_of(self.blocks.len())];
        bits(fingerprint).fold(true, |all, (word, bit)| all & (block.0[word] & bit != 0))
    }

    pub(crate) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        (self.blocks.len() * BLOCK_BYTES) as u64
    }

    /// The bytes of its blocks, for a file.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = [u8; BLOCK_BYTES]> {
        self.blocks.iter().map(|block| {
            let mut bytes = [0; BLOCK_BYTES];
            for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(block.0) {
                *bytes = word.to_le_bytes();
            }
            bytes
        })
    }

    /// A filter of what [`Filter::bytes`] gave.
    pub(crate) fn from_bytes(bytes: &[[u8; BLOCK_BYTES]]) -> Filter {
        let block = |bytes: &[u8; BLOCK_BYTES]| {
            let mut words = bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
            Block(std::array::from_fn(|_| words.next().unwrap_or(0)))
        };
        Filter { blocks: bytes.iter().map(block).collect() }
    }
}

fn bits(fingerprint: Fingerprint) -> impl Iterator<Item = (usize, u64)> {
    let mixed = fingerprint.0.wrapping_mul(MULTIPLIER);
    (1..=BITS).map(move |place| {
        let group = mixed >> (u64::BITS - 9 * place);
        ((group >> 6) as usize & 7, 1 << (group & 63))
    })
}

#[cfg(test)]
mod tests;
