use journal_format::Timestamp;
use journal_format::segment::{BuildOptions, Header, SegmentBuilder, SegmentMeta};

use super::*;
use crate::simulated::{Power, SimulatedStorage};

fn group() -> GroupName {
    "demo".parse().unwrap()
}

fn append(chain: &mut Chain) -> StoredSegment {
    let (sequence, parent) = chain.next();
    let epoch = chain.next_epoch();
    let header = Header {
        group: group(),
        generation: chain.generation(),
        sequence,
        first_epoch: epoch,
        last_epoch: epoch,
        part: 0,
        more_parts: false,
        sealed_at: Timestamp(0),
        parent,
    };
    let segment = SegmentBuilder::new(BuildOptions::default()).finish(&header, &SegmentMeta::default());
    chain.storage().write(&segment_name(sequence), &segment.bytes).unwrap();
    let (position, parent, size_bytes) = (segment.position, segment.parent, segment.bytes.len() as u64);
    let stored = StoredSegment { position, parent, size_bytes, more_parts: false };
    chain.register(stored);
    stored
}

/// A journal with so many segments, ended in order or not.
fn journal(segments: usize, clean: bool) -> Arc<SimulatedStorage> {
    let storage = Arc::new(SimulatedStorage::new(Arc::new(Power::default())));
    let mut chain = Chain::open(group(), storage.clone(), 1 << 30).unwrap().chain;
    for _ in 0..segments {
        append(&mut chain);
    }
    let clean = clean.then(|| CleanRecord { head: chain.head(), legs: vec![None] });
    chain.save_state(1, Vec::new(), clean).unwrap();
    storage
}

fn reopen(storage: &Arc<SimulatedStorage>) -> Result<Opened, JournalError> {
    Chain::open(group(), storage.clone(), 1 << 30)
}

fn head_of(opened: &Opened) -> u64 {
    opened.chain.head().map_or(0, |head| head.sequence.0)
}

#[test]
fn nothing_there_begins_a_new_journal() {
    let opened = reopen(&Arc::new(SimulatedStorage::new(Arc::new(Power::default())))).unwrap();
    assert!(opened.known.is_empty() && opened.clean.is_none() && opened.chain.head().is_none());
    assert_eq!(opened.chain.next(), (Sequence(1), Hash::ZERO));
}

#[test]
fn segments_without_a_state_are_refused() {
    let storage = journal(2, true);
    storage.remove(STATE_FILE).unwrap();
    assert!(matches!(reopen(&storage), Err(JournalError::State { .. })));
}

#[test]
fn an_unreadable_state_is_refused() {
    let storage = journal(1, true);
    for bytes in [&b""[..], b"{", b"{\"format\":\"x\"}"] {
        storage.write(STATE_FILE, bytes).unwrap();
        assert!(matches!(reopen(&storage), Err(JournalError::State { .. })));
    }
}

#[test]
fn a_state_of_another_version_is_refused() {
    let storage = journal(1, true);
    let text = String::from_utf8(storage.read(STATE_FILE, 0, 1 << 20).unwrap()).unwrap();
    storage.write(STATE_FILE, text.replace("\"version\": 3", "\"version\": 4").as_bytes()).unwrap();
    assert!(matches!(reopen(&storage), Err(JournalError::State { .. })));
}

#[test]
fn the_journal_of_another_group_is_refused() {
    let storage = journal(1, true);
    let opened = Chain::open("other".parse().unwrap(), storage, 1 << 30);
    assert!(matches!(opened, Err(JournalError::State { .. })));
}

#[test]
fn an_orderly_end_is_recognised() {
    let opened = reopen(&journal(3, true)).unwrap();
    assert!(opened.clean.is_some() && opened.damaged.is_empty());
    assert_eq!(head_of(&opened), 3);
}

#[test]
fn without_a_clean_record_the_chain_goes_on_at_its_head() {
    let opened = reopen(&journal(3, false)).unwrap();
    assert!(opened.clean.is_none() && opened.damaged.is_empty());
    assert_eq!(head_of(&opened), 3);
}

#[test]
fn a_clean_record_of_another_head_does_not_count() {
    let storage = journal(3, true);
    storage.remove(&segment_name(Sequence(3))).unwrap();
    let opened = reopen(&storage).unwrap();
    assert!(opened.clean.is_none());
    assert_eq!(head_of(&opened), 2);
}

