//! What an epoch changed in one volume: non-overlapping ranges, the newest write of each byte.

use std::collections::BTreeMap;
use std::ops::Range;

use journal_nbd::Payload;

/// Where the bytes of a range are.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// All zero.
    Zero,
    /// Bytes of a write, from `start` on.
    Data {
        /// The write's own buffer.
        payload: Payload,
        /// Offset in the buffer in bytes.
        start: usize,
    },
}

impl Source {
    fn skip(&self, bytes: u64) -> Source {
        match self {
            Source::Zero => Source::Zero,
            Source::Data { payload, start } => {
                Source::Data { payload: payload.clone(), start: start + bytes as usize }
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Piece {
    length: u64,
    source: Source,
}

impl Piece {
    fn payload_bytes(&self) -> u64 {
        match self.source {
            Source::Zero => 0,
            Source::Data { .. } => self.length,
        }
    }
}

/// A range of an epoch, as it is handed out for sealing.
pub(crate) struct ChangedRange<'a> {
    /// Offset in the volume in bytes.
    pub(crate) offset: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    /// Its bytes; `None` for zeroes.
    pub(crate) data: Option<&'a [u8]>,
}

/// The changes of one volume in one epoch.
#[derive(Debug, Default)]
pub(crate) struct ExtentMap {
    pieces: BTreeMap<u64, Piece>,
    payload_bytes: u64,
}

impl ExtentMap {
    /// Whether nothing changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of writes that it holds.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Takes a range out.
    pub(crate) fn remove(&mut self, offset: u64, length: u64) {
        self.clear_range(offset, offset + length);
    }

    /// Keeps only the ranges, in bytes, that `keep` wants.
    pub(crate) fn retain(&mut self, keep: impl Fn(Range<u64>) -> bool) {
        let payload_bytes = &mut self.payload_bytes;
        self.pieces.retain(|&offset, piece| {
            let kept = keep(offset..offset + piece.length);
            *payload_bytes -= if kept { 0 } else { piece.payload_bytes() };
            kept
        });
    }

    /// Puts a range over whatever is there.
    pub(crate) fn insert(&mut self, offset: u64, length: u64, source: Source) {
        self.clear_range(offset, offset + length);
        self.put(offset, Piece { length, source });
    }

    /// Puts a range under whatever is there.
    pub(crate) fn fill_gaps(&mut self, offset: u64, length: u64, source: &Source) {
        for (start, end) in self.gaps(offset, offset + length) {
            self.put(start, Piece { length: end - start, source: source.skip(start - offset) });
        }
    }

    /// Ranges in the order of their offsets.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = ChangedRange<'_>> {
        self.pieces.iter().map(|(&offset, piece)| {
            let data = match &piece.source {
                Source::Zero => None,
                Source::Data { payload, start } => Some(&payload[*start..][..piece.length as usize]),
            };
            ChangedRange { offset, length: piece.length, data }
        })
    }

    fn put(&mut self, offset: u64, piece: Piece) {
        self.payload_bytes += piece.payload_bytes();
        self.pieces.insert(offset, piece);
    }

    fn take(&mut self, offset: u64) -> Option<Piece> {
        let piece = self.pieces.remove(&offset)?;
        self.payload_bytes -= piece.payload_bytes();
        Some(piece)
    }

    fn clear_range(&mut self, start: u64, end: u64) {
        let before = self.pieces.range(..start).next_back().map(|(&at, piece)| (at, at + piece.length));
        if let Some((at, piece_end)) = before.filter(|&(_, piece_end)| piece_end > start) {
            let piece = self.take(at).expect("the piece was just found");
            if piece_end > end {
                let source = piece.source.skip(end - at);
                self.put(end, Piece { length: piece_end - end, source });
            }
            self.put(at, Piece { length: start - at, source: piece.source });
        }
        while let Some(at) = self.pieces.range(start..end).next().map(|(&at, _)| at) {
            let piece = self.take(at).expect("the piece was just found");
            let piece_end = at + piece.length;
            if piece_end > end {
                self.put(end, Piece { length: piece_end - end, source: piece.source.skip(end - at) });
            }
        }
    }

    fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let before = self.pieces.range(..start).next_back().map_or(0, |(&at, piece)| at + piece.length);
        let (mut from, mut gaps) = (start.max(before), Vec::new());
        for (&at, piece) in self.pieces.range(start..end) {
            if at > from {
                gaps.push((from, at));
            }
            from = from.max(at + piece.length);
        }
        if from < end {
            gaps.push((from, end));
        }
        gaps
    }
}

#[cfg(test)]
mod tests;
