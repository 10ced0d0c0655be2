//! Points that are read from buckets: the same as from a folder, whatever the bucket, the way to it and the cache do.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use journal_format::{ErrorKind, Generation, PointId, VolumeName};
use restore::{CacheOptions, PointView, Selector, Store, ViewOptions, verify_store};
use transport_bucket::documents::{BucketHeartbeat, Document, HeartbeatCut};
use transport_bucket::keys::ClaimNumber;

use crate::bucket::{TestBucket, cache_in};
use crate::history::{History, contents, filled, ids, open, time_of};
use crate::references::{Carried, Chain, hash_of, noise};

fn damaged_objects(report: &[restore::GroupReport]) -> Vec<u64> {
    report.iter().flat_map(|group| &group.damaged).map(|segment| segment.sequence.0).collect()
}

#[test]
fn a_bucket_and_a_folder_have_the_same_points_and_bytes() {
    for seed in 0..6 {
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut history = History::with_points(3000 + seed, 6);
        history.volumes[0].1.resize(3 << 20, 0);
        (0..4).for_each(|_| history.cut());
        filled(folder.path(), &history);
        let bucket = TestBucket::with(&history.group, &history.segments);
        let (here, there) = (Store::open(folder.path()).unwrap(), bucket.open(cache.path()));
        assert_eq!(here.points(&history.group).unwrap(), there.points(&history.group).unwrap());
        assert_eq!(here.group(&history.group).unwrap(), there.group(&history.group).unwrap());
        history.assert_points(&there);
        let report = verify_store(&there, &|_, _| {}).unwrap();
        assert_eq!((report[0].points, damaged_objects(&report)), (10, vec![]));
    }
}

#[test]
fn outlines_are_read_once_and_a_second_opening_reads_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let history = History::with_points(3100, 60);
    let bucket = TestBucket::with(&history.group, &history.segments);
    let store = bucket.open(cache.path());
    let segments = history.segments.len();
    let large = history.segments.iter().filter(|segment| segment.bytes.len() > 256 << 10).count();
    assert_eq!(bucket.take_gets().0, segments + large);
    let view = open(&store, &history.group, &Selector::Latest);
    assert_eq!(bucket.take_gets().0, 0, "the outlines are kept");
    let bytes = contents(&view);
    bucket.take_gets();
    drop((store, view));
    bucket.server.lists.store(0, Ordering::SeqCst);
    let store = bucket.open(cache.path());
    let view = open(&store, &history.group, &Selector::Latest);
    assert!(contents(&view) == bytes);
    assert_eq!(bucket.take_gets(), (0, 0));
    assert_eq!(bucket.server.lists.load(Ordering::SeqCst), 2, "claims, and what is behind the head");
}

/// A history with a volume of so many MiB that does not compress, in segments of up to 16 MiB.
fn large_history(mib: usize) -> History {
    let mut history = History::new(3200);
    history.volumes[0].1.resize(mib << 20, 0);
    for part in 0..mib.div_ceil(16) {
        let blocks = ((mib - part * 16).min(16) << 20) / 4096;
        history.cut_with(0, part * 16 * 2048, &noise(part as u8, blocks));
    }
    history
}

#[test]
fn a_volume_that_is_read_from_beginning_to_end_costs_few_large_requests() {
    let cache = tempfile::tempdir().unwrap();
    let history = large_history(64);
    let bucket = TestBucket::with(&history.group, &history.segments);
    let view = open(&bucket.open(cache.path()), &history.group, &Selector::Latest);
    bucket.take_gets();
    let volume = view.volume(&history.volumes[0].0).unwrap();
    let mut buffer = vec![0; 128 << 10];
    for (number, expected) in history.volumes[0].1.chunks(buffer.len()).enumerate() {
        volume.read_at((number * buffer.len()) as u64, &mut buffer).unwrap();
        assert!(buffer == expected, "read {number}");
    }
    let (gets, bytes) = bucket.take_gets();
    assert!(gets <= 20, "{gets} requests for 64 MiB");
    assert!(bytes <= 68 << 20, "{bytes} bytes for 64 MiB: something was read twice");
}

