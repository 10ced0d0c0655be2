use std::fs;

use super::file::Line;
use super::*;

fn record(seed: u64) -> SegmentRecord {
    let group = format!("group-{}", seed % 3);
    SegmentRecord {
        group,
        generation: 1,
        sequence: seed,
        hash: *blake3::hash(&seed.to_le_bytes()).as_bytes(),
    }
}

fn with_records(folder: &Path, count: u64) -> Segments {
    let mut segments = Segments::create(folder, 0).unwrap();
    (0..count).for_each(|seed| assert_eq!(segments.add(&record(seed)).unwrap(), seed as u32));
    segments
}

fn check(segments: &Segments, expected: impl IntoIterator<Item = u64>) {
    let mut count = 0;
    for seed in expected {
        let number = seed as u32;
        assert_eq!(segments.get(number), Some(record(seed)));
        assert_eq!(segments.find(&record(seed).hash), Some(number));
        assert!(segments.live().contains(number));
        count += 1;
    }
    assert_eq!(segments.count(), count);
    assert_eq!((0..5000).filter(|&number| segments.live().contains(number)).count(), count);
}

#[test]
fn segments_are_known_again_after_opening() {
    let folder = tempfile::tempdir().unwrap();
    drop(with_records(folder.path(), 100));
    let mut segments = Segments::open(folder.path()).unwrap();
    check(&segments, 0..100);
    assert_eq!(segments.forget(|number, _| number < 70).unwrap(), 70);
    check(&segments, 70..100);
    drop(segments);
    let mut segments = Segments::open(folder.path()).unwrap();
    check(&segments, 70..100);
    assert_eq!(segments.add(&record(100)).unwrap(), 100);
}

#[test]
fn numbers_are_not_used_again_when_all_are_forgotten_and_compacted() {
    let folder = tempfile::tempdir().unwrap();
    let mut segments = with_records(folder.path(), 3000);
    assert_eq!(segments.forget(|_, _| true).unwrap(), 3000);
    assert_eq!(segments.file_bytes(), 128);
    drop(segments);
    let mut segments = Segments::open(folder.path()).unwrap();
    check(&segments, []);
    assert_eq!(segments.add(&record(3000)).unwrap(), 3000);
    check(&segments, [3000]);
}

#[test]
fn torn_record_is_dropped_and_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segments");
    drop(with_records(folder.path(), 10));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let mut segments = Segments::open(folder.path()).unwrap();
    check(&segments, 0..9);
    assert_eq!(segments.add(&record(9)).unwrap(), 9);
    drop(segments);
    check(&Segments::open(folder.path()).unwrap(), 0..10);
}

#[test]
fn damaged_record_loses_one_segment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segments");
    drop(with_records(folder.path(), 10));
    let mut bytes = fs::read(&path).unwrap();
    bytes[128 * 4 + 60] ^= 1;
    fs::write(&path, &bytes).unwrap();
    check(&Segments::open(folder.path()).unwrap(), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn damaged_header_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segments");
    assert!(matches!(Segments::open(folder.path()), Err(SegmentsError::Io(_))));
    drop(with_records(folder.path(), 1));
    let mut bytes = fs::read(&path).unwrap();
    bytes[12] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(Segments::open(folder.path()), Err(SegmentsError::Header)));
    fs::write(&path, &bytes[..100]).unwrap();
    assert!(matches!(Segments::open(folder.path()), Err(SegmentsError::Header)));
}

#[test]
fn name_that_is_too_long_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut segments = Segments::create(folder.path(), 0).unwrap();
    let long = SegmentRecord { group: "x".repeat(64), ..record(0) };
    assert!(matches!(segments.add(&long), Err(IndexError::Invalid { .. })));
    assert_eq!(segments.next, 0);
}

#[test]
fn v1_record_is_parsed() {
    let record = SegmentRecord { group: "crm".to_owned(), generation: 2, sequence: 3, hash: [9; 32] };
    let bytes = Line::Known(0x0102, record.clone()).to_bytes();
    assert_eq!(bytes[..24], *b"\x02\x01\0\0\x01\x03\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
    assert_eq!(bytes[24..56], [9; 32]);
    assert_eq!(bytes[56..60], *b"crm\0");
    assert_eq!(bytes[120..], blake3::hash(&bytes[..120]).as_bytes()[..8]);
    assert_eq!(Line::parse(&bytes), Some(Line::Known(0x0102, record)));
    let bytes = Line::Forgotten(7).to_bytes();
    assert_eq!(bytes[..8], [7, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(Line::parse(&bytes), Some(Line::Forgotten(7)));
}
