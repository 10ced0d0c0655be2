use journal_format::segment::verify_segment;
use journal_format::{ErrorKind, Generation, Hash, Position, Sequence, VolumeName};

use super::simulation::{Simulation, Site, settings};
use crate::compare::{Compared, Comparer, RegionState};
use crate::error::JournalError;
use crate::faults::{Bug, plant};
use crate::group::{CutRequest, Group, SiteHead, SweepStep};
use crate::leg::Leg;
use crate::simulated::{DiskFaults, SimulatedLeg};
use crate::storage::Storage;
use crate::tap::TapVolume;
use journal_nbd::{Export, Payload};
use std::sync::Arc;

/// A group whose first resync is done and shipped.
fn settled() -> Simulation {
    let mut simulation = Simulation::new(1);
    simulation.settle();
    simulation
}

#[test]
fn an_existing_leg_is_synced_before_the_first_point() {
    let mut simulation = Simulation::new(1);
    simulation.write();
    simulation.cut();
    assert!(simulation.group.seal_next());
    simulation.ship(10);
    assert!(simulation.site().points.is_empty());
    simulation.settle();
}

#[test]
fn a_cut_that_follows_a_lost_one_is_no_point() {
    let mut simulation = settled();
    let before = simulation.site().points.len();
    simulation.write();
    simulation.cut();
    simulation.write();
    simulation.cut();
    simulation.storage.set_faults(DiskFaults { free_bytes: Some(0), ..DiskFaults::default() });
    assert!(simulation.group.seal_next());
    simulation.storage.set_faults(DiskFaults::default());
    assert!(simulation.group.seal_next());
    simulation.ship(10);
    assert_eq!(simulation.site().points.len(), before, "a point without the lost changes was listed");
    assert_eq!(simulation.group.status().counters.lost_cuts, 1);
    simulation.settle();
}

#[test]
fn an_orderly_end_leaves_nothing_to_compare() {
    let simulation = settled();
    simulation.group.close().unwrap();
    let again = simulation.open(300_000).unwrap();
    assert_eq!(again.status().counters.dirty_bytes, 0);
}

#[test]
fn a_leg_that_was_written_behind_our_back_is_compared_whole() {
    let mut simulation = settled();
    simulation.group.close().unwrap();
    simulation.legs[0].write_behind_our_back(1000, b"somebody else");
    simulation.crash(false);
    let size_bytes = simulation.legs[0].size_bytes().next_multiple_of(65536);
    assert_eq!(simulation.group.status().counters.dirty_bytes, size_bytes);
    simulation.settle();
}

#[test]
fn after_a_crash_only_what_was_marked_is_compared_and_only_what_differs_is_sent() {
    let mut simulation = settled();
    while simulation.group.clear_marks() > 0 {
        simulation.round();
    }
    simulation.group.intents().commit();
    simulation.write();
    simulation.crash(false);
    let dirty = simulation.group.status().counters.dirty_bytes;
    assert!((1..=2 * 65536).contains(&dirty), "{dirty} bytes are dirty");
    let before = simulation.site().received_bytes;
    simulation.settle();
    let sent = simulation.site().received_bytes - before;
    assert!(sent < 100_000, "{sent} bytes were sent after a crash with one write open");
}

#[test]
fn a_requested_resync_compares_everything_and_a_full_one_sends_it() {
    let mut simulation = settled();
    // Blocks that differ: of equal ones a segment carries one.
    let blocks: Vec<u8> = (0..8_u32).flat_map(|number| vec![number as u8 + 1; 4096]).collect();
    TapVolume::new(simulation.group.clone(), 0).write(0, Payload::from_vec(blocks)).unwrap();
    simulation.note_cut();
    simulation.settle();
    let before = simulation.site().received_bytes;
    simulation.request_resync(false);
    assert!(simulation.group.resync_status().is_some());
    simulation.settle();
    let compared = simulation.site().received_bytes - before;
    simulation.request_resync(true);
    simulation.settle();
    let full = simulation.site().received_bytes - before - compared;
    assert!(full > compared, "compared {compared}, full {full}");
    assert!(simulation.group.resync_status().is_none());
}

/// Somebody else changes a leg after a write of the guest, and a resync is asked for in the epoch of that write.
fn change_behind_our_back() {
    let mut simulation = settled();
    let tap = TapVolume::new(simulation.group.clone(), 0);
    tap.write(0, Payload::from_vec(vec![7; 4096])).unwrap();
    // What the resync cuts first is what the guest wrote.
    simulation.note_cut();
    simulation.legs[0].write_behind_our_back(0, &[9; 4096]);
    simulation.group.request_resync(false);
    while simulation.group.seal_next() {}
    simulation.settle();
}

