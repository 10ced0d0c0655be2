//! What the threads of sealing do: hash pieces and look blocks up, make frames.

use journal_format::segment::{EncodedFrame, FrameEncoder, apply_difference, block_hashes, combined_hash};
use journal_format::{BLOCK_BYTES, Hash, hash_blocks, is_zero};
use journal_index::Location;

use crate::known::KnownBlocks;
use crate::previous::{DIFFERING_BYTES_MAX, differing_bytes};

/// A piece of a changed range that lies in one block of its volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) volume: u16,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// `None` for zeroes, which may be longer than a block.
    pub(super) data: Option<&'a [u8]>,
    /// What the block held before, if that was at hand.
    pub(super) previous: Option<&'a [u8]>,
}

/// What a piece is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    Zero,
    /// A whole block, with what it held before if that is similar.
    Block {
        block: HashedBlock,
        previous: Option<HashedBlock>,
    },
    /// Less than a block.
    Fragment,
}

/// A block's hash, and where the recovery site has the block, as far as that was known when it was looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct HashedBlock {
    pub(super) hash: Hash,
    pub(super) known: Option<Location>,
}

impl HashedBlock {
    /// Looks a block up.
    fn look_up(hash: Hash, known: Option<&KnownBlocks>) -> HashedBlock {
        HashedBlock { hash, known: known.and_then(|known| known.find(&hash)) }
    }
}

impl Content {
    /// Looks up again what was not known then.
    pub(super) fn look_again(&mut self, known: Option<&KnownBlocks>) {
        let Content::Block { block, previous } = self else { return };
        let blocks = std::iter::once(block).chain(previous);
        blocks.filter(|block| block.known.is_none()).for_each(|block| {
            *block = HashedBlock::look_up(block.hash, known);
        });
    }
}

/// A frame that is to be made.
pub(super) struct FrameJob<'a> {
    pub(super) pieces: Vec<&'a [u8]>,
    /// Combined hash of the pieces, if they are whole blocks; of a difference that of what they hold.
    pub(super) raw_hash: Option<Hash>,
    /// For a difference what each piece is combined with.
    pub(super) bases: Vec<&'a [u8]>,
}

pub(super) enum Job<'a> {
    Look(Vec<Piece<'a>>),
    /// Makes a frame in this memory, whatever it holds.
    Encode(FrameJob<'a>, Vec<u8>),
}

pub(super) enum Done<'a> {
    Looked(Vec<(Piece<'a>, Content)>),
    Encoded(EncodedFrame),
}

/// One thread's worker.
pub(super) fn worker<'a>(level: i32, known: Option<&'a KnownBlocks>) -> impl FnMut(Job<'a>) -> Done<'a> {
    let mut encoder = FrameEncoder::new(level);
    let mut raw = Vec::new();
    move |job| match job {
        Job::Look(pieces) => Done::Looked(look(pieces, known)),
        Job::Encode(job, buffer) => Done::Encoded(encode(&mut encoder, &mut raw, &job, buffer)),
    }
}

type Block = [u8; BLOCK_BYTES as usize];

/// What of a piece has to be hashed.
enum Look<'a> {
    Nothing(Content),
    Block { block: &'a Block, previous: Option<&'a Block> },
}

fn look<'a>(pieces: Vec<Piece<'a>>, known: Option<&KnownBlocks>) -> Vec<(Piece<'a>, Content)> {
    let looks: Vec<Look<'_>> = pieces.iter().map(look_at).collect();
    let blocks = looks.iter().flat_map(|look| match look {
        Look::Nothing(_) => [None, None],
        Look::Block { block, previous } => [Some(*block), *previous],
    });
    let mut hashes = Vec::with_capacity(pieces.len());
    hash_blocks(blocks.flatten(), &mut hashes);
    let mut hashes = hashes.into_iter();
    let mut next = || HashedBlock::look_up(hashes.next().expect("every block has a hash"), known);
    let contents = looks.iter().map(|look| match look {
        Look::Nothing(content) => *content,
        Look::Block { previous, .. } => {
            Content::Block { block: next(), previous: previous.is_some().then(&mut next) }
        }
    });
    pieces.iter().copied().zip(contents).collect()
}

fn look_at<'a>(piece: &Piece<'a>) -> Look<'a> {
    let Some(data) = piece.data.filter(|data| !is_zero(data)) else { return Look::Nothing(Content::Zero) };
    let Ok(block) = <&Block>::try_from(data) else { return Look::Nothing(Content::Fragment) };
    let similar = |previous: &&[u8]| differing_bytes(previous, data) <= DIFFERING_BYTES_MAX;
    let previous = piece.previous.filter(similar).and_then(|previous| previous.try_into().ok());
    Look::Block { block, previous }
}

fn encode(
    encoder: &mut FrameEncoder,
    raw: &mut Vec<u8>,
    job: &FrameJob<'_>,
    buffer: Vec<u8>,
) -> EncodedFrame {
    raw.clear();
    job.pieces.iter().for_each(|piece| raw.extend_from_slice(piece));
    let raw_hash = job.raw_hash.unwrap_or_else(|| combined_hash(&block_hashes(raw)));
    if job.bases.is_empty() {
        return encoder.encode(raw, raw_hash, buffer);
    }
    for (block, base) in raw.chunks_mut(BLOCK_BYTES as usize).zip(&job.bases) {
        apply_difference(block, base);
    }
    encoder.encode_difference(raw, raw_hash, buffer)
}