#[test]
fn what_many_threads_want_is_fetched_once() {
    let cache = tempfile::tempdir().unwrap();
    let history = large_history(32);
    let bucket = TestBucket::with(&history.group, &history.segments);
    let view = open(&bucket.open(cache.path()), &history.group, &Selector::Latest);
    bucket.take_gets();
    let read = |view: &Arc<PointView>| assert!(contents(view) == history.expected(view.point().id));
    thread::scope(|scope| {
        (0..6).for_each(|_| drop(scope.spawn(|| read(&view))));
    });
    let (_, bytes) = bucket.take_gets();
    assert!(bytes <= 34 << 20, "{bytes} bytes for 32 MiB");
}

#[test]
fn a_tiny_cache_costs_requests_and_never_bytes() {
    for size_bytes_max in [0, 50_000, 400_000] {
        let cache = tempfile::tempdir().unwrap();
        let history = History::with_points(3300, 12);
        let bucket = TestBucket::with(&history.group, &history.segments);
        let options = CacheOptions { folder: Some(cache.path().to_owned()), size_bytes_max };
        let (one, two) = (bucket.try_open(&options).unwrap(), bucket.try_open(&options).unwrap());
        thread::scope(|scope| {
            scope.spawn(|| history.assert_points(&one));
            scope.spawn(|| history.assert_points(&two));
        });
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn a_damaged_cache_is_a_miss() {
    let cache = tempfile::tempdir().unwrap();
    let history = History::with_points(3400, 8);
    let bucket = TestBucket::with(&history.group, &history.segments);
    history.assert_points(&bucket.open(cache.path()));
    let spoil: [&dyn Fn(&Path); 4] = [
        &|path| fs::write(path, b"").unwrap(),
        &|path| fs::write(path, vec![0x5a; 3000]).unwrap(),
        &|path| {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        },
        &|path| fs::remove_file(path).unwrap(),
    ];
    for spoil in spoil {
        for path in files_below(cache.path()) {
            if !path.to_str().unwrap().contains("catalog") {
                spoil(&path);
            }
        }
        history.assert_points(&bucket.open(cache.path()));
    }
    for path in files_below(cache.path()) {
        fs::write(path, b"garbage").unwrap();
    }
    history.assert_points(&bucket.open(cache.path()));
}

#[test]
fn a_newer_start_takes_the_place_of_what_an_older_one_had() {
    let cache = tempfile::tempdir().unwrap();
    let mut history = History::with_points(3500, 6);
    history.generation = 1;
    let bucket = TestBucket::with(&history.group, &history.segments);
    let before = bucket.open(cache.path());
    assert_eq!(ids(&before, &history.group), history.ids());
    // Another host goes on behind the fourth segment, with other content.
    let mut other = History::new(3501);
    other.generation = 2;
    let kept = other.continue_from(&history, 4);
    let behind = Some(history.segments[kept - 1].position);
    let claim = bucket.claim(&history.group, 2, behind);
    (0..3).for_each(|_| other.cut());
    other.segments[kept..].iter().for_each(|segment| bucket.put_segment(&history.group, claim, segment));
    // What the fenced one still puts is of no account.
    history.cut();
    bucket.put_segment(&history.group, ClaimNumber(2), history.segments.last().unwrap());
    for cache in [cache.path(), tempfile::tempdir().unwrap().path()] {
        let store = bucket.open(cache);
        assert_eq!(store.group(&history.group).unwrap().head, other.head());
        let listed = ids(&store, &history.group);
        assert!(listed.iter().any(|id| id.generation == Generation(2)));
        for point in store.points(&history.group).unwrap() {
            let owner = if point.id.generation == Generation(2) { &other } else { &history };
            let view = store.open_point(&point, &ViewOptions::default()).unwrap();
            assert!(contents(&view) == owner.expected(point.id), "point {}", point.id);
        }
    }
}

#[test]
fn a_hole_ends_the_chain_and_a_late_listing_is_none() {
    let cache = tempfile::tempdir().unwrap();
    let history = History::with_points(3600, 8);
    let bucket = TestBucket::with(&history.group, &history.segments);
    let key = |number: usize| bucket.segment_key(&history.group, ClaimNumber(2), &history.segments[number]);
    let last = history.segments.len() - 1;
    // Listed late: in the middle, and at the end.
    bucket.server.late.lock().unwrap().extend([key(2), key(3), key(last - 1), key(last)]);
    let store = bucket.open(cache.path());
    assert_eq!(ids(&store, &history.group), history.ids());
    bucket.server.late.lock().unwrap().clear();
    let whole = bucket.get(&key(5)).unwrap();
    bucket.delete(&key(5));
    let other = tempfile::tempdir().unwrap();
    let store = bucket.open(other.path());
    assert_eq!(store.group(&history.group).unwrap().head, Some(history.segments[4].position));
    history.assert_points(&store);
    // It comes after all.
    bucket.put(&key(5), whole);
    let store = bucket.open(other.path());
    assert_eq!(ids(&store, &history.group), history.ids());
    history.assert_points(&store);
}

#[test]
fn damage_is_an_error_with_the_objects_url_and_never_wrong_bytes() {
    let history = large_history(2);
    let bucket = TestBucket::with(&history.group, &history.segments);
    let key = bucket.segment_key(&history.group, ClaimNumber(2), &history.segments[0]);
    let whole = bucket.get(&key).unwrap();
    for at in [300, whole.len() / 2, whole.len() / 3] {
        let cache = tempfile::tempdir().unwrap();
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bucket.put(&key, bytes);
        let store = bucket.open(cache.path());
        let view = open(&store, &history.group, &Selector::Latest);
        let volume = view.volume(&history.volumes[0].0).unwrap();
        let error = volume.read_at(0, &mut vec![0; 2 << 20]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let text = journal_format::with_causes(&error);
        assert!(text.contains("s3://bucket/some/prefix/groups/demo/segments/c0000000002-s"), "{text}");
        let report = verify_store(&store, &|_, _| {}).unwrap();
        assert_eq!(damaged_objects(&report), [1]);
        assert_eq!(report[0].touched.len(), 1);
    }
    // Cut off, and gone, after its outline was read.
    for rest in [Some(&whole[..whole.len() / 2]), None] {
        let cache = tempfile::tempdir().unwrap();
        bucket.put(&key, whole.clone());
        let store = bucket.open(cache.path());
        match rest {
            Some(rest) => bucket.put(&key, rest.to_vec()),
            None => bucket.delete(&key),
        }
        let view = open(&store, &history.group, &Selector::Latest);
        let volume = view.volume(&history.volumes[0].0).unwrap();
        let error = volume.read_at(0, &mut vec![0; 2 << 20]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }
}

#[test]
fn a_hiccup_is_a_pause_and_a_long_failure_an_error() {
    let cache = tempfile::tempdir().unwrap();
    let history = large_history(4);
    let mut bucket = TestBucket::with(&history.group, &history.segments);
    let view = open(&bucket.open(cache.path()), &history.group, &Selector::Latest);
    bucket.server.failing.store(4, Ordering::SeqCst);
    assert!(contents(&view) == history.expected(view.point().id));
    assert_eq!(bucket.server.failing.load(Ordering::SeqCst), 0);
    bucket.patience = Duration::from_millis(300);
    bucket.server.failing.store(u64::MAX, Ordering::SeqCst);
    let Err(error) = bucket.try_open(&cache_in(cache.path())) else { panic!("it was opened") };
    assert_eq!(error.kind(), ErrorKind::Retry);
    assert!(journal_format::with_causes(&error).contains("503 SlowDown"));
}

#[test]
fn references_across_segments_and_groups_are_followed() {
    const BLOCK: usize = 4096;
    let cache = tempfile::tempdir().unwrap();
    let bytes = noise(1, 8);
    let mut other = Chain::new("demo");
    other.seal(Carried::Whole(bytes.clone()));
    let mut chain = Chain::new("more");
    let first = hash_of(&bytes[..BLOCK]);
    chain.seal(Carried::Referred(other.source(0), 0, 0, 1, first));
    chain.seal(Carried::Whole(noise(2, 4)));
    let changed = noise(3, 1);
    chain.seal(Carried::Different(other.source(0), 0, 0, changed.clone(), bytes[..BLOCK].to_vec()));
    let bucket = TestBucket::with(&other.group, &other.segments);
    bucket.add(&chain.group, &chain.segments);
    let store = bucket.open(cache.path());
    let points = ids(&store, &chain.group);
    let read = |id: PointId| {
        let view = open(&store, &chain.group, &Selector::Id(id));
        let name: VolumeName = "disk0".parse().unwrap();
        let mut bytes = vec![0; BLOCK];
        view.volume(&name).unwrap().read_at(0, &mut bytes).unwrap();
        bytes
    };
    assert!(read(points[0]) == bytes[..BLOCK]);
    assert!(read(points[2]) == changed);
    let key = bucket.segment_key(&other.group, ClaimNumber(2), &other.segments[0]);
    bucket.delete(&key);
    let report = verify_store(&store, &|_, _| {}).unwrap();
    assert_eq!(report.iter().find(|group| group.group == chain.group).unwrap().touched.len(), 3);
}

#[test]
fn what_the_source_last_said_is_known_unless_it_was_fenced() {
    let cache = tempfile::tempdir().unwrap();
    let history = History::with_points(3700, 3);
    let bucket = TestBucket::with(&history.group, &history.segments);
    let cut = HeartbeatCut { epoch: history.head().unwrap().epoch, time: time_of(9) };
    let said = |number: u64| BucketHeartbeat {
        group: history.group.clone(),
        number: ClaimNumber(number),
        generation: Generation(1),
        now: time_of(10),
        newest_cut: Some(cut),
        head: history.head(),
        backlog_bytes: 77,
        backlog_segments: 3,
        state: "streaming".to_owned(),
        software: "test".to_owned(),
    };
    let heard = || bucket.open(cache.path()).group(&history.group).unwrap().heartbeat;
    assert_eq!(heard(), None);
    let key = bucket.keys.group(&history.group).heartbeat();
    bucket.put(&key, said(1).encode());
    assert_eq!(heard(), None, "there is a newer start");
    bucket.put(&key, said(2).encode());
    let heard = heard().unwrap();
    assert_eq!((heard.source_time, heard.backlog_bytes), (time_of(10), 77));
    assert_eq!(heard.newest_cut, Some((cut.epoch, cut.time)));
    // One that cannot be read, or is much too large, does not keep anybody from the points.
    for garbage in [b"{".to_vec(), vec![b' '; 1 << 20]] {
        bucket.put(&key, garbage);
        history.assert_points(&bucket.open(cache.path()));
    }
}

#[test]
fn what_is_no_bucket_is_said() {
    let cache = tempfile::tempdir().unwrap();
    let bucket = TestBucket::new();
    bucket.delete(&bucket.keys.store());
    let Err(error) = bucket.try_open(&cache_in(cache.path())) else { panic!("it was opened") };
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("s3://bucket/some/prefix is not a bucket of thirdsite"), "{error}");
    bucket.put(&bucket.keys.store(), br#"{"format":"thirdsite-bucket","version":9}"#.to_vec());
    let Err(error) = bucket.try_open(&cache_in(cache.path())) else { panic!("it was opened") };
    assert!(journal_format::with_causes(&error).contains("version 9"), "{error:?}");
}
