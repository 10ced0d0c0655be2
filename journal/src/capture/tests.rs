use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::dirty::REGION_BYTES;

const SIZE: u64 = 16 * REGION_BYTES;

fn capture(budget_bytes: u64) -> Capture {
    Capture::new(&[SIZE, SIZE], Epoch(1), budget_bytes)
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
    capture.release_memory(changes.payload_bytes());
    let sweep = capture.begin_sweep(1, 0, SIZE).unwrap();
    assert_eq!(sweep.range, REGION_BYTES..2 * REGION_BYTES);
    assert!(capture.end_sweep(sweep, Some(vec![data(2, 512), Change::Zero(REGION_BYTES - 512)])));
    let changes = capture.cut();
    assert!(changes.complete);
    assert_eq!(bytes_at(&changes, 1, REGION_BYTES), Some(2));
    assert_eq!(bytes_at(&changes, 1, REGION_BYTES + 512), Some(0));
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
    let sweep = capture.begin_sweep(0, 0, SIZE).unwrap();
    assert!(capture.end_sweep(sweep, Some(vec![data(3, REGION_BYTES as usize)])));
    let changes = capture.cut();
    assert_eq!(bytes_at(&changes, 0, 0), Some(3));
    assert_eq!(bytes_at(&changes, 0, 512), Some(7));
    assert_eq!(bytes_at(&changes, 0, 1024), Some(3));
}

#[test]
fn a_sweep_that_a_cut_overtook_is_done_again() {
    let capture = capture(1 << 20);
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    let sweep = capture.begin_sweep(0, 0, SIZE).unwrap();
    assert!(!capture.cut().complete);
    assert!(!capture.end_sweep(sweep, Some(vec![data(3, REGION_BYTES as usize)])));
    assert!(!capture.cut().complete);
    assert!(capture.begin_sweep(0, 0, SIZE).is_some());
}

#[test]
fn a_write_dropped_during_a_sweep_spoils_it() {
    let capture = Arc::new(capture(0));
    capture.mark_dirty(0, std::iter::once(0..REGION_BYTES));
    let sweep = capture.begin_sweep(0, 0, SIZE).unwrap();
    let writer = thread::spawn({
        let capture = capture.clone();
        move || write(&capture, 0, 0, data(1, 512))
    });
    while capture.lock(0).waiting == 0 {
        thread::yield_now();
    }
    assert!(!capture.end_sweep(sweep, Some(vec![Change::Zero(REGION_BYTES)])));
    writer.join().unwrap();
    assert!(!capture.cut().complete);
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
    capture.release_memory(changes.payload_bytes());
    assert_eq!(capture.held_bytes(), 0);
}

#[test]
fn a_dropped_write_takes_the_older_one_with_it() {
    let capture = capture(1024);
    write(&capture, 0, 0, data(1, 1024));
    write(&capture, 0, 512, data(2, 512));
    let sweep = capture.begin_sweep(0, 0, SIZE).unwrap();
    assert!(
        capture.end_sweep(sweep, Some(vec![data(1, 512), data(2, 512), Change::Zero(REGION_BYTES - 1024)]))
    );
    let changes = capture.cut();
    assert_eq!((bytes_at(&changes, 0, 0), bytes_at(&changes, 0, 512)), (Some(1), Some(2)));
}

#[test]
fn a_failed_write_is_not_in_the_epoch() {
    let capture = capture(1 << 20);
    let ticket = capture.begin(0, 0, data(1, 512), false);
    capture.end(ticket, false);
    let sweep = capture.begin_sweep(0, 0, SIZE).unwrap();
    assert!(capture.end_sweep(sweep, Some(vec![data(9, REGION_BYTES as usize)])));
    assert_eq!(bytes_at(&capture.cut(), 0, 0), Some(9));
}
