//! The *block list* of a stored segment: the hash of each block of its frames. References to the segment are checked against it without reading
//! a block. It is a cache, made again from the segment if it is gone. `STORE.md` defines it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use journal_format::segment::FrameEntry;
use journal_format::{BLOCK_BYTES, Hash};

use crate::error::{StoreError, io_error};
use crate::frames::FrameTable;

const MAGIC: &[u8; 8] = b"3SITEBLK";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 48;
const HASH_BYTES: usize = 32;

/// The blocks of one frame, whatever kind it is of: hashes of what they hold, and how many differences lie between each and the plain
/// block under it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrameBlocks {
    pub(crate) hashes: Vec<Hash>,
    pub(crate) steps: Vec<u8>,
}

/// The block list of a segment, open for reading.
pub(crate) struct BlockList {
    file: File,
    /// The number of each frame's first block, and the number of all blocks.
    firsts: Vec<u64>,
}

fn firsts(frames: &[FrameEntry]) -> Vec<u64> {
    let mut firsts = vec![0];
    for frame in frames {
        firsts.push(firsts[firsts.len() - 1] + frame.blocks() as u64);
    }
    firsts
}

fn header(segment: &Hash, blocks: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&u32::try_from(blocks).unwrap_or(u32::MAX).to_le_bytes());
    header.extend_from_slice(&segment.0);
    header
}

/// Writes the list of a segment. Nothing rests on it, so that nothing is synced.
pub(crate) fn write(path: &Path, segment: &Hash, frames: &[FrameBlocks]) -> Result<(), StoreError> {
    let blocks: usize = frames.iter().map(|frame| frame.hashes.len()).sum();
    let mut bytes = header(segment, blocks as u64);
    frames.iter().flat_map(|frame| &frame.hashes).for_each(|hash| bytes.extend_from_slice(&hash.0));
    frames.iter().for_each(|frame| bytes.extend_from_slice(&frame.steps));
    // Several threads may miss the same list at once.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let temporary = path.with_extension(format!("{}.tmp", NUMBER.fetch_add(1, Ordering::Relaxed)));
    fs::write(&temporary, bytes).map_err(io_error("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("rename to", path))
}

impl BlockList {
    /// Opens the list of a segment; `None` if there is none, or it is another segment's.
    pub(crate) fn open(path: &Path, table: &FrameTable) -> Result<Option<BlockList>, StoreError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", path)(error)),
        };
        let firsts = firsts(&table.frames);
        let blocks = firsts[firsts.len() - 1];
        let mut found = [0; HEADER_BYTES as usize];
        let whole = file.metadata().map_err(io_error("look at", path))?.len()
            == HEADER_BYTES + blocks * (HASH_BYTES as u64 + 1);
        let ours = whole
            && file.read_exact_at(&mut found, 0).is_ok()
            && found[..] == header(&table.segment.hash, blocks);
        Ok(ours.then_some(BlockList { file, firsts }))
    }

    /// Blocks of a frame from `offset` in it on; `None` if they are not there, or the offset is not a block's.
    pub(crate) fn read(&self, frame: u32, offset: u64, count: usize) -> io::Result<Option<FrameBlocks>> {
        let Some(range) = self.range(frame, offset, count) else { return Ok(None) };
        let mut bytes = vec![0; count * HASH_BYTES];
        self.file.read_exact_at(&mut bytes, HEADER_BYTES + range * HASH_BYTES as u64)?;
        let mut steps = vec![0; count];
        let all = self.firsts[self.firsts.len() - 1];
        self.file.read_exact_at(&mut steps, HEADER_BYTES + all * HASH_BYTES as u64 + range)?;
        let hashes = bytes.chunks_exact(HASH_BYTES);
        let hashes = hashes.map(|hash| Hash(hash.try_into().expect("32 bytes"))).collect();
        Ok(Some(FrameBlocks { hashes, steps }))
    }

    fn range(&self, frame: u32, offset: u64, count: usize) -> Option<u64> {
        let first = *self.firsts.get(frame as usize)?;
        let behind = *self.firsts.get(frame as usize + 1)?;
        let from = first + offset / BLOCK_BYTES;
        (offset.is_multiple_of(BLOCK_BYTES) && from + count as u64 <= behind).then_some(from)
    }
}
