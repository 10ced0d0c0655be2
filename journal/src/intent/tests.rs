use super::*;
use crate::clock::ManualClock;
use crate::simulated::{DiskFaults, Power, SimulatedStorage};

const R: u64 = REGION_BYTES;
const SIZE: u64 = 10_000 * R;

struct Host {
    storage: SimulatedStorage,
    clock: Arc<ManualClock>,
}

impl Host {
    fn new() -> Host {
        Host { storage: SimulatedStorage::new(Arc::new(Power::default())), clock: Arc::default() }
    }

    fn open(&self, known: Option<u64>) -> OpenedMaps {
        let volumes = [("disk0".parse().unwrap(), SIZE)];
        let (group, storage) = ("demo".parse().unwrap(), Arc::new(self.storage.clone()));
        IntentMaps::open(&group, storage, self.clock.clone(), &volumes, known, Duration::from_millis(50))
    }

    /// Maps with nothing marked, and their session.
    fn clean(&self) -> IntentMaps {
        let maps = self.open(None).maps;
        maps.clear(0, &(0..10_000).collect::<Vec<_>>());
        assert!(maps.commit());
        maps
    }

    fn fail(&self, faults: DiskFaults) {
        self.storage.set_faults(faults);
    }
}

fn count(maps: &IntentMaps) -> u64 {
    maps.marked(0).bytes() / R
}

#[test]
fn a_new_map_has_everything_marked() {
    let opened = Host::new().open(None);
    assert_eq!((opened.found[0], count(&opened.maps)), (Found::Absent, 10_000));
    assert_eq!(opened.session, None);
}

#[test]
fn a_lost_map_of_a_known_volume_has_everything_marked() {
    let host = Host::new();
    drop(host.clean());
    host.storage.remove("disk0.intent").unwrap();
    let opened = host.open(Some(1));
    assert_eq!((opened.found[0], count(&opened.maps)), (Found::Absent, 10_000));
}

#[test]
fn marks_are_there_after_a_crash_and_sessions_count_on() {
    let host = Host::new();
    let maps = host.clean();
    assert_eq!(maps.mark(0, &(5 * R + 7..5 * R + 8)), 0..16 * R);
    let opened = host.open(Some(1));
    assert_eq!((opened.found[0], opened.session), (Found::Whole, Some(1)));
    assert_eq!((count(&opened.maps), opened.maps.session()), (16, 2));
}

#[test]
fn a_marked_region_costs_no_sync() {
    let host = Host::new();
    let maps = host.clean();
    maps.mark(0, &(0..1));
    let syncs = maps.counters().mark_syncs;
    for region in 0..16 {
        maps.mark(0, &(region * R..region * R + 1));
    }
    assert_eq!(maps.counters().mark_syncs, syncs);
}

#[test]
fn a_sequential_writer_of_a_gigabyte_syncs_a_dozen_times() {
    let host = Host::new();
    let maps = host.clean();
    let syncs = maps.counters().mark_syncs;
    for region in 0..10_000 {
        maps.mark(0, &(region * R..(region + 1) * R));
    }
    let needed = maps.counters().mark_syncs - syncs;
    assert!(needed <= 12, "{needed} syncs");
}

#[test]
fn a_failed_sync_is_never_tried_again_and_a_crash_then_compares_everything() {
    let host = Host::new();
    let maps = host.clean();
    host.fail(DiskFaults { sync_fails: true, ..DiskFaults::default() });
    maps.mark(0, &(0..1));
    assert_eq!(maps.tracking(), Tracking::Untracked);
    host.fail(DiskFaults::default());
    assert!(!maps.commit(), "the file whose sync failed is used again");
    let opened = host.open(Some(1));
    assert_eq!((opened.found[0], count(&opened.maps)), (Found::Untracked, 10_000));
    // New maps were made: what they say counts again.
    assert_eq!(host.open(Some(2)).found[0], Found::Whole);
}