#[test]
fn a_requested_resync_finds_what_was_changed_behind_our_back_after_a_captured_write() {
    change_behind_our_back();
}

/// Somebody changes a leg between two clients of its tap.
fn change_between_clients() {
    let mut simulation = settled();
    let tap = TapVolume::new(simulation.group.clone(), 0);
    let write = |fill| tap.write(0, Payload::from_vec(vec![fill; 512])).unwrap();
    tap.opened();
    write(1);
    tap.closed();
    simulation.note_cut();
    simulation.legs[0].write_behind_our_back(8192, &[9; 4096]);
    tap.opened();
    write(2);
    while simulation.group.seal_next() {}
    simulation.settle();
}

#[test]
fn a_leg_that_is_changed_between_two_clients_of_its_tap_is_compared() {
    change_between_clients();
}

#[test]
fn the_planted_trust_the_leg_is_noticed() {
    plant(Some(Bug::TrustTheLeg));
    let noticed = std::panic::catch_unwind(change_between_clients).is_err();
    plant(None);
    assert!(noticed);
}

#[test]
fn the_planted_resync_under_older_capture_is_noticed() {
    plant(Some(Bug::ResyncUnderOlderCapture));
    let noticed = std::panic::catch_unwind(change_behind_our_back).is_err();
    plant(None);
    assert!(noticed);
}

#[test]
fn a_resync_without_a_way_to_the_site_waits() {
    let simulation = Simulation::new(1);
    simulation.group.set_comparer(None);
    assert_eq!(simulation.group.sweep_step(), SweepStep::Wait);
    assert!(simulation.group.status().counters.dirty_bytes > 0);
}

#[test]
fn a_site_that_lost_its_store_gets_everything_again() {
    let mut simulation = settled();
    simulation.write();
    simulation.cut();
    assert!(simulation.group.seal_next());
    simulation.ship(10);
    *simulation.site() = Site::default();
    simulation.ship(10);
    simulation.settle();
}

