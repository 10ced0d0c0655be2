//! Sets of byte ranges: what is here of a segment, and what is missing.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Ends by beginnings.
    ends: BTreeMap<u64, u64>,
    bytes: u64,
}

impl Ranges {
    /// Adds a range.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.ends.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.ends.range(start..=end).next() {
            self.ends.remove(&next);
            self.bytes -= next_end - next;
            end = end.max(next_end);
        }
        self.ends.insert(start, end);
        self.bytes += end - start;
    }

    /// Bytes in all ranges.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of ranges.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The ranges, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ends.iter().map(|(&start, &end)| start..end)
    }

    /// What is missing of `size` bytes, in pieces of at most `piece`. What lies between two gaps and is shorter than `least` counts as missing: a piece of its own
    /// would cost more.
    pub(crate) fn missing(&self, size: u64, piece: u64, least: u64) -> Vec<Range<u64>> {
        let mut pieces = Vec::new();
        let mut gap = 0..0;
        let mut close = |gap: Range<u64>| {
            let mut start = gap.start;
            while start < gap.end {
                let end = gap.end.min(start.saturating_add(piece));
                pieces.push(start..end);
                start = end;
            }
        };
        let mut at = 0;
        let here = self.iter().filter(|range| range.start < size).chain(std::iter::once(size..size));
        for range in here {
            if range.start > at {
                if !gap.is_empty() && at - gap.end < least {
                    gap.end = range.start;
                } else {
                    close(gap);
                    gap = at..range.start;
                }
            }
            at = range.end.min(size);
        }
        close(gap);
        pieces
    }
}

#[cfg(test)]
mod tests;
