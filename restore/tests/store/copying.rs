//! Copies between folders and buckets.

use std::fs;
use std::path::Path;

use journal_format::{ErrorKind, Timestamp};
use restore::{
    BucketCopy, Copied, CopyError, Store, StoreWriter, WriterOptions, copy_to_bucket, copy_to_folder,
};
use transport::Inbox;
use transport_bucket::keys::ClaimNumber;

use crate::bucket::{TestBucket, cache_in};
use crate::history::{History, filled, open_writer, peer, segment_path, send};
use crate::references::{Carried, Chain, hash_of, noise};

fn into_bucket(
    from: &Store,
    bucket: &TestBucket,
    cache: &Path,
    history: &History,
) -> Result<Copied, CopyError> {
    let copy = BucketCopy {
        place: bucket.place(),
        cache: cache_in(cache),
        fingerprint: Some("cd".repeat(32).parse().unwrap()),
        now: Timestamp(7),
    };
    copy_to_bucket(from, &copy, &history.group, &|_, _| {})
}

fn into_folder(from: &Store, folder: &Path, history: &History) -> Result<Copied, CopyError> {
    let writer = StoreWriter::open(folder, WriterOptions::default()).unwrap();
    copy_to_folder(from, &writer, &history.group, &|_, _| {})
}

/// A folder with a history that a known source has written.
fn claimed(folder: &Path, history: &History) {
    let writer = StoreWriter::open(folder, WriterOptions::default()).unwrap();
    writer.claim(&peer(), &history.group, journal_format::Generation(1)).unwrap();
    drop(writer);
    filled(folder, history);
}

#[test]
fn a_group_goes_from_a_folder_to_a_bucket_and_back() {
    let (folder, cache, back) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut history = History::with_points(6000, 8);
    claimed(folder.path(), &history);
    let bucket = TestBucket::new();
    let copied = into_bucket(&Store::open(folder.path()).unwrap(), &bucket, cache.path(), &history).unwrap();
    assert_eq!((copied.copied_segments, copied.head), (history.segments.len() as u64, history.head()));
    history.assert_points(&bucket.open(cache.path()));
    // Again: nothing is to be done, and nothing is claimed.
    let copied = into_bucket(&Store::open(folder.path()).unwrap(), &bucket, cache.path(), &history).unwrap();
    assert_eq!(copied.copied_segments, 0);
    assert!(bucket.get(&bucket.keys.group(&history.group).claim(ClaimNumber(3))).is_none());
    let copied = into_folder(&bucket.open(cache.path()), back.path(), &history).unwrap();
    assert_eq!((copied.copied_segments, copied.head), (history.segments.len() as u64, history.head()));
    history.assert_points(&Store::open(back.path()).unwrap());
    // What is new goes on behind it.
    let before = history.segments.len();
    history.cut();
    let writer = open_writer(folder.path(), &history.group);
    for segment in &history.segments[before..] {
        assert_eq!(send(&writer, &history.group, segment).unwrap(), Some(segment.position));
    }
    drop(writer);
    let copied = into_bucket(&Store::open(folder.path()).unwrap(), &bucket, cache.path(), &history).unwrap();
    assert_eq!(copied.copied_segments, (history.segments.len() - before) as u64);
    history.assert_points(&bucket.open(cache.path()));
    // The source may go on in the folder that was copied to: the claim is in its name.
    let writer = StoreWriter::open(back.path(), WriterOptions::default()).unwrap();
    writer.claim(&peer(), &history.group, journal_format::Generation(1)).unwrap();
}

#[test]
fn a_copy_that_meets_damage_ends_there_and_goes_on_later() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let history = History::with_points(6100, 8);
    claimed(folder.path(), &history);
    let store = Store::open(folder.path()).unwrap();
    let number = history.segments.iter().position(|segment| segment.bytes.len() > 2000).unwrap().max(3);
    let path = segment_path(folder.path(), &history.segments[number]);
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[250] ^= 1;
    fs::write(&path, bytes).unwrap();
    let bucket = TestBucket::new();
    let error = into_bucket(&store, &bucket, cache.path(), &history).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    fs::write(&path, whole).unwrap();
    let copied = into_bucket(&store, &bucket, cache.path(), &history).unwrap();
    assert!(copied.copied_segments > 0);
    assert_eq!(copied.head, history.head());
    history.assert_points(&bucket.open(cache.path()));
}

#[test]
fn nothing_that_the_target_has_is_replaced() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (history, other) = (History::with_points(6200, 4), History::with_points(6201, 4));
    claimed(folder.path(), &history);
    let store = Store::open(folder.path()).unwrap();
    let bucket = TestBucket::with(&other.group, &other.segments);
    let error = into_bucket(&store, &bucket, cache.path(), &history).unwrap_err();
    assert!(matches!(error, CopyError::Diverged { .. }), "{error:?}");
    let target = tempfile::tempdir().unwrap();
    claimed(target.path(), &other);
    let error = into_folder(&store, target.path(), &history).unwrap_err();
    assert!(matches!(error, CopyError::Diverged { .. }), "{error:?}");
    // A newer writer has the bucket.
    let bucket = TestBucket::with(&history.group, &history.segments[..2]);
    bucket.claim(&history.group, 2, Some(history.segments[1].position));
    let error = into_bucket(&store, &bucket, cache.path(), &history).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error:?}");
}

#[test]
fn a_group_that_refers_to_another_one_is_copied_behind_it() {
    let (cache, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = noise(1, 2);
    let mut other = Chain::new("demo");
    other.seal(Carried::Whole(bytes.clone()));
    let mut chain = Chain::new("more");
    chain.seal(Carried::Referred(other.source(0), 0, 0, 1, hash_of(&bytes[..4096])));
    let bucket = TestBucket::with(&other.group, &other.segments);
    bucket.add(&chain.group, &chain.segments);
    let from = bucket.open(cache.path());
    let writer = StoreWriter::open(back.path(), WriterOptions::default()).unwrap();
    let error = copy_to_folder(&from, &writer, &chain.group, &|_, _| {}).unwrap_err();
    assert!(error.hint().contains("copy the groups that it refers to first"), "{error:?}");
    copy_to_folder(&from, &writer, &other.group, &|_, _| {}).unwrap();
    let copied = copy_to_folder(&from, &writer, &chain.group, &|_, _| {}).unwrap();
    assert_eq!(copied.copied_segments, 1);
}