#[test]
fn a_site_with_a_newer_generation_fences_the_writer() {
    let simulation = settled();
    let head = simulation.site().head.unwrap();
    let newer = journal_format::Position { generation: Generation(2), ..head };
    let error = simulation.group.site_head(Some(newer)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
}

#[test]
fn a_cut_is_answered_when_it_is_sealed() {
    let mut simulation = settled();
    simulation.write();
    let bookmark = Some("before-upgrade".parse().unwrap());
    let ticket = simulation.group.cut(CutRequest { bookmark: bookmark.clone() });
    assert!(ticket.try_recv().is_err());
    assert!(simulation.group.seal_next());
    let sealed = ticket.try_recv().unwrap().unwrap();
    assert!(sealed.is_point);
    let stored = simulation.group.pending(sealed.position.sequence, 1)[0];
    let name = Group::segment_name(stored.position.sequence);
    let bytes = simulation.storage.read(&name, 0, stored.size_bytes as usize).unwrap();
    assert_eq!(verify_segment(&bytes).unwrap().meta.point.unwrap().bookmark, bookmark);
}

#[test]
fn a_leg_of_another_size_is_refused() {
    let simulation = settled();
    let mut legs = simulation.legs.clone();
    legs[1] = Arc::new(SimulatedLeg::new(simulation.power.clone(), vec![0; 512]));
    let result = Group::open(
        settings(&legs, 1 << 20),
        Arc::new(simulation.storage.clone()),
        simulation.clock.clone(),
        journal_nbd::Arena::default(),
        Box::new(|_, _| {}),
    );
    assert!(matches!(result, Err(JournalError::LegSize { actual: 512, .. })));
}

/// The volumes of the newest sealed segment that its point holds, and whether it is a point.
fn newest_point(simulation: &Simulation, group: &Group) -> (Vec<String>, bool) {
    drop(group.cut(CutRequest::default()));
    while group.seal_next() {}
    let stored = group.pending(group.head().unwrap().sequence, 1)[0];
    let name = Group::segment_name(stored.position.sequence);
    let bytes = simulation.storage.read(&name, 0, stored.size_bytes as usize).unwrap();
    let meta = verify_segment(&bytes).unwrap().meta;
    let names = meta.point_volumes().map(|volume| volume.name.to_string()).collect();
    (names, meta.point.is_some())
}

/// Answers that the site has everything as it is, as of this head.
struct Same(Option<Position>);

impl Comparer for Same {
    fn compare(&self, _: &VolumeName, _: u64, _: u64, regions: &[Hash]) -> Option<Compared> {
        Some(Compared { head: self.0, regions: vec![RegionState::Equal; regions.len()] })
    }
}

/// Looks at everything that is dirty, against a site that has it.
fn sweep(group: &Group) {
    group.set_comparer(Some(Arc::new(Same(group.head()))));
    while group.sweep_step() == SweepStep::Progress {}
}

#[test]
fn a_volume_is_added_and_removed_without_a_gap_in_the_points() {
    let simulation = settled();
    simulation.group.close().unwrap();
    let open = |legs: &[Arc<SimulatedLeg>]| {
        let (storage, clock) = (Arc::new(simulation.storage.clone()), simulation.clock.clone());
        let arena = journal_nbd::Arena::default();
        Group::open(settings(legs, 1 << 20), storage, clock, arena, Box::new(|_, _| {})).unwrap()
    };
    let mut legs = simulation.legs.clone();
    legs.push(Arc::new(SimulatedLeg::new(simulation.power.clone(), vec![9; 65536])));
    let group = open(&legs);
    // Only the new one is compared, and points go on without it.
    assert_eq!(group.status().counters.dirty_bytes, 65536);
    assert_eq!(newest_point(&simulation, &group), (vec!["disk0".to_owned(), "disk1".to_owned()], true));
    // A restart in between changes nothing.
    drop(group);
    let group = open(&legs);
    assert_eq!(newest_point(&simulation, &group).0.len(), 2);
    sweep(&group);
    assert!(group.wants_cut(), "a volume that is whole waits for somebody to write");
    assert_eq!(newest_point(&simulation, &group).0.len(), 3);
    // It stays in the points over a crash, and goes out of them when it is removed.
    drop(group);
    let group = open(&legs);
    sweep(&group);
    assert_eq!(newest_point(&simulation, &group).0.len(), 3);
    group.close().unwrap();
    drop(group);
    let group = open(&legs[..2]);
    assert_eq!(newest_point(&simulation, &group), (vec!["disk0".to_owned(), "disk1".to_owned()], true));
}

#[test]
fn the_times_of_cuts_never_go_back_whatever_the_clock_does() {
    const DAY_NS: i64 = 86_400_000_000_000;
    let mut simulation = settled();
    let mut times = Vec::new();
    for jump in [0, DAY_NS, -2 * DAY_NS, 1, -1, 3 * DAY_NS] {
        simulation.clock.advance(jump);
        simulation.write();
        let ticket = simulation.group.cut(CutRequest::default());
        assert!(simulation.group.seal_next());
        times.push(ticket.try_recv().unwrap().unwrap().time);
    }
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
}

#[test]
fn trimming_keeps_the_newest_segment() {
    let mut simulation = settled();
    for _ in 0..3 {
        simulation.write();
        simulation.cut();
        assert!(simulation.group.seal_next());
    }
    simulation.ship(10);
    assert_eq!(simulation.group.pending(Sequence(1), 10).len(), 1);
}

#[test]
fn a_damaged_segment_is_found_before_it_is_sent_and_replaced() {
    let mut simulation = settled();
    simulation.write();
    simulation.cut();
    assert!(simulation.group.seal_next());
    let damaged = simulation.group.head().unwrap();
    simulation.storage.flip_bit(&Group::segment_name(damaged.sequence), 8 * 200);
    let error = simulation.group.check_segment(damaged.sequence).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let head = simulation.site().head;
    let answer = simulation.group.site_head(head).unwrap();
    assert_eq!(answer, SiteHead::Rebased(damaged.sequence));
    let dirty = simulation.group.status().counters.dirty_bytes;
    assert!(dirty <= 3 * 65536, "more is dirty than what the segment changed: {dirty}");
    let names = simulation.storage.list().unwrap();
    assert!(names.iter().any(|(name, _)| name.ends_with(".damaged")));
    simulation.settle();
}

#[test]
fn a_refused_segment_is_replaced_by_a_resync_of_what_it_changed() {
    let mut simulation = settled();
    simulation.write();
    simulation.cut();
    assert!(simulation.group.seal_next());
    let refused = simulation.group.head().unwrap();
    simulation.group.distrust();
    let head = simulation.site().head;
    let answer = simulation.group.site_head(head).unwrap();
    assert_eq!(answer, SiteHead::Rebased(refused.sequence));
    simulation.settle();
}
