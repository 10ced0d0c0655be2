//! Decoding frames one after the other, in memory that is used again.

use journal_format::segment::{FrameCodec, FrameDecoder, FrameEntry};
use journal_format::{FormatError, Hash};

/// What is checked of a frame when it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Decode {
    /// Nothing: its stored bytes had their hash not long ago, in this very place.
    Sound,
    /// The hash of its stored bytes.
    Verified,
    /// That and, of a plain frame, the hash of the content.
    Hashed,
}

/// What decoding needs.
#[derive(Default)]
pub(crate) struct Decoding {
    decoder: FrameDecoder,
    stored: Vec<u8>,
    spare: Vec<u8>,
}

impl Decoding {
    /// Memory for the stored bytes of the frame that is decoded next: as many as its entry says, or it is damaged.
    pub(crate) fn stored(&mut self) -> &mut Vec<u8> {
        &mut self.stored
    }

    /// Gives memory for a frame that is handed over.
    pub(crate) fn give(&mut self, spare: Vec<u8>) {
        self.spare = spare;
    }

    /// Decodes the frame whose stored bytes are there, with all checks. Answers the hashes of its blocks; of a difference there are none.
    pub(crate) fn hashes(&mut self, frame: &FrameEntry) -> Result<Vec<Hash>, FormatError> {
        frame.decode_hashed(&mut self.decoder, &self.stored).map(|(_, hashes)| hashes)
    }

    /// Verifies the stored bytes that are there, and decompresses them.
    pub(crate) fn verified(&mut self, frame: &FrameEntry) -> Result<&mut [u8], FormatError> {
        frame.decode_verified(&mut self.decoder, &mut self.stored)
    }

    /// Decodes the frame whose stored bytes are there, and hands it over; of a difference frame the differences.
    pub(crate) fn decode(&mut self, frame: &FrameEntry, how: Decode) -> Result<Vec<u8>, FormatError> {
        match how {
            Decode::Hashed => drop(self.hashes(frame)?),
            Decode::Verified => drop(self.verified(frame)?),
            Decode::Sound => drop(frame.decompress(&mut self.decoder, &mut self.stored)?),
        }
        let spare = std::mem::take(&mut self.spare);
        Ok(match frame.codec {
            FrameCodec::Stored => std::mem::replace(&mut self.stored, spare),
            FrameCodec::Zstd => self.decoder.replace_raw(spare),
        })
    }
}
