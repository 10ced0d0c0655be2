//! The recovery site's look at a bucket, and its word.

use std::path::Path;

use journal_format::{Position, Timestamp};
use restore::{CheckedGroup, Checker};
use transport::Identity;
use transport_bucket::documents::{Checked, Document};
use transport_bucket::keys::ClaimNumber;

use crate::bucket::{TestBucket, cache_in};
use crate::history::History;
use crate::references::{Carried, Chain, hash_of, noise};

fn identity(folder: &Path) -> Identity {
    let dir = folder.join("identity");
    match Identity::load(&dir) {
        Ok(identity) => identity,
        Err(_) => Identity::create(&dir, &"recovery".parse().unwrap()).unwrap(),
    }
}

fn checker(bucket: &TestBucket, folder: &Path) -> Checker {
    Checker::new(bucket.place(), cache_in(&folder.join("cache")), Some(identity(folder)))
}

fn look(checker: &mut Checker) -> Vec<CheckedGroup> {
    checker.check(|| Timestamp(5), &|_, _| {}).unwrap()
}

/// What a source reads, which has pinned the recovery site.
fn received(bucket: &TestBucket, folder: &Path, history: &History) -> Option<Position> {
    let key = bucket.keys.group(&history.group).checked();
    let checked = Checked::decode(&key, &bucket.get(&key)?).unwrap();
    let receipt = checked.receipt(&key, &history.group, identity(folder).fingerprint()).unwrap();
    Some(receipt.position)
}

#[test]
fn what_was_read_whole_is_signed_and_not_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::with_points(5000, 6);
    let bucket = TestBucket::with(&history.group, &history.segments);
    let mut first = checker(&bucket, folder.path());
    let found = look(&mut first);
    assert_eq!((found[0].segments, found[0].checked), (history.segments.len() as u64, history.head()));
    assert!(found[0].receipted && found[0].damaged.is_empty());
    assert_eq!(received(&bucket, folder.path(), &history), history.head());
    // Nothing is new.
    bucket.take_gets();
    let found = look(&mut first);
    assert_eq!((found[0].segments, found[0].receipted, bucket.take_gets().0), (0, false, 0));
    let found = look(&mut checker(&bucket, folder.path()));
    assert_eq!((found[0].checked, found[0].receipted), (history.head(), false), "in another process, too");
    // Which goes on behind it.
    let before = history.segments.len();
    history.cut();
    history.segments[before..].iter().for_each(|segment| {
        bucket.put_segment(&history.group, ClaimNumber(2), segment);
    });
    let found = look(&mut checker(&bucket, folder.path()));
    assert_eq!(found[0].segments, (history.segments.len() - before) as u64);
    assert_eq!(received(&bucket, folder.path(), &history), history.head());
}

#[test]
fn damage_is_reported_with_its_points_and_never_signed() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(5100, 8);
    let bucket = TestBucket::with(&history.group, &history.segments);
    let damaged = history.segments.iter().position(|segment| segment.bytes.len() > 2000).unwrap().max(1);
    let segment = &history.segments[damaged];
    let key = bucket.segment_key(&history.group, ClaimNumber(2), segment);
    for at in [250, segment.bytes.len() - 60] {
        let folder = folder.path().join(at.to_string());
        std::fs::create_dir(&folder).unwrap();
        let mut bytes = segment.bytes.clone();
        bytes[at] ^= 1;
        bucket.put(&key, bytes);
        let mut checker = checker(&bucket, &folder);
        let found = look(&mut checker);
        let before = Some(history.segments[damaged - 1].position);
        assert_eq!(found[0].damaged[0].sequence, segment.position.sequence, "{found:?}");
        assert!(found[0].damaged[0].problem.contains("s3://bucket/some/prefix/groups/demo/segments/"));
        assert_eq!((found[0].checked, received(&bucket, &folder, &history)), (before, before));
        // A segment that is only damaged inside is still of the chain, and so are its points.
        if at == 250 {
            assert!(!found[0].touched.is_empty());
            bucket.take_gets();
            assert_eq!(look(&mut checker)[0].damaged.len(), found[0].damaged.len());
            assert_eq!(bucket.take_gets().0, 0, "it is not read again all the time");
        }
        bucket.put(&key, segment.bytes.clone());
        let found = look(&mut self::checker(&bucket, &folder));
        assert_eq!((found[0].damaged.len(), found[0].checked), (0, history.head()));
    }
}

#[test]
fn references_that_do_not_hold_are_damage() {
    const BLOCK: usize = 4096;
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(1, 8);
    let mut chain = Chain::new("demo");
    chain.seal(Carried::Whole(bytes.clone()));
    chain.seal(Carried::Referred(chain.source(0), 0, 0, 1, hash_of(&bytes[..BLOCK])));
    chain.seal(Carried::Different(
        chain.source(0),
        0,
        BLOCK as u32,
        noise(2, 1),
        bytes[BLOCK..2 * BLOCK].to_vec(),
    ));
    let whole = chain.segments.len();
    // What lies there has another hash than the reference names.
    chain.seal(Carried::Referred(chain.source(0), 0, BLOCK as u32, 1, hash_of(&bytes[..BLOCK])));
    chain.seal(Carried::Different(chain.source(0), 0, 0, noise(3, 1), bytes[BLOCK..2 * BLOCK].to_vec()));
    // The base is the one that is named, and what the source took the difference from was another.
    let (base, other) = (bytes[..BLOCK].to_vec(), bytes[BLOCK..2 * BLOCK].to_vec());
    chain.seal(Carried::Misplaced(chain.source(0), noise(4, 1), base, other));
    let bucket = TestBucket::with(&chain.group, &chain.segments);
    let found = look(&mut checker(&bucket, folder.path()));
    let damaged: Vec<u64> = found[0].damaged.iter().map(|segment| segment.sequence.0).collect();
    assert_eq!(damaged, [4, 5, 6], "{found:?}");
    assert!(found[0].damaged[2].problem.contains("a frame's content"), "{found:?}");
    assert_eq!(found[0].checked, Some(chain.segments[whole - 1].position));
}

#[test]
fn without_an_identity_nothing_is_put() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(5200, 2);
    let bucket = TestBucket::with(&history.group, &history.segments);
    let mut checker = Checker::new(bucket.place(), cache_in(folder.path()), None);
    let found = look(&mut checker);
    assert_eq!((found[0].checked, found[0].receipted), (history.head(), false));
    assert_eq!(bucket.get(&bucket.keys.group(&history.group).checked()), None);
}
