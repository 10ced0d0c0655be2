use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::clock::ManualClock;
use crate::faults::plant;
use crate::simulated::{Power, SimulatedStorage};

const SIZE: u64 = 16 * REGION_BYTES;

fn capture(budget_bytes: u64) -> Capture {
    let storage = Arc::new(SimulatedStorage::new(Arc::new(Power::default())));
    let volumes = [("a".parse().unwrap(), SIZE), ("b".parse().unwrap(), SIZE)];
    let (group, clock) = ("demo".parse().unwrap(), Arc::new(ManualClock::default()));
    let opened = IntentMaps::open(&group, storage, clock, &volumes, None, std::time::Duration::from_secs(1));
    Capture::new(&[SIZE, SIZE], Epoch(1), budget_bytes, Arc::new(opened.maps))
}

/// Watches the first dirty region of a volume.
fn watch(capture: &Capture, volume: usize) -> WatchTicket {
    capture.watch(volume, 0, 1).unwrap()
}

/// Sends the first region of a volume with these pieces; tells whether it is clean.
fn sweep(capture: &Capture, volume: usize, pieces: Vec<Change>) -> bool {
    let ticket = capture.begin_reread(volume, &(0..REGION_BYTES)).unwrap();
    capture.settle_reread(&ticket, None, Some(sent(pieces))) > 0
}

fn sent(pieces: Vec<Change>) -> Vec<(u64, Option<Change>)> {
    pieces.into_iter().map(|change| (change.length(), Some(change))).collect()
}

fn data(fill: u8, length: usize) -> Change {
    Change::Data(Payload::from_vec(vec![fill; length]))
}

fn write(capture: &Capture, volume: usize, offset: u64, change: Change) {
    let ticket = capture.begin(volume, offset, change, false);
    capture.end(ticket, true);
}

fn bytes_at(changes: &EpochChanges, volume: usize, offset: u64) -> Option<u8> {
    let holds = |range: &crate::extent_map::ChangedRange<'_>| {
        range.offset <= offset && offset < range.offset + range.length
    };
    let range = changes.volumes[volume].ranges().find(holds)?;
    Some(range.data.map_or(0, |data| data[(offset - range.offset) as usize]))
}

#[test]
fn a_write_belongs_to_the_epoch_that_is_open_on_its_arrival() {
    let capture = capture(1 << 20);
    let early = capture.begin(0, 0, data(1, 512), false);
    let first = capture.cut();
    write(&capture, 1, 0, data(2, 512));
    capture.end(early, true);
    let second = capture.cut();
    assert_eq!((first.epoch, second.epoch), (Epoch(1), Epoch(2)));
    assert_eq!(bytes_at(&first, 0, 0), Some(1));
    assert_eq!(bytes_at(&first, 1, 0), None);
    assert_eq!(bytes_at(&second, 1, 0), Some(2));
    assert!(first.complete && second.complete);
}

#[test]
fn a_write_waits_for_those_it_overlaps_and_for_no_others() {
    let capture = Arc::new(capture(1 << 20));
    let first = capture.begin(0, 0, data(1, 1024), false);
    capture.end(capture.begin(0, 1024, data(9, 512), false), true);
    let (sender, order) = mpsc::channel();
    let waiter = thread::spawn({
        let (capture, sender) = (capture.clone(), sender.clone());
        move || {
            let ticket = capture.begin(0, 512, data(2, 1024), false);
            sender.send("second").unwrap();
            capture.end(ticket, true);
        }
    });
    while capture.lock(0).waiting == 0 {
        thread::yield_now();
    }
    sender.send("first").unwrap();
    capture.end(first, true);
    waiter.join().unwrap();
    assert_eq!(order.try_iter().collect::<Vec<_>>(), ["first", "second"]);
    let changes = capture.cut();
    assert_eq!(bytes_at(&changes, 0, 0), Some(1));
    assert_eq!(bytes_at(&changes, 0, 600), Some(2));
}

