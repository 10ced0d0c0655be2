//! What becomes part of a group's timeline. The safety rule of the store, without any I/O:
//!
//! A segment is attached only behind the head: its sequence is the head's plus one, its parent is the head's hash, and
//! its generation is not lower. The first has sequence 1 and no parent. Nothing is ever attached in another place, and
//! what is attached never changes.

use std::collections::BTreeMap;

use journal_format::{Hash, Position, Sequence};
use transport::SegmentDescriptor;

/// How far ahead of the head a segment may wait for its parent.
pub(crate) const WAITING_SEGMENTS_MAX: u64 = 1024;

/// What a segment is to the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its place is taken; whether by itself, the catalog knows.
    Behind,
    /// It continues the head.
    Next,
    /// Its parent is not here yet.
    Ahead,
    /// It waits for its parent already.
    Waiting,
    /// Too far ahead.
    TooFar,
    /// Another writer has taken over.
    Fenced,
    /// It has the place behind the head, and another parent.
    Diverged,
}

/// The timeline of a group, with verified segments that wait for their parents.
pub(crate) struct Timeline<T> {
    head: Option<Position>,
    waiting: BTreeMap<Sequence, (SegmentDescriptor, T)>,
}

impl<T> Timeline<T> {
    pub(crate) fn new(head: Option<Position>) -> Self {
        Timeline { head, waiting: BTreeMap::new() }
    }

    pub(crate) fn head(&self) -> Option<Position> {
        self.head
    }

    fn next_sequence(&self) -> Sequence {
        self.head.map_or(Sequence(1), |head| head.sequence.next())
    }

    pub(crate) fn place(&self, segment: &SegmentDescriptor) -> Place {
        let (sequence, next) = (segment.position.sequence, self.next_sequence());
        if sequence < next {
            Place::Behind
        } else if self.head.is_some_and(|head| segment.position.generation < head.generation) {
            Place::Fenced
        } else if sequence == next {
            let parent = self.head.map_or(Hash::ZERO, |head| head.hash);
            if segment.parent == parent { Place::Next } else { Place::Diverged }
        } else if self.waiting.get(&sequence).is_some_and(|(waiting, _)| waiting == segment) {
            Place::Waiting
        } else if sequence.0 - next.0 > WAITING_SEGMENTS_MAX {
            Place::TooFar
        } else {
            Place::Ahead
        }
    }

    /// Lets a verified segment wait for its parent. Answers one that waited in the same place and is not wanted any more.
    pub(crate) fn wait(&mut self, segment: SegmentDescriptor, verified: T) -> Option<T> {
        self.waiting.insert(segment.position.sequence, (segment, verified)).map(|(_, replaced)| replaced)
    }

    /// Takes the waiting segment that continues `position`. One that has the place and another parent is dropped: it
    /// belongs to a timeline that its writer has left.
    pub(crate) fn take_next(&mut self, position: Position) -> Option<(SegmentDescriptor, T)> {
        let (segment, verified) = self.waiting.remove(&position.sequence.next())?;
        let continues = segment.parent == position.hash && segment.position.generation >= position.generation;
        continues.then_some((segment, verified))
    }

    /// Moves the head, once everything up to it is durable.
    pub(crate) fn advance(&mut self, head: Position) {
        assert_eq!(head.sequence, self.next_sequence(), "a head moves by one segment at a time");
        self.head = Some(head);
    }

    /// Forgets what waits.
    pub(crate) fn forget_waiting(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests;
