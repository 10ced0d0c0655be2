use super::*;

const R: u64 = REGION_BYTES;

#[test]
fn regions_are_handed_out_in_order() {
    let mut set = RegionSet::new(100 * R + 512);
    set.mark(3 * R + 5..5 * R + 1);
    set.mark(70 * R..71 * R);
    assert_eq!(set.bytes(), 4 * R);
    assert_eq!(set.iter_from(0).collect::<Vec<_>>(), [3, 4, 5, 70]);
    assert_eq!(set.iter_from(5).collect::<Vec<_>>(), [5, 70]);
    (3..6).for_each(|region| set.remove(region));
    assert_eq!(set.iter_from(0).collect::<Vec<_>>(), [70]);
    assert!(set.iter_from(71).next().is_none());
}

#[test]
fn everything_ends_at_the_end_of_the_volume() {
    let mut set = RegionSet::full(2 * R + 512);
    assert_eq!(set.iter_from(0).count(), 3);
    assert_eq!(set.range_of(2), 2 * R..2 * R + 512);
    assert!(set.covers(&(0..2 * R + 512)));
    (0..3).for_each(|region| set.remove(region));
    assert!(set.is_empty());
}

#[test]
fn marking_twice_counts_once() {
    let mut set = RegionSet::new(10 * R);
    set.mark(0..R);
    set.mark(0..2 * R);
    assert_eq!(set.bytes(), 2 * R);
    set.mark(5 * R..5 * R);
    assert_eq!(set.bytes(), 2 * R);
    assert!(!set.covers(&(R..2 * R + 1)));
}