#[test]
fn a_damaged_segment_and_those_behind_it_are_set_aside() {
    for (sequence, bit) in [(2, 8 * 20), (2, 8 * 250), (3, 0)] {
        let storage = journal(4, true);
        storage.flip_bit(&segment_name(Sequence(sequence)), bit);
        let opened = reopen(&storage).unwrap();
        assert_eq!(head_of(&opened), sequence - 1);
        assert_eq!(opened.damaged.len() as u64, 4 - sequence + 1);
        assert!(opened.clean.is_none());
        let names = storage.list().unwrap();
        assert!(names.iter().any(|(name, _)| name.ends_with(".damaged")));
    }
}

#[test]
fn a_missing_segment_ends_the_chain_before_it() {
    let storage = journal(4, true);
    storage.remove(&segment_name(Sequence(2))).unwrap();
    let opened = reopen(&storage).unwrap();
    assert_eq!((head_of(&opened), opened.damaged.len()), (1, 2));
}

#[test]
fn temporary_files_are_removed() {
    let storage = journal(1, true);
    storage.write("00000000000000000002.seg.tmp", b"half").unwrap();
    reopen(&storage).unwrap();
    assert!(storage.list().unwrap().iter().all(|(name, _)| !name.ends_with(".tmp")));
}

#[test]
fn invariant_4_the_journal_trims_only_what_receipts_cover() {
    let storage = journal(4, true);
    let mut chain = reopen(&storage).unwrap().chain;
    let segments = chain.pending(Sequence(1), 10);
    chain.trim(segments[1].position).unwrap();
    assert_eq!(chain.pending(Sequence(1), 10), &segments[2..]);
    let foreign = Position { hash: Hash::of(b"other"), ..segments[2].position };
    assert!(matches!(chain.trim(foreign), Err(JournalError::Diverged { .. })));
    assert_eq!(chain.pending(Sequence(1), 10), &segments[2..]);
    chain.trim(segments[3].position).unwrap();
    assert_eq!(chain.pending(Sequence(1), 10), &segments[3..]);
    assert_eq!(chain.backlog(), (0, 0));
}

#[test]
fn a_full_journal_takes_no_more() {
    let storage = journal(2, true);
    let chain = Chain::open(group(), storage, 600).unwrap().chain;
    assert!(matches!(chain.check_room(600), Err(JournalError::Limit { .. })));
}

fn at(segment: &StoredSegment) -> Option<Position> {
    Some(segment.position)
}

#[test]
fn every_row_of_the_table_for_going_on_from_the_site() {
    let mut chain = reopen(&journal(4, false)).unwrap().chain;
    let segments = chain.pending(Sequence(1), 10);
    let site = segments[1].position;
    let newer = Position { generation: Generation(2), ..site };
    assert_eq!(chain.step_to(Some(newer), true), ChainStep::Fenced { site: Generation(2) });
    assert_eq!(chain.step_to(Some(site), true), ChainStep::Continue(Sequence(3)));
    assert_eq!(chain.step_to(Some(site), false), ChainStep::DropBehind(site));
    assert_eq!(chain.step_to(None, true), ChainStep::Continue(Sequence(1)));
    assert_eq!(chain.step_to(None, false), ChainStep::GoOnEverything);
    let foreign = Position { hash: Hash::of(b"other"), sequence: Sequence(9), ..site };
    assert_eq!(chain.step_to(Some(foreign), true), ChainStep::GoOnEverything);
    chain.trim(segments[2].position).unwrap();
    assert_eq!(chain.step_to(None, true), ChainStep::GoOnEverything, "the site lost its store");
    // This journal has just taken over.
    chain.generation = Generation(2);
    assert_eq!(chain.step_to(Some(foreign), true), ChainStep::GoOnMarked);
    let old = Position { sequence: Sequence(2), ..foreign };
    assert_eq!(chain.step_to(Some(old), true), ChainStep::GoOnEverything, "the site went back");
}

#[test]
fn an_epoch_is_covered_when_its_last_part_is() {
    let mut chain = reopen(&journal(3, false)).unwrap().chain;
    let segments = chain.pending(Sequence(1), 10);
    let first = StoredSegment { more_parts: true, ..segments[1] };
    chain.register(first);
    chain.trim(first.position).unwrap();
    assert_eq!(chain.covered_epoch(), Epoch(first.position.epoch.0 - 1));
    chain.trim(segments[2].position).unwrap();
    assert_eq!(chain.covered_epoch(), segments[2].position.epoch);
}

#[test]
fn what_is_dropped_behind_a_position_leaves_a_chain() {
    let storage = journal(4, false);
    let mut chain = reopen(&storage).unwrap().chain;
    let segments = chain.pending(Sequence(1), 10);
    chain.drop_behind(segments[1].position).unwrap();
    assert_eq!(chain.head(), at(&segments[1]));
    assert_eq!(head_of(&reopen(&storage).unwrap()), 2);
}
