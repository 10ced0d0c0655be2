use std::sync::atomic::{AtomicUsize, Ordering};

use journal_format::{Epoch, Hash, Sequence, Timestamp};

use super::*;
use crate::wire::Heartbeat;

/// Counts what is not discarded.
#[derive(Default)]
struct Open(Arc<AtomicUsize>);

struct Sink(Arc<AtomicUsize>);

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SegmentSink for Sink {
    fn write_at(&mut self, _offset: u64, _bytes: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<Option<Position>, Refusal> {
        Ok(None)
    }
}

impl Inbox for Open {
    fn claim(&self, _peer: &PeerName, _group: &GroupName, _generation: Generation) -> Result<(), Refusal> {
        Ok(())
    }

    fn open_group(&self, _peer: &PeerName, _group: &GroupName) -> Result<Option<Position>, Refusal> {
        Ok(None)
    }

    fn begin(&self, _group: &GroupName, _segment: &SegmentDescriptor) -> Result<Begin, Refusal> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Begin::Receive(Box::new(Sink(self.0.clone()))))
    }

    fn heartbeat(&self, _group: &GroupName, _heartbeat: &Heartbeat, _received_at: Timestamp) {}

    fn closed(&self, _peer: &PeerName, _group: &GroupName) {}
}

struct Rig {
    partials: Partials,
    inbox: Open,
    group: GroupName,
    owner: Owner,
    begun: Instant,
}

fn owner(peer: &str, generation: u64) -> Owner {
    Owner { peer: peer.parse().unwrap(), generation: Generation(generation) }
}

fn segment(sequence: u64) -> SegmentDescriptor {
    let hash = Hash([sequence as u8; 32]);
    let position =
        Position { generation: Generation(1), sequence: Sequence(sequence), epoch: Epoch(sequence), hash };
    SegmentDescriptor { position, parent: Hash::ZERO, size_bytes: 1000 }
}

impl Rig {
    fn new(limits: PartialLimits) -> Self {
        Self {
            partials: Partials::new(limits),
            inbox: Open::default(),
            group: "a".parse().unwrap(),
            owner: owner("pair", 1),
            begun: Instant::now(),
        }
    }

    fn receive(&self, sequence: u64, offset: u64, length: usize) -> Taken {
        let incomplete = self
            .partials
            .get(&self.group, &self.owner, &segment(sequence), self.begun)
            .expect("there is room");
        assert!(incomplete.begin(&self.inbox, &self.group).unwrap().is_none());
        incomplete.take(&[(offset, vec![0; length].into())]).unwrap()
    }

    fn close(&self, seconds: u64) {
        let discarded = self.partials.close(&self.group, self.begun + Duration::from_secs(seconds));
        discarded.iter().for_each(|partial| partial.discard());
    }

    fn listed(&self) -> Vec<u64> {
        self.partials.list(&self.group).iter().map(|partial| partial.sequence.0).collect()
    }

    fn sinks(&self) -> usize {
        self.inbox.0.load(Ordering::SeqCst)
    }
}

#[test]
fn what_arrived_is_listed_for_the_next_session_of_the_same_source() {
    let rig = Rig::new(PartialLimits::default());
    rig.receive(1, 0, 100);
    rig.receive(1, 500, 100);
    rig.receive(2, 0, 10);
    rig.close(0);
    assert!(rig.partials.open(&rig.group, &rig.owner).is_empty());
    let listed = rig.partials.list(&rig.group);
    assert_eq!(listed[0].have, [(0, 100), (500, 100)]);
    assert_eq!(rig.listed(), [1, 2]);
    assert!(matches!(rig.receive(1, 100, 400), Taken::Written));
    assert!(matches!(rig.receive(1, 600, 400), Taken::Committed(None)));
    assert_eq!(rig.sinks(), 1);
}

#[test]
fn another_source_or_generation_goes_on_with_nothing() {
    for next in [owner("other", 1), owner("pair", 2)] {
        let rig = Rig::new(PartialLimits::default());
        rig.receive(1, 0, 100);
        rig.close(0);
        rig.partials.open(&rig.group, &next).iter().for_each(|partial| partial.discard());
        assert_eq!(rig.listed(), [0; 0]);
        assert_eq!(rig.sinks(), 0);
    }
}

#[test]
fn another_segment_in_the_same_place_is_another_one() {
    let rig = Rig::new(PartialLimits::default());
    rig.receive(1, 0, 100);
    let mut other = segment(1);
    other.position.hash = Hash([9; 32]);
    let other = rig.partials.get(&rig.group, &rig.owner, &other, rig.begun).unwrap();
    assert_eq!(other.received(), None);
}

#[test]
fn limits_discard_the_oldest_sessions_and_in_each_the_last_segments() {
    let rig = Rig::new(PartialLimits { peer_segments: 3, ..PartialLimits::default() });
    (1..=2).for_each(|sequence| {
        rig.receive(sequence, 0, 100);
    });
    rig.close(0);
    (3..=4).for_each(|sequence| {
        rig.receive(sequence, 0, 100);
    });
    rig.close(1);
    assert_eq!(rig.listed(), [1, 3, 4]);
    let rig = Rig::new(PartialLimits { bytes: 250, ..PartialLimits::default() });
    (1..=4).for_each(|sequence| {
        rig.receive(sequence, 0, 100);
    });
    rig.close(0);
    assert_eq!(rig.listed(), [1, 2]);
    assert_eq!(rig.sinks(), 2);
}

#[test]
fn what_no_session_adds_to_is_discarded_in_the_end() {
    let rig = Rig::new(PartialLimits::default());
    rig.receive(1, 0, 100);
    rig.close(0);
    for hour in 1..24 {
        rig.partials.open(&rig.group, &rig.owner);
        rig.close(hour * 3600);
    }
    assert_eq!(rig.listed(), [1]);
    let expired = rig.partials.expire(rig.begun + Duration::from_secs(24 * 3600));
    expired.iter().for_each(|partial| partial.discard());
    assert_eq!(rig.listed(), [0; 0]);
    assert_eq!(rig.sinks(), 0);
}

#[test]
fn a_welcome_names_no_more_ranges_than_fit() {
    let rig = Rig::new(PartialLimits::default());
    for sequence in 1..=5 {
        (0..400).for_each(|number| {
            rig.receive(sequence, number * 2, 1);
        });
    }
    let ranges = rig.partials.list(&rig.group).iter().map(|partial| partial.have.len()).sum::<usize>();
    assert_eq!(ranges, PARTIAL_RANGES_MAX);
}