#[test]
fn a_dropped_payload_leaves_its_regions_dirty_and_no_point_until_they_are_swept() {
    let capture = capture(1024);
    write(&capture, 0, 0, data(1, 1024));
    write(&capture, 1, REGION_BYTES, data(2, 512));
    assert_eq!((capture.dirty_bytes(), capture.dropped_bytes()), (REGION_BYTES, 512));
    let changes = capture.cut();
    assert!(!changes.complete);
    capture.release_memory(changes.payload_bytes(), &[]);
    let ticket = watch(&capture, 1);
    assert_eq!(ticket.ranges.len(), 1);
    assert_eq!(ticket.ranges[0], REGION_BYTES..2 * REGION_BYTES);
    assert_eq!(capture.settle_equal(&ticket, &[false], Epoch(9)), 0);
    let pieces = sent(vec![data(2, 512), Change::Zero(REGION_BYTES - 512)]);
    let ticket = capture.begin_reread(1, &ticket.ranges[0]).unwrap();
    assert_eq!(capture.settle_reread(&ticket, None, Some(pieces)), REGION_BYTES);
    let changes = capture.cut();
    assert!(changes.complete);
    assert_eq!(bytes_at(&changes, 1, REGION_BYTES), Some(2));
    assert_eq!(bytes_at(&changes, 1, REGION_BYTES + 512), Some(0));
}

#[test]
fn a_volume_that_joins_holds_up_no_point_and_is_in_one_when_nothing_of_it_is_dirty() {
    let capture = capture(1 << 20);
    capture.begin_joining(1);
    capture.mark_dirty(1, std::iter::once(0..REGION_BYTES));
    let changes = capture.cut();
    assert_eq!((changes.complete, changes.joining), (true, vec![false, true]));
    assert!(!capture.can_join());
    assert!(sweep(&capture, 1, vec![data(3, REGION_BYTES as usize)]));
    assert!(capture.can_join());
    let changes = capture.cut();
    assert_eq!((changes.complete, changes.joining), (true, vec![false, false]));
    // From then on it counts.
    capture.mark_dirty(1, std::iter::once(0..REGION_BYTES));
    assert!(!capture.cut().complete);
}

#[test]
fn an_epoch_that_lost_payload_gives_up_what_it_has_in_the_same_regions() {
    let capture = capture(4096);
    write(&capture, 0, 0, data(1, 2048));
    write(&capture, 0, REGION_BYTES, data(2, 2048));
    // This one does not fit, so its region is dirty: what was captured there is of no use.
    write(&capture, 0, 4096, data(3, 2048));
    let ticket = watch(&capture, 0);
    let mut changes = capture.cut();
    assert_eq!(changes.forget_given_up(), 2048);
    assert_eq!((bytes_at(&changes, 0, 0), bytes_at(&changes, 0, REGION_BYTES)), (None, Some(2)));
    // What was read before it was given up does not count.
    assert_eq!(capture.settle_equal(&ticket, &[true], Epoch(9)), 0);
    // The next epoch has room and gives nothing up.
    capture.release_memory(4096, &[]);
    write(&capture, 0, 0, data(1, 2048));
    assert_eq!(capture.cut().forget_given_up(), 0);
}

#[test]
fn a_failed_leg_leaves_its_regions_dirty() {
    let capture = capture(1 << 20);
    let ticket = capture.begin(0, 0, data(1, 512), false);
    capture.end(ticket, false);
    assert!(!capture.cut().complete);
}

#[test]
fn a_sweep_goes_under_what_the_epoch_captured() {
    let capture = capture(1 << 20);
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    write(&capture, 0, 512, data(7, 512));
    assert!(sweep(&capture, 0, vec![data(3, REGION_BYTES as usize)]));
    let changes = capture.cut();
    assert_eq!(bytes_at(&changes, 0, 0), Some(3));
    assert_eq!(bytes_at(&changes, 0, 512), Some(7));
    assert_eq!(bytes_at(&changes, 0, 1024), Some(3));
}

#[test]
fn a_region_that_a_cut_overtook_is_looked_at_again() {
    let capture = capture(1 << 20);
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    let ticket = capture.begin_reread(0, &(0..REGION_BYTES)).unwrap();
    assert!(!capture.cut().complete);
    let pieces = sent(vec![data(3, REGION_BYTES as usize)]);
    assert_eq!(capture.settle_reread(&ticket, None, Some(pieces)), 0);
    assert!(!capture.cut().complete);
}

