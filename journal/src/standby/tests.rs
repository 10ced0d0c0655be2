use journal_format::segment::{BuildOptions, Header, SegmentBuilder, SegmentMeta};
use journal_format::{Epoch, Timestamp};

use super::*;
use crate::clock::ManualClock;
use crate::regions::REGION_BYTES;
use crate::simulated::{Power, SimulatedLeg, SimulatedStorage};

struct Host {
    storage: SimulatedStorage,
    leg: Arc<SimulatedLeg>,
}

impl Host {
    fn new() -> Host {
        let power = Arc::new(Power::default());
        let leg = Arc::new(SimulatedLeg::new(power.clone(), vec![0; 10 * REGION_BYTES as usize]));
        Host { storage: SimulatedStorage::new(power), leg }
    }

    fn open(&self) -> Arc<Standby> {
        let volume = ("disk0".parse().unwrap(), VolumeKind::Disk, self.leg.clone() as Arc<dyn Leg>);
        let settings = StandbySettings {
            name: "demo".parse().unwrap(),
            volumes: vec![volume],
            journal_limit_bytes: 1 << 30,
        };
        let storage = Arc::new(self.storage.clone());
        Standby::open(settings, storage, Arc::new(ManualClock::default())).unwrap()
    }
}

/// The active host's chain.
#[derive(Default)]
struct Active {
    head: Option<Position>,
    now: i64,
}

impl Active {
    fn seal(&mut self) -> (StoredSegment, Vec<u8>) {
        let sequence = self.head.map_or(Sequence(1), |head| head.sequence.next());
        let header = Header {
            group: "demo".parse().unwrap(),
            generation: Generation(1),
            sequence,
            first_epoch: Epoch(sequence.0),
            last_epoch: Epoch(sequence.0),
            part: 0,
            more_parts: false,
            sealed_at: Timestamp(self.now),
            parent: self.head.map_or(Hash::ZERO, |head| head.hash),
        };
        let sealed = SegmentBuilder::new(BuildOptions::default()).finish(&header, &SegmentMeta::default());
        self.head = Some(sealed.position);
        let size_bytes = sealed.bytes.len() as u64;
        let stored =
            StoredSegment { position: sealed.position, parent: sealed.parent, size_bytes, more_parts: false };
        (stored, sealed.bytes)
    }
}

fn take(standby: &Arc<Standby>, (stored, bytes): &(StoredSegment, Vec<u8>)) -> Option<Position> {
    let mut segment = standby.receive(*stored).unwrap().expect("the segment is not here yet");
    segment.append(bytes).unwrap();
    segment.commit().unwrap()
}

fn page(version: u64, regions: &[u64]) -> MarkedPage {
    let mut bits = vec![0; 488];
    regions.iter().for_each(|region| bits[(region / 8) as usize] |= 1 << (region % 8));
    MarkedPage { volume: 0, page: 0, version, bits }
}

fn marked(standby: &Standby) -> Vec<u64> {
    standby.maps.marked(0).iter_from(0).collect()
}

/// A standby that stands with the active host, nothing marked.
fn in_step(host: &Host) -> Arc<Standby> {
    let standby = host.open();
    standby.begin(Sequence(1), Hash::ZERO).unwrap();
    standby.mark(vec![page(1, &[])]);
    standby.clear_marks();
    assert!(marked(&standby).is_empty());
    standby
}

#[test]
fn segments_that_arrive_in_any_order_are_attached_in_theirs() {
    let host = Host::new();
    let standby = in_step(&host);
    let mut active = Active::default();
    let segments: Vec<_> = (0..3).map(|_| active.seal()).collect();
    assert_eq!(take(&standby, &segments[2]), None);
    assert_eq!(take(&standby, &segments[0]), Some(segments[0].0.position));
    assert_eq!(take(&standby, &segments[1]), Some(segments[2].0.position));
    assert!(standby.receive(segments[1].0).unwrap().is_none());
    drop(standby);
    assert_eq!(host.open().head(), active.head);
}

#[test]
fn a_damaged_segment_is_not_kept() {
    let standby = in_step(&Host::new());
    let (stored, mut bytes) = Active::default().seal();
    bytes[200] ^= 1;
    let mut segment = standby.receive(stored).unwrap().unwrap();
    segment.append(&bytes).unwrap();
    assert!(matches!(segment.commit(), Err(JournalError::Damaged { .. })));
    assert_eq!(standby.head(), None);
}

#[test]
fn receipts_trim_and_a_later_beginning_drops_what_does_not_lead_there() {
    let standby = in_step(&Host::new());
    let mut active = Active::default();
    let segments: Vec<_> = (0..4).map(|_| active.seal()).collect();
    for segment in &segments[..3] {
        take(&standby, segment);
    }
    standby.covered(segments[1].0.position).unwrap();
    standby.begin(Sequence(3), segments[2].0.parent).unwrap();
    assert_eq!(standby.head(), Some(segments[2].0.position));
    // The active host went on from elsewhere.
    standby.begin(Sequence(9), Hash::of(b"elsewhere")).unwrap();
    assert_eq!(standby.head(), None);
}

#[test]
fn another_segment_in_a_place_replaces_the_timeline_from_there() {
    let standby = in_step(&Host::new());
    let mut active = Active::default();
    let first = active.seal();
    take(&standby, &first);
    take(&standby, &active.seal());
    let mut other = Active { head: Some(first.0.position), now: 1 };
    let replacement = other.seal();
    assert_eq!(take(&standby, &replacement), other.head);
    assert_ne!(other.head, active.head);
}

#[test]
fn marks_are_kept_over_a_restart_and_cleared_after_a_flush_of_the_leg() {
    let host = Host::new();
    let standby = in_step(&host);
    standby.mark(vec![page(2, &[3, 4])]);
    drop(standby);
    let standby = host.open();
    assert_eq!(marked(&standby), [3, 4]);
    standby.mark(vec![page(3, &[4, 5])]);
    assert_eq!(marked(&standby), [3, 4, 5], "a mark is taken away before the leg is flushed");
    standby.clear_marks();
    assert_eq!(marked(&standby), [4, 5]);
    // An older page that arrives late changes nothing.
    standby.mark(vec![page(1, &[])]);
    standby.clear_marks();
    assert_eq!(marked(&standby), [4, 5]);
}

#[test]
fn taking_over_raises_the_generation_and_trusts_only_fresh_marks() {
    for (fresh, expected) in [(true, 1), (false, 10)] {
        let host = Host::new();
        let standby = in_step(&host);
        standby.mark(vec![page(2, &[7])]);
        assert_eq!(standby.take_over(fresh).unwrap(), Generation(2));
        drop(standby);
        let again = host.open();
        assert_eq!((again.generation(), marked(&again).len()), (Generation(2), expected));
    }
}

#[test]
fn marks_are_fresh_within_the_lease_or_while_the_leg_is_untouched() {
    let host = Host::new();
    let standby = in_step(&host);
    assert!(!standby.is_fresh(Timestamp(5), None));
    assert!(standby.is_fresh(Timestamp(5), Some(Timestamp(5))));
    assert!(standby.is_fresh(Timestamp(500), Some(Timestamp(5))), "nobody wrote to the leg");
    host.leg.write_behind_our_back(0, b"x");
    // The simulated leg counts its writes instead of telling their time.
    assert!(!standby.is_fresh(Timestamp(500), Some(Timestamp(0))));
}
