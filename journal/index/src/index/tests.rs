mod damage;
mod model;

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::AtomicU32;

use super::*;

const SMALL: Options = Options { memtable_entries: 256, max_entries: 8192 };

/// Distinct hashes, fast: the finaliser of splitmix64 is a permutation.
fn hash(number: u64) -> [u8; 32] {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&(mixed ^ mixed >> 31).to_be_bytes());
    hash
}

fn record(seed: u64) -> SegmentRecord {
    SegmentRecord { group: "demo".to_owned(), generation: 1, sequence: seed, hash: hash(seed) }
}

fn location(segment: u32, number: u64) -> Location {
    Location::new(segment, number as u16, (number >> 16) as u16 % 8192, 0).unwrap()
}

fn open(folder: &tempfile::TempDir, options: Options) -> Index {
    Index::open(folder.path(), options).unwrap()
}

fn lookup_all(index: &Index, numbers: std::ops::Range<u64>) -> Vec<Option<Location>> {
    let (mut answers, mut all) = (Vec::new(), Vec::new());
    for start in numbers.clone().step_by(4096) {
        let hashes: Vec<_> = (start..numbers.end.min(start + 4096)).map(hash).collect();
        index.lookup_batch(&hashes, &mut answers);
        all.append(&mut answers);
    }
    all
}

#[test]
fn million_entries_are_found_and_stay_after_opening() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { memtable_entries: 1 << 15, max_entries: 1 << 21 };
    let index = open(&folder, options);
    let segment = index.add_segment(&record(0)).unwrap();
    (0..1_000_000).for_each(|number| index.insert(&hash(number), location(segment, number)));
    let expected: Vec<_> = (0..1_000_000).map(|number| Some(location(segment, number))).collect();
    assert!(lookup_all(&index, 0..1_000_000) == expected);
    index.flush().unwrap();
    index.wait_for_merges();
    assert!(lookup_all(&index, 1_000_000..2_000_000).iter().all(Option::is_none));
    let figures = index.statistics();
    assert_eq!((figures.entries, figures.hits, figures.misses), (1_000_000, 1_000_000, 1_000_000));
    let foreign = figures.filter_false_positives as f64;
    let rate = foreign / (foreign + figures.filter_negatives as f64);
    assert!((0.005..0.03).contains(&rate), "{rate}");
    assert!(figures.runs <= 5 * 16, "{figures:?}");
    assert!(figures.disk_bytes < 18_500_000, "{figures:?}");
    drop(index);
    let index = open(&folder, options);
    assert_eq!(index.opened, Opened::default());
    assert!(lookup_all(&index, 0..1_000_000) == expected);
    assert!((0..10_000).all(|number| index.lookup(&hash(number)) == expected[number as usize]));
}

#[test]
fn oldest_segments_are_given_up_when_the_index_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder, SMALL);
    for number in 0..40_000 {
        if number % 250 == 0 {
            assert_eq!(u64::from(index.add_segment(&record(number)).unwrap()), number / 250);
        }
        index.insert(&hash(number), location((number / 250) as u32, number));
        let figures = index.statistics();
        assert!(figures.entries <= 8192 + 256, "{figures:?}");
    }
    index.flush().unwrap();
    index.wait_for_merges();
    assert!(lookup_all(&index, 0..30_000).iter().all(Option::is_none));
    assert!(lookup_all(&index, 35_000..40_000).iter().all(Option::is_some));
    assert_eq!(index.statistics().dropped_entries, 0);
}

#[test]
fn merging_hides_nothing_from_lookups() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder, Options { memtable_entries: 2048, max_entries: 1 << 20 });
    let segment = index.add_segment(&record(0)).unwrap();
    const ENTRIES: u32 = 200_000;
    let inserted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut seed = 0;
                while inserted.load(Ordering::Acquire) < ENTRIES {
                    let count = u64::from(inserted.load(Ordering::Acquire));
                    seed += 1;
                    let numbers = (0..256).filter_map(|i| (seed * 7919 + i * 104_729_u64).checked_rem(count));
                    let numbers: Vec<u64> = numbers.collect();
                    let mut answers = Vec::new();
                    index.lookup_batch(&numbers.iter().copied().map(hash).collect::<Vec<_>>(), &mut answers);
                    for (number, answer) in numbers.into_iter().zip(answers) {
                        assert_eq!(answer, Some(location(segment, number)));
                        assert_eq!(index.lookup(&hash(number)), answer);
                    }
                }
            });
        }
        for number in 0..ENTRIES {
            index.insert(&hash(number.into()), location(segment, number.into()));
            inserted.store(number + 1, Ordering::Release);
        }
    });
    assert!(index.statistics().merged_entries > u64::from(ENTRIES));
}

#[test]
fn entries_of_forgotten_segments_are_missing_and_vanish() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder, SMALL);
    let segments = [0, 1].map(|seed| index.add_segment(&record(seed)).unwrap());
    (0..2000).for_each(|number| index.insert(&hash(number), location(segments[0], number)));
    (0..100).for_each(|number| index.insert(&hash(number), location(segments[1], number)));
    assert_eq!(index.forget_segments(|_, record| record.sequence == 0).unwrap(), 1);
    assert_eq!((index.segment(segments[0]), index.segment(segments[1])), (None, Some(record(1))));
    assert_eq!((index.find_segment(&hash(0)), index.find_segment(&hash(1))), (None, Some(segments[1])));
    let check = |index: &Index| {
        let hits = lookup_all(index, 0..2000).iter().flatten().count();
        assert_eq!(hits, 100);
        assert_eq!(index.lookup(&hash(7)), Some(location(segments[1], 7)));
        assert_eq!(index.lookup(&hash(700)), None);
    };
    check(&index);
    index.wait_for_merges();
    check(&index);
    assert!(index.statistics().entries < 500, "{:?}", index.statistics());
}

#[test]
fn cleared_index_is_empty_and_goes_on_numbering() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder, SMALL);
    let segment = index.add_segment(&record(0)).unwrap();
    (0..1000).for_each(|number| index.insert(&hash(number), location(segment, number)));
    index.clear().unwrap();
    index.wait_for_merges();
    assert_eq!((index.statistics().entries, index.statistics().runs), (0, 0));
    assert!(lookup_all(&index, 0..1000).iter().all(Option::is_none));
    drop(index);
    let index = open(&folder, SMALL);
    assert_eq!(index.add_segment(&record(1)).unwrap(), segment + 1);
}

#[test]
fn folder_is_open_only_once() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder, SMALL);
    assert!(matches!(Index::open(folder.path(), SMALL), Err(IndexError::Locked { .. })));
    drop(index);
    open(&folder, SMALL);
}

#[test]
fn senseless_options_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for options in [Options { memtable_entries: 255, ..SMALL }, Options { max_entries: 8191, ..SMALL }] {
        assert!(matches!(Index::open(folder.path(), options), Err(IndexError::Invalid { .. })));
    }
}