#[test]
fn a_failed_write_is_repaired_by_a_new_map_with_what_was_marked_meanwhile() {
    let host = Host::new();
    let maps = host.clean();
    host.fail(DiskFaults { update_fails: true, ..DiskFaults::default() });
    maps.mark(0, &(0..1));
    maps.mark(0, &(5000 * R..5000 * R + 1));
    assert_eq!(maps.tracking(), Tracking::Untracked);
    host.fail(DiskFaults::default());
    assert!(maps.repair());
    assert_eq!(maps.tracking(), Tracking::Durable);
    maps.mark(0, &(9000 * R..9000 * R + 1));
    let opened = host.open(Some(1));
    let marked = opened.maps.marked(0);
    assert_eq!(opened.found[0], Found::Whole);
    assert!([0, 5000, 9000].into_iter().all(|region| marked.contains(region)));
}

#[test]
fn a_full_disk_leaves_tracking_in_memory_until_there_is_room() {
    let host = Host::new();
    let maps = host.clean();
    host.fail(DiskFaults { update_fails: true, free_bytes: Some(0), ..DiskFaults::default() });
    host.storage.set_faults(DiskFaults { update_fails: true, free_bytes: Some(0), sync_fails: true });
    maps.mark(0, &(0..1));
    // The note is an empty file and needs no room.
    assert_ne!(maps.tracking(), Tracking::Durable);
    assert!(!maps.repair());
    host.fail(DiskFaults::default());
    assert!(maps.repair());
    assert_eq!(host.open(Some(1)).found[0], Found::Whole);
}

#[test]
fn a_disk_that_hangs_holds_a_write_up_no_longer_than_the_patience() {
    let host = Host::new();
    let maps = host.clean();
    // A writer thread that never comes.
    maps.lock().has_writer = true;
    maps.mark(0, &(0..1));
    let counters = maps.counters();
    assert_eq!(counters.tracking, Tracking::InMemory);
    assert!(counters.mark_wait_max_seconds >= counters.mark_wait_bound_seconds);
    // The next write does not wait at all.
    maps.mark(0, &(9000 * R..9000 * R + 1));
    assert_eq!(maps.counters().mark_waits, 1);
}

#[test]
fn a_mark_that_is_taken_away_while_it_is_written_is_asked_for_again() {
    let host = Host::new();
    let maps = host.clean();
    maps.mark(0, &(0..1));
    maps.clear(0, &[0]);
    let syncs = maps.counters().mark_syncs;
    maps.mark(0, &(0..1));
    assert_eq!(maps.counters().mark_syncs, syncs + 1);
    assert!(host.open(Some(1)).maps.marked(0).contains(0));
}

#[test]
fn what_a_crash_would_cost_is_known() {
    let host = Host::new();
    let maps = host.clean();
    assert_eq!(maps.counters().after_crash_bytes, 0);
    maps.mark(0, &(0..1));
    assert_eq!(maps.counters().after_crash_bytes, 16 * R);
    maps.clear(0, &(0..16).collect::<Vec<_>>());
    let counters = maps.counters();
    assert_eq!((counters.marked_bytes, counters.after_crash_bytes), (0, 16 * R));
    maps.commit();
    assert_eq!(maps.counters().after_crash_bytes, 0);
    assert_eq!(count(&host.open(Some(1)).maps), 0);
}

#[test]
fn the_replica_is_sent_what_is_marked_before_the_write_goes_on() {
    struct Replica(Mutex<Vec<MarkedPage>>);
    impl MarkReplica for Replica {
        fn send<'a>(&'a self, pages: &[MarkedPage]) -> Box<dyn FnOnce() + Send + 'a> {
            self.0.lock().unwrap().extend_from_slice(pages);
            Box::new(|| {})
        }
    }
    let host = Host::new();
    let maps = host.clean();
    let replica = Arc::new(Replica(Mutex::default()));
    maps.set_replica(Some(replica.clone()));
    maps.mark(0, &(4000 * R..4000 * R + 1));
    let pages = replica.0.lock().unwrap();
    assert_eq!(pages.iter().map(|page| page.page).collect::<Vec<_>>(), [1]);
    assert_eq!(pages[0].bits[(4000 - 3904) / 8] & 1, 1);
}
