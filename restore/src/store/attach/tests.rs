use journal_format::{Epoch, Generation, Hash, Position, Sequence};
use transport::SegmentDescriptor;

use super::*;

fn hash(number: u64) -> Hash {
    if number == 0 { Hash::ZERO } else { Hash::of(&number.to_le_bytes()) }
}

fn segment(generation: u64, sequence: u64) -> SegmentDescriptor {
    let position = Position {
        generation: Generation(generation),
        sequence: Sequence(sequence),
        epoch: Epoch(sequence),
        hash: hash(sequence),
    };
    SegmentDescriptor { position, parent: hash(sequence - 1), size_bytes: 512 }
}

fn timeline(head: u64) -> Timeline<u64> {
    Timeline::new((head > 0).then(|| segment(2, head).position))
}

#[test]
fn a_segment_has_one_place() {
    let with_parent = |parent| SegmentDescriptor { parent, ..segment(2, 4) };
    let check = |segment: SegmentDescriptor, expected| {
        assert_eq!(timeline(3).place(&segment), expected, "{segment:?}")
    };
    check(segment(2, 4), Place::Next);
    check(segment(3, 4), Place::Next);
    check(with_parent(hash(9)), Place::Diverged);
    check(segment(1, 4), Place::Fenced);
    check(segment(1, 9), Place::Fenced);
    check(segment(2, 3), Place::Behind);
    check(segment(2, 5), Place::Ahead);
    check(segment(2, 4 + WAITING_SEGMENTS_MAX), Place::Ahead);
    check(segment(2, 5 + WAITING_SEGMENTS_MAX), Place::TooFar);
    assert_eq!(timeline(0).place(&segment(2, 1)), Place::Next);
    assert_eq!(timeline(0).place(&segment(2, 2)), Place::Ahead);
}

#[test]
fn waiting_segments_follow_their_parent() {
    let mut timeline = timeline(0);
    assert_eq!(timeline.wait(segment(2, 2), 2), None);
    assert_eq!(timeline.wait(segment(2, 3), 3), None);
    assert_eq!(timeline.place(&segment(2, 2)), Place::Waiting);
    let first = segment(2, 1).position;
    assert_eq!(timeline.take_next(first).map(|(_, number)| number), Some(2));
    assert_eq!(timeline.take_next(segment(2, 2).position).map(|(_, number)| number), Some(3));
    assert_eq!(timeline.take_next(segment(2, 3).position), None);
    timeline.advance(first);
    assert_eq!(timeline.head(), Some(first));
}

#[test]
fn a_waiting_segment_of_a_left_timeline_is_dropped() {
    let mut timeline = timeline(0);
    let stray = SegmentDescriptor { parent: hash(77), ..segment(2, 2) };
    assert_eq!(timeline.wait(stray, 1), None);
    assert_eq!(timeline.take_next(segment(2, 1).position), None);
    assert_eq!(timeline.wait(stray, 2), None, "it is gone");
    assert_eq!(timeline.wait(segment(2, 2), 3), Some(2), "one place holds one segment");
    timeline.forget_waiting();
    assert_eq!(timeline.place(&segment(2, 2)), Place::Ahead);
}
