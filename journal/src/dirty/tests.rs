use super::*;

const R: u64 = REGION_BYTES;

#[test]
fn runs_are_handed_out_in_order_and_within_the_limit() {
    let mut map = DirtyMap::new(100 * R + 512);
    map.mark(3 * R + 5..5 * R + 1);
    map.mark(70 * R..71 * R);
    assert_eq!(map.bytes(), 4 * R);
    assert_eq!(map.next_run(0, 100 * R), Some(3 * R..6 * R));
    assert_eq!(map.next_run(0, 2 * R), Some(3 * R..5 * R));
    assert_eq!(map.next_run(6 * R, 100 * R), Some(70 * R..71 * R));
    assert_eq!(map.next_run(71 * R, 100 * R), None);
    map.clear(3 * R..6 * R);
    assert_eq!(map.next_run(0, 100 * R), Some(70 * R..71 * R));
}

#[test]
fn everything_ends_at_the_end_of_the_volume() {
    let mut map = DirtyMap::new(2 * R + 512);
    map.mark_all();
    assert_eq!(map.next_run(0, 10 * R), Some(0..2 * R + 512));
    map.clear(0..2 * R + 512);
    assert!(map.is_empty());
}

#[test]
fn marking_twice_counts_once() {
    let mut map = DirtyMap::new(10 * R);
    map.mark(0..R);
    map.mark(0..2 * R);
    assert_eq!(map.bytes(), 2 * R);
    map.mark(5 * R..5 * R);
    assert_eq!(map.bytes(), 2 * R);
}
