//! CRC-32C: what is sent with a put, and how an object is compared with what was sent.

use aws_smithy_types::base64;
use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C of `bytes`.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    value(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

/// A CRC-32C as S3's headers have it: base64 of its four bytes, the highest one first.
pub(super) fn header(crc: u32) -> String {
    base64::encode(crc.to_be_bytes())
}

fn value(checksum: u64) -> u32 {
    u32::try_from(checksum).expect("a checksum of 32 bits")
}

/// A run of bytes that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) bytes: u64,
    pub(super) crc: u32,
}

impl Part {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, crc: crc32c(bytes) }
    }
}

/// Compares an object, as it is read, with the parts that it should be made of.
#[derive(Debug)]
pub(super) struct Comparison<'a> {
    rest: &'a [Part],
    digest: Digest,
    in_part: u64,
    equal: bool,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(parts: &'a [Part]) -> Self {
        let mut new = Self { rest: parts, digest: digest(), in_part: 0, equal: true };
        new.close_full_parts();
        new
    }

    /// Takes in the next bytes of the object.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(part) = self.rest.first() else {
                self.equal = false;
                return;
            };
            let left = usize::try_from(part.bytes - self.in_part).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            self.digest.update(now);
            self.in_part += now.len() as u64;
            bytes = later;
            self.close_full_parts();
        }
    }

    fn close_full_parts(&mut self) {
        while let Some(part) = self.rest.first()
            && part.bytes == self.in_part
        {
            self.equal &= value(self.digest.finalize()) == part.crc;
            self.digest = digest();
            self.in_part = 0;
            self.rest = &self.rest[1..];
        }
    }

    /// Whether all of it was as it should be.
    pub(super) fn is_equal(&self) -> bool {
        self.equal && self.rest.is_empty()
    }
}

fn digest() -> Digest {
    Digest::new(CrcAlgorithm::Crc32Iscsi)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_catalogue() {
        // Check value of CRC-32/ISCSI in Koopman's and Greg Cook's catalogues.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(header(0xe306_9283), "4waSgw==");
    }

    #[test]
    fn an_object_is_compared_whatever_its_chunks_are() {
        let bytes: Vec<u8> = (0..1000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let parts = [Part::of(&bytes[..400]), Part::of(&bytes[400..800]), Part::of(&bytes[800..])];
        for chunk in [1, 7, 400, 1000] {
            let compare = |bytes: &[u8]| {
                let mut comparison = Comparison::new(&parts);
                bytes.chunks(chunk).for_each(|chunk| comparison.update(chunk));
                comparison.is_equal()
            };
            assert!(compare(&bytes));
            assert!(!compare(&bytes[..999]), "shorter");
            assert!(!compare(&[&bytes[..], &[0]].concat()), "longer");
            let mut other = bytes.clone();
            other[500] ^= 1;
            assert!(!compare(&other), "other bytes");
        }
        assert!(Comparison::new(&[Part::of(b"")]).is_equal());
    }
}
