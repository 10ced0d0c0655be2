//! Hashing blocks, several at once.
//!
//! BLAKE3 is a tree over pieces of 1024 bytes, of which a block has four: by itself it fills a quarter of the widest vector registers at most.
//! The same pieces of many blocks fill them. The result is the same hash.

use blake3::IncrementCounter;
use blake3::platform::{MAX_SIMD_DEGREE, Platform};

use crate::{BLOCK_BYTES, Hash};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Section 2.1 of the BLAKE3 paper: the bytes of a leaf, the initial values, and the flags.
const CHUNK: usize = 1024;
const INITIAL: [u32; 8] =
    [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;

/// Blocks that are hashed at once.
const LANES: usize = if MAX_SIMD_DEGREE < 4 { 4 } else { MAX_SIMD_DEGREE };
/// Fewer blocks than this are hashed one by one.
const LANES_MIN: usize = 3;

/// The inner nodes of a block's tree, two by two as their parents take them.
type Nodes = [[u8; 64]; 2];

/// Appends the hash of each block, which is that of [`Hash::of`].
pub fn hash_blocks<'a>(blocks: impl IntoIterator<Item = &'a [u8; BLOCK]>, hashes: &mut Vec<Hash>) {
    let platform = Platform::detect();
    let mut blocks = blocks.into_iter();
    loop {
        let mut group = [&[0; BLOCK]; LANES];
        let mut count = 0;
        for (place, block) in group.iter_mut().zip(&mut blocks) {
            *place = block;
            count += 1;
        }
        if count >= LANES_MIN {
            hash_group(platform, &group[..count], hashes);
        } else {
            hashes.extend(group[..count].iter().map(|block| Hash::of(&block[..])));
        }
        if count < LANES {
            return;
        }
    }
}

fn hash_group(platform: Platform, blocks: &[&[u8; BLOCK]], hashes: &mut Vec<Hash>) {
    let mut nodes: [Nodes; LANES] = [[[0; 64]; 2]; LANES];
    let mut out = [0; LANES * 64];
    for chunk in 0..BLOCK / CHUNK {
        let mut inputs = [&[0; CHUNK]; LANES];
        for (input, block) in inputs.iter_mut().zip(blocks) {
            *input = block[chunk * CHUNK..].first_chunk().expect("a block has four chunks");
        }
        let (inputs, counter) = (&inputs[..blocks.len()], chunk as u64);
        platform.hash_many(
            inputs,
            &INITIAL,
            counter,
            IncrementCounter::No,
            0,
            CHUNK_START,
            CHUNK_END,
            &mut out,
        );
        for (nodes, value) in nodes.iter_mut().zip(out.chunks_exact(32)).take(blocks.len()) {
            nodes[chunk / 2][chunk % 2 * 32..][..32].copy_from_slice(value);
        }
    }
    // Twice as many parents as blocks, so that both together fill the registers; then the roots.
    let mut parents = [&[0; 64]; LANES * 2];
    for (place, node) in parents.iter_mut().zip(nodes[..blocks.len()].iter().flatten()) {
        *place = node;
    }
    let parents = &parents[..blocks.len() * 2];
    platform.hash_many(parents, &INITIAL, 0, IncrementCounter::No, PARENT, 0, 0, &mut out);
    let mut roots = [&[0; 64]; LANES];
    for (place, node) in roots.iter_mut().zip(out.as_chunks().0) {
        *place = node;
    }
    let mut values = [0; LANES * 32];
    let roots = &roots[..blocks.len()];
    platform.hash_many(roots, &INITIAL, 0, IncrementCounter::No, PARENT | ROOT, 0, 0, &mut values);
    hashes.extend(values.as_chunks().0[..blocks.len()].iter().copied().map(Hash));
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, LANES, hash_blocks};
    use crate::Hash;

    #[test]
    fn many_blocks_have_the_hashes_of_each() {
        for count in 0..LANES * 3 {
            let mut state = count as u64;
            let mut byte = || {
                state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
                (state >> 56) as u8
            };
            let blocks: Vec<[u8; BLOCK]> = (0..count).map(|_| std::array::from_fn(|_| byte())).collect();
            let mut hashes = Vec::new();
            hash_blocks(&blocks, &mut hashes);
            assert_eq!(hashes, blocks.iter().map(|block| Hash::of(block)).collect::<Vec<_>>(), "{count}");
        }
    }
}