#[test]
fn a_write_that_arrives_while_a_region_is_read_again_goes_over_it() {
    let capture = capture(1 << 20);
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    let ticket = capture.begin_reread(0, &(0..REGION_BYTES)).unwrap();
    let late = capture.begin(0, 512, data(7, 512), false);
    let pieces = sent(vec![data(3, REGION_BYTES as usize)]);
    assert_eq!(capture.settle_reread(&ticket, None, Some(pieces)), REGION_BYTES);
    capture.end(late, true);
    let changes = capture.cut();
    assert!(changes.complete);
    assert_eq!((bytes_at(&changes, 0, 0), bytes_at(&changes, 0, 512)), (Some(3), Some(7)));
}

/// What it had captured would be covered by what was read before it reached the leg.
#[test]
fn a_region_is_not_read_again_while_a_write_of_an_earlier_epoch_is_in_flight() {
    let capture = capture(1 << 20);
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    let early = capture.begin(0, 512, data(7, 512), false);
    assert!(!capture.cut().complete);
    assert!(capture.begin_reread(0, &(0..REGION_BYTES)).is_none());
    capture.end(early, true);
    assert!(capture.begin_reread(0, &(0..REGION_BYTES)).is_some());
}

#[test]
fn a_region_is_not_read_again_while_a_write_without_capture_is_in_flight() {
    let capture = capture(0);
    let dropped = capture.begin(0, 512, data(7, 512), false);
    assert!(capture.begin_reread(0, &(0..REGION_BYTES)).is_none());
    capture.end(dropped, true);
    assert!(capture.begin_reread(0, &(0..REGION_BYTES)).is_some());
}

#[test]
fn the_planted_sweep_across_cut_is_noticed() {
    let capture = capture(1 << 20);
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    let ticket = capture.begin_reread(0, &(0..REGION_BYTES)).unwrap();
    write(&capture, 0, 0, data(7, 512));
    drop(capture.cut());
    plant(Some(Bug::SweepAcrossCut));
    capture.settle_reread(&ticket, None, Some(sent(vec![data(3, REGION_BYTES as usize)])));
    plant(None);
    assert_eq!(bytes_at(&capture.cut(), 0, 0), Some(3), "the older content is in the newer epoch");
}

#[test]
fn an_equal_region_is_clean_whatever_was_captured_meanwhile() {
    let capture = capture(1 << 20);
    capture.mark_dirty(0, std::iter::once(0..3 * REGION_BYTES));
    let ticket = capture.watch(0, 0, 8).unwrap();
    write(&capture, 0, REGION_BYTES + 512, data(1, 512));
    drop(capture.cut());
    assert_eq!(capture.settle_equal(&ticket, &[true; 3], Epoch(1)), 3 * REGION_BYTES);
    assert!(capture.cut().complete);
}

#[test]
fn a_write_that_is_lost_while_a_region_is_looked_at_spoils_it() {
    let capture = capture(0);
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    let ticket = watch(&capture, 0);
    write(&capture, 0, 0, data(1, 512));
    assert_eq!(capture.settle_equal(&ticket, &[true], Epoch(9)), 0);
}

#[test]
fn a_lost_write_in_flight_when_a_region_is_looked_at_spoils_it() {
    let capture = capture(0);
    let write = capture.begin(0, 0, data(1, 512), false);
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    let ticket = watch(&capture, 0);
    capture.end(write, true);
    assert_eq!(capture.settle_equal(&ticket, &[true], Epoch(9)), 0);
    assert_eq!(capture.settle_equal(&watch(&capture, 0), &[true], Epoch(9)), REGION_BYTES);
}

