//! What is going to be read: readers that go through a volume are recognised, and the farther they have come, the more is expected.
//! Without I/O; whoever reads asks what to expect and tells the store.

use std::ops::Range;

/// Readers that are followed at once in all volumes of a point.
const READERS_MAX: usize = 32;
/// How far from where a reader was expected it may read and still be the same one: clients have several requests under way, and what lies in a
/// frame that was decompressed is not asked for here. That is the size of the largest frame.
const SLACK_BYTES: u64 = 4 << 20;
/// What is expected of a reader that has gone on for the first time; twice as much each further time.
const WINDOW_BYTES_MIN: u64 = 1 << 20;
const WINDOW_BYTES_MAX: u64 = 32 << 20;

struct Reader {
    volume: usize,
    /// Where it reads next.
    next: u64,
    /// Up to where its bytes were expected.
    expected: u64,
    window: u64,
    last_use: u64,
}

/// The readers of a point.
#[derive(Default)]
pub(super) struct ReadAhead {
    readers: Vec<Reader>,
    uses: u64,
}

impl ReadAhead {
    /// Hears of a read, and answers what is worth fetching now: at least what is read, unless that was expected before.
    pub(super) fn handle_read(&mut self, volume: usize, read: Range<u64>) -> Range<u64> {
        self.uses += 1;
        let uses = self.uses;
        let goes_on =
            |reader: &&mut Reader| reader.volume == volume && reader.next.abs_diff(read.start) <= SLACK_BYTES;
        let Some(reader) = self.readers.iter_mut().find(goes_on) else {
            self.begin(volume, read.end);
            return read;
        };
        reader.last_use = uses;
        reader.next = reader.next.max(read.end);
        reader.window = (reader.window * 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        let start = read.start.max(reader.expected.min(read.end));
        // Half a window at a time, so that what is fetched is worth a request.
        if reader.expected >= reader.next + reader.window / 2 {
            return start..read.end;
        }
        let start = start.max(reader.expected.min(reader.next + reader.window));
        reader.expected = reader.next + reader.window;
        start..reader.expected
    }

    fn begin(&mut self, volume: usize, next: u64) {
        if self.readers.len() == READERS_MAX
            && let Some(oldest) = (0..self.readers.len()).min_by_key(|&number| self.readers[number].last_use)
        {
            self.readers.swap_remove(oldest);
        }
        self.readers.push(Reader { volume, next, expected: next, window: 0, last_use: self.uses });
    }
}

#[cfg(test)]
mod tests;
