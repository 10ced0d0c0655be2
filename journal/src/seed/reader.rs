//! From legs to batches of blocks that the seed does not hold yet.

use std::sync::mpsc::SyncSender;

use journal_format::{BLOCK_BYTES, Hash, is_zero};
use journal_nbd::Payload;

use super::{SeedError, SeedLeg};
use crate::extent_map::{ExtentMap, Source};
use crate::known::KnownBlocks;
use crate::seal::PART_PAYLOAD_BYTES;

/// Read at once.
const READ_BYTES: u64 = 1 << 20;
const BLOCK: usize = BLOCK_BYTES as usize;

/// Blocks for one segment: for each volume those that are to be written.
pub(super) type Batch = Vec<ExtentMap>;

/// Reads all volumes once, in their order.
pub(super) struct Reader<'a> {
    volumes: &'a [SeedLeg],
    known: &'a KnownBlocks,
    batches: SyncSender<Batch>,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    batch: Batch,
    batch_bytes: u64,
    read_bytes: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        volumes: &'a [SeedLeg],
        known: &'a KnownBlocks,
        batches: SyncSender<Batch>,
        progress: &'a (dyn Fn(u64, u64) + Sync),
    ) -> Self {
        let batch = empty(volumes);
        Reader { volumes, known, batches, progress, batch, batch_bytes: 0, read_bytes: 0 }
    }

    /// Reads until the end, or until nobody takes the batches. Answers how many bytes were read.
    pub(super) fn run(mut self) -> Result<u64, SeedError> {
        let total: u64 = self.volumes.iter().map(|volume| volume.leg.size_bytes()).sum();
        let mut done = 0;
        for (number, volume) in self.volumes.iter().enumerate() {
            let size = volume.leg.size_bytes();
            // What is behind the last whole block cannot be referred to.
            let blocks_end = size - size % BLOCK_BYTES;
            for offset in (0..blocks_end).step_by(READ_BYTES as usize) {
                let length = READ_BYTES.min(blocks_end - offset);
                if !volume.leg.reads_as_zero(offset, length) {
                    let mut bytes = vec![0; length as usize];
                    volume.leg.read(offset, &mut bytes).map_err(|source| SeedError::Read {
                        volume: volume.name.clone(),
                        offset,
                        source,
                    })?;
                    self.read_bytes += length;
                    self.take(number, offset, bytes);
                }
                if self.batch_bytes + READ_BYTES > PART_PAYLOAD_BYTES && !self.hand_over() {
                    return Ok(self.read_bytes);
                }
                (self.progress)(done + offset + length, total);
            }
            done += size;
        }
        self.hand_over();
        (self.progress)(total, total);
        Ok(self.read_bytes)
    }

    /// Puts what the seed does not hold into the batch.
    fn take(&mut self, volume: usize, offset: u64, bytes: Vec<u8>) {
        let wanted = |block: &[u8]| !is_zero(block) && !self.known.holds(&Hash::of(block));
        let wanted: Vec<bool> = bytes.chunks(BLOCK).map(wanted).collect();
        let mut put = |from: usize, data: Vec<u8>| {
            let length = data.len() as u64;
            self.batch_bytes += length;
            let source = Source::Data { payload: Payload::from_vec(data), start: 0 };
            self.batch[volume].insert(offset + (from * BLOCK) as u64, length, source);
        };
        if wanted.iter().all(|&wanted| wanted) {
            return put(0, bytes);
        }
        let mut from = 0;
        for run in wanted.chunk_by(|one, next| one == next) {
            if run[0] {
                put(from, bytes[from * BLOCK..(from + run.len()) * BLOCK].to_vec());
            }
            from += run.len();
        }
    }

    /// Hands the batch to whoever seals. Answers whether there still is somebody.
    fn hand_over(&mut self) -> bool {
        if self.batch_bytes == 0 {
            return true;
        }
        self.batch_bytes = 0;
        self.batches.send(std::mem::replace(&mut self.batch, empty(self.volumes))).is_ok()
    }
}

fn empty(volumes: &[SeedLeg]) -> Batch {
    volumes.iter().map(|_| ExtentMap::default()).collect()
}
