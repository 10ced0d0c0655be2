//! Oracle O2: write order by stamps, independent of any journal.
//!
//! Every block that a workload writes says which write it is from and where it belongs, and is checksummed. The workload notes
//! when each write was issued and when it was acknowledged. An image is a consistent cut if and only if nothing in it is torn or
//! misplaced and, with T the latest time of issue of any visible write, every write acknowledged before T is visible, or hidden
//! by a write that was not acknowledged before it was issued. This holds at any queue depth and across volumes.

use std::collections::HashMap;
use std::fmt;

/// Size of a stamped block in bytes.
pub const BLOCK_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"3SSTAMP1";

/// Nanoseconds on one monotonic clock.
pub type Nanoseconds = u64;

/// One write of a workload.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Volume that it went to.
    pub volume: usize,
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// When it was issued: before the first byte was sent.
    pub issued: Nanoseconds,
    /// When its acknowledgement had been read; `None` if it never was.
    pub acknowledged: Option<Nanoseconds>,
}

/// Everything that a workload wrote. A write's number is its place in here.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The writes.
    pub writes: Vec<Write>,
}

/// What is known about when a cut was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct CutWindow {
    /// Everything acknowledged before this is in the cut.
    pub asked: Nanoseconds,
    /// Nothing issued after this is in the cut; `None` if unknown.
    pub answered: Option<Nanoseconds>,
}

/// Why an image is not a consistent cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Volume.
    pub volume: usize,
    /// Block.
    pub block: u64,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {}, block {}: {}", self.volume, self.block, self.reason)
    }
}

/// Makes the block that write `number` puts at `block`.
pub fn stamp(number: u64, volume: usize, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..24].copy_from_slice(&(volume as u64).to_le_bytes());
    bytes[24..32].copy_from_slice(&block.to_le_bytes());
    let seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    for (place, word) in bytes[64..].chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&seed.wrapping_add(place as u64 / 8).to_le_bytes());
    }
    let hash = *blake3::hash(&bytes).as_bytes();
    bytes[32..64].copy_from_slice(&hash);
    bytes
}

/// Reads a block: the number of the write that it is from, `None` if it was never written.
fn read_stamp(bytes: &[u8], volume: usize, block: u64) -> Result<Option<u64>, String> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    if &bytes[..8] != MAGIC {
        return Err("there is something that nobody wrote".to_owned());
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let number = word(8);
    if (word(16), word(24)) != (volume as u64, block) {
        return Err(format!(
            "write {number} is misplaced: it belongs to volume {} block {}",
            word(16),
            word(24)
        ));
    }
    if bytes == stamp(number, volume, block) {
        Ok(Some(number))
    } else {
        Err(format!("write {number} is torn"))
    }
}

impl History {
    /// Checks the images of all volumes at one cut. Blocks never written are zero.
    ///
    /// # Errors
    /// The first violation found.
    pub fn check(&self, images: &[Vec<u8>], window: CutWindow) -> Result<(), Violation> {
        let visible = self.visible(images)?;
        for (&(volume, block), &number) in &visible {
            let issued = self.writes[number as usize].issued;
            if window.answered.is_some_and(|answered| issued > answered) {
                let reason = format!("write {number} was issued after the cut had been answered");
                return Err(Violation { volume, block, reason });
            }
        }
        let latest = visible.values().map(|&number| self.writes[number as usize].issued).max();
        let bound = latest.unwrap_or(0).max(window.asked);
        for (number, write) in self.writes.iter().enumerate() {
            if write.acknowledged.is_some_and(|acknowledged| acknowledged < bound) {
                self.check_present(number as u64, write, &visible)?;
            }
        }
        Ok(())
    }

    fn visible(&self, images: &[Vec<u8>]) -> Result<HashMap<(usize, u64), u64>, Violation> {
        let mut visible = HashMap::new();
        for (volume, image) in images.iter().enumerate() {
            for (block, bytes) in image.chunks(BLOCK_BYTES).enumerate() {
                let block = block as u64;
                let violation = |reason| Violation { volume, block, reason };
                let Some(number) = read_stamp(bytes, volume, block).map_err(violation)? else { continue };
                let covers = |write: &Write| {
                    write.volume == volume && (write.block..write.block + write.blocks).contains(&block)
                };
                if !self.writes.get(number as usize).is_some_and(covers) {
                    return Err(violation(format!("write {number} was never issued to this place")));
                }
                visible.insert((volume, block), number);
            }
        }
        Ok(visible)
    }

    fn check_present(
        &self,
        number: u64,
        write: &Write,
        visible: &HashMap<(usize, u64), u64>,
    ) -> Result<(), Violation> {
        for block in write.block..write.block + write.blocks {
            let violation = |reason| Err(Violation { volume: write.volume, block, reason });
            match visible.get(&(write.volume, block)) {
                None => return violation(format!("write {number} is missing, the block is empty")),
                Some(&other) if other == number => {}
                Some(&other) => {
                    let acknowledged = self.writes[other as usize].acknowledged;
                    if acknowledged.is_some_and(|acknowledged| acknowledged < write.issued) {
                        return violation(format!(
                            "write {number} is missing, the older write {other} is there"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