#[test]
fn an_answer_from_before_the_loss_is_not_used() {
    let capture = capture(1 << 20);
    write(&capture, 0, 0, data(1, 512));
    drop(capture.cut());
    drop(capture.cut());
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    assert_eq!(capture.settle_equal(&watch(&capture, 0), &[true], Epoch(1)), 0);
    let pieces = || Some(vec![(REGION_BYTES, None)]);
    let ticket = capture.begin_reread(0, &(0..REGION_BYTES)).unwrap();
    assert_eq!(capture.settle_reread(&ticket, Some(Epoch(1)), pieces()), 0);
    let ticket = capture.begin_reread(0, &(0..REGION_BYTES)).unwrap();
    assert_eq!(capture.settle_reread(&ticket, Some(Epoch(2)), pieces()), REGION_BYTES);
    assert!(capture.cut().complete);
}

#[test]
fn marks_are_cleared_only_of_what_receipts_cover_and_nobody_writes() {
    let capture = capture(1 << 20);
    write(&capture, 0, 0, data(1, 512));
    drop(capture.cut());
    let busy = capture.begin(0, REGION_BYTES, data(1, 512), false);
    capture.mark_dirty(0, std::iter::once(2 * REGION_BYTES..3 * REGION_BYTES));
    assert!(!capture.clearable(0, Epoch(0)).contains(&0));
    let clearable = capture.clearable(0, Epoch(1));
    assert!(clearable.contains(&0) && !clearable.contains(&1) && !clearable.contains(&2));
    // A write that comes between the look and the clearing keeps its mark.
    write(&capture, 0, 0, data(2, 512));
    assert_eq!(capture.clear_marks(0, &[0], Epoch(1)), 0);
    assert_eq!(capture.clear_marks(0, &[5], Epoch(1)), 1);
    capture.end(busy, true);
}

#[test]
fn the_planted_ignore_spoiled_sweep_is_noticed() {
    let capture = capture(0);
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    let ticket = watch(&capture, 0);
    write(&capture, 0, 0, data(1, 512));
    plant(Some(Bug::IgnoreSpoiledSweep));
    capture.settle_equal(&ticket, &[true], Epoch(9));
    plant(None);
    assert_eq!(capture.dirty_bytes(), 0, "a lost write is forgotten");
}

#[test]
fn the_planted_give_up_quietly_is_noticed() {
    let capture = capture(0);
    write(&capture, 0, 0, data(1, 512));
    let ticket = watch(&capture, 0);
    plant(Some(Bug::GiveUpQuietly));
    drop(capture.cut());
    plant(None);
    assert_eq!(
        capture.settle_equal(&ticket, &[true], Epoch(9)),
        REGION_BYTES,
        "what was given up is forgotten"
    );
}

#[test]
fn the_planted_ignore_overlap_is_noticed() {
    let capture = capture(1 << 20);
    let first = capture.begin(0, 0, data(1, 1024), false);
    plant(Some(Bug::IgnoreOverlap));
    // Without the bug this call would wait for ever.
    let second = capture.begin(0, 512, data(2, 1024), false);
    plant(None);
    capture.end(first, true);
    capture.end(second, true);
}

#[test]
fn rewriting_a_block_does_not_take_more_memory() {
    let capture = capture(1 << 20);
    for fill in 0..100 {
        write(&capture, 0, 4096, data(fill, 4096));
    }
    assert_eq!(capture.held_bytes(), 4096);
    let changes = capture.cut();
    assert_eq!(changes.written_bytes, 100 * 4096);
    capture.release_memory(changes.payload_bytes(), &[]);
    assert_eq!(capture.held_bytes(), 0);
}

#[test]
fn a_dropped_write_takes_the_older_one_with_it() {
    let capture = capture(1024);
    write(&capture, 0, 0, data(1, 1024));
    write(&capture, 0, 512, data(2, 512));
    assert!(sweep(&capture, 0, vec![data(1, 512), data(2, 512), Change::Zero(REGION_BYTES - 1024)]));
    let changes = capture.cut();
    assert_eq!((bytes_at(&changes, 0, 0), bytes_at(&changes, 0, 512)), (Some(1), Some(2)));
}

#[test]
fn a_failed_write_is_not_in_the_epoch() {
    let capture = capture(1 << 20);
    let ticket = capture.begin(0, 0, data(1, 512), false);
    capture.end(ticket, false);
    assert!(sweep(&capture, 0, vec![data(9, REGION_BYTES as usize)]));
    assert_eq!(bytes_at(&capture.cut(), 0, 0), Some(9));
}
