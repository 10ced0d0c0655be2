//! Bare blake3 and bare zstd of what sealing has to hash and to compress, and bare writing of what was sealed, on one thread.

use std::hint::black_box;
use std::io::Write;

use super::MEMORY;
use super::input::{Content, Input};
use super::sites::Sealed;

const BLOCK: usize = 4096;
/// The size of the frames that are sealed.
const FRAME: usize = 1 << 20;

/// CPU time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bare {
    pub(super) blake3_seconds: f64,
    pub(super) zstd_seconds: f64,
    pub(super) write_seconds: f64,
}

impl Bare {
    /// Of nothing yet.
    pub(super) const WORST: Bare =
        Bare { blake3_seconds: f64::INFINITY, zstd_seconds: f64::INFINITY, write_seconds: f64::INFINITY };

    pub(super) fn measure(input: &Input, content: &Content) -> anyhow::Result<Bare> {
        let ((), blake3) = super::cost(|| {
            for block in content.hashed().flat_map(|bytes| bytes.chunks(BLOCK)) {
                black_box(blake3::hash(block));
            }
            Ok(())
        })?;
        let compressed = content.compressed();
        let mut compressor = zstd::bulk::Compressor::new(input.level)?;
        let mut out = vec![0; zstd::zstd_safe::compress_bound(FRAME)];
        let ((), zstd) = super::cost(|| {
            for frame in compressed.chunks(FRAME) {
                black_box(compressor.compress_to_buffer(frame, &mut out[..])?);
            }
            Ok(())
        })?;
        Ok(Bare { blake3_seconds: blake3.cpu_seconds, zstd_seconds: zstd.cpu_seconds, ..Bare::WORST })
    }

    /// CPU time of writing what was sealed to a new file.
    pub(super) fn write_seconds(segments: &[Sealed]) -> anyhow::Result<f64> {
        let mut file = tempfile::tempfile_in(MEMORY)?;
        let mut pieces = segments.iter().flat_map(|segment| segment.bytes.chunks(FRAME));
        let ((), cost) = super::cost(|| Ok(pieces.try_for_each(|piece| file.write_all(piece))?))?;
        Ok(cost.cpu_seconds)
    }

    pub(super) fn best(self, other: Bare) -> Bare {
        Bare {
            blake3_seconds: self.blake3_seconds.min(other.blake3_seconds),
            zstd_seconds: self.zstd_seconds.min(other.zstd_seconds),
            write_seconds: self.write_seconds.min(other.write_seconds),
        }
    }

    /// Of blake3 and zstd.
    pub(super) fn seconds(self) -> f64 {
        self.blake3_seconds + self.zstd_seconds
    }
}
