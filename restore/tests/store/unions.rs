//! Several stores that are read as one.

use std::fs;
use std::path::Path;

use journal_format::ErrorKind;
use restore::{Place, Selector, Store, verify_store};
use transport_bucket::keys::ClaimNumber;

use crate::bucket::{TestBucket, cache_in};
use crate::history::{History, filled, ids, open, open_writer, segment_path, send};

fn union(folder: &Path, bucket: &TestBucket, cache: &Path) -> Store {
    let places = [Place::Folder(folder.to_owned()), Place::Bucket(bucket.place())];
    Store::open_places(&places, &cache_in(cache), &|_, _| {}).unwrap()
}

fn check(store: &Store, history: &History) {
    assert_eq!(store.group(&history.group).unwrap().head, history.head());
    assert_eq!(ids(store, &history.group), history.ids());
    history.assert_points(store);
}

#[test]
fn each_segment_may_be_missing_in_one_of_two_stores() {
    for seed in 0..4 {
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut history = History::with_points(4000 + seed, 10);
        filled(folder.path(), &history);
        let bucket = TestBucket::with(&history.group, &history.segments);
        for segment in &history.segments {
            match history.random.below(3) {
                0 => fs::remove_file(segment_path(folder.path(), segment)).unwrap(),
                1 => bucket.delete(&bucket.segment_key(&history.group, ClaimNumber(2), segment)),
                _ => {}
            }
        }
        check(&union(folder.path(), &bucket, cache.path()), &history);
        // Once more, with the catalog of the first time.
        let store = union(folder.path(), &bucket, cache.path());
        check(&store, &history);
        let report = verify_store(&store, &|_, _| {}).unwrap();
        assert!(report[0].damaged.is_empty() && report[0].points == 10, "{report:?}");
    }
}

#[test]
fn what_is_damaged_in_one_store_is_read_from_the_other() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let history = History::with_points(4100, 8);
    filled(folder.path(), &history);
    let bucket = TestBucket::with(&history.group, &history.segments);
    for (number, segment) in history.segments.iter().enumerate() {
        let mut bytes = segment.bytes.clone();
        let at = if number % 3 == 0 { bytes.len() - 100 } else { 200.min(bytes.len() - 1) };
        bytes[at] ^= 1;
        if number % 2 == 0 {
            fs::write(segment_path(folder.path(), segment), bytes).unwrap();
        } else {
            bucket.put(&bucket.segment_key(&history.group, ClaimNumber(2), segment), bytes);
        }
    }
    check(&union(folder.path(), &bucket, cache.path()), &history);
}

#[test]
fn a_chain_that_went_over_two_roads_is_one() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let history = History::with_points(4200, 9);
    let (first, second) = history.segments.split_at(5);
    let writer = open_writer(folder.path(), &history.group);
    for segment in first {
        assert_eq!(send(&writer, &history.group, segment).unwrap(), Some(segment.position));
    }
    drop(writer);
    let bucket = TestBucket::new();
    let claim = bucket.claim(&history.group, 1, Some(first[4].position));
    second.iter().for_each(|segment| bucket.put_segment(&history.group, claim, segment));
    check(&union(folder.path(), &bucket, cache.path()), &history);
    // The bucket alone has no chain, and the folder has the beginning.
    let (alone, beginning) = (bucket.open(cache.path()), Store::open(folder.path()).unwrap());
    assert!(alone.group(&history.group).is_err());
    history.assert_points(&beginning);
}

#[test]
fn the_longest_chain_over_all_stores_is_listed() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let history = History::with_points(4300, 9);
    filled(folder.path(), &history);
    let mut other = History::new(4301);
    other.generation = 2;
    let kept = other.continue_from(&history, 3);
    other.cut();
    let bucket = TestBucket::with(&history.group, &history.segments[..kept]);
    let claim = bucket.claim(&history.group, 2, Some(history.segments[kept - 1].position));
    other.segments[kept..].iter().for_each(|segment| bucket.put_segment(&history.group, claim, segment));
    check(&union(folder.path(), &bucket, cache.path()), &history);
    // It grows past the folder's.
    while other.segments.len() <= history.segments.len() {
        other.cut();
    }
    other.segments[kept..].iter().for_each(|segment| bucket.put_segment(&history.group, claim, segment));
    let store = union(folder.path(), &bucket, cache.path());
    assert_eq!(store.group(&history.group).unwrap().head, other.head());
    let view = open(&store, &history.group, &Selector::Latest);
    assert!(crate::history::contents(&view) == other.expected(view.point().id));
}

#[test]
fn no_store_and_too_many_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    for count in [0, 17] {
        let places = vec![Place::Folder(cache.path().to_owned()); count];
        let Err(error) = Store::open_places(&places, &cache_in(cache.path()), &|_, _| {}) else {
            panic!("they were opened");
        };
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
