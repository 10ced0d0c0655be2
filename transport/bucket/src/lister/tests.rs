use journal_format::Generation;
use object_store::memory::InMemory;

use super::*;
use crate::documents::StoreMark;
use crate::rig::{Faults, FaultyStore, group, keys, segment, source};

fn bucket(store: &Arc<impl ObjectStore>) -> GroupBucket {
    GroupBucket::new(store.clone(), &keys(), group())
}

fn claim(number: u64, kind: ClaimKind, behind: Option<Position>) -> Claim {
    Claim {
        group: group(),
        number: ClaimNumber(number),
        kind,
        session: crate::documents::SessionId([0; 16]),
        generation: Generation(1),
        source: source("pair"),
        software: String::new(),
        time: journal_format::Timestamp(0),
        behind,
    }
}

#[tokio::test]
async fn late_listings_hide_neither_claims_nor_segments() {
    let memory = Arc::new(InMemory::new());
    let direct = bucket(&memory);
    for number in 1..=9 {
        let kind = if number == 2 { ClaimKind::Start } else { ClaimKind::Fence };
        assert_eq!(direct.put_claim(&claim(number, kind, None)).await.unwrap(), Put::Created);
    }
    let mut head = None;
    for sequence in 1..=20 {
        let (descriptor, bytes) = segment(&group(), Generation(1), head, 0);
        let name = SegmentName { claim: ClaimNumber(2), sequence: Sequence(sequence) };
        memory.put(&direct.keys().segment(name), bytes.into()).await.unwrap();
        head = Some(descriptor.position);
    }
    memory.put(&direct.keys().segments().join("readme.txt"), "x".into()).await.unwrap();
    memory.put(&direct.keys().claims().join("c10.json"), "x".into()).await.unwrap();

    for unlisted in [0, 100, 255] {
        let faulty = FaultyStore::new(memory.clone(), 7, Faults { unlisted, ..Faults::default() });
        let bucket = bucket(&faulty);
        for claims in [bucket.claims().await.unwrap(), bucket.newest_claims().await.unwrap()] {
            assert_eq!(claims.next(), ClaimNumber(10), "{unlisted}");
            let mut listed = Listed::default();
            bucket.list_segments(&claims, Sequence(5), &mut listed).await.unwrap();
            let run: Vec<u64> = listed.run(&claims, Sequence(6)).map(|found| found.name.sequence.0).collect();
            assert_eq!(run, (6..=20).collect::<Vec<_>>(), "{unlisted}");
        }
    }
}

#[tokio::test]
async fn a_reader_that_waits_asks_for_one_name_only() {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = FaultyStore::new(memory, 1, Faults::default());
    let bucket = bucket(&store);
    bucket.put_claim(&claim(1, ClaimKind::Start, None)).await.unwrap();
    let mut claims = bucket.claims().await.unwrap();
    let before = store.requests().len();
    bucket.read_new_claims(&mut claims).await.unwrap();
    bucket.fill_hole(&claims, Sequence(0), &mut Listed::default()).await.unwrap();
    let asked = [
        "GET p/groups/db/claims/c0000000002.json",
        "HEAD p/groups/db/segments/c0000000001-s00000000000000000001.seg",
    ];
    assert_eq!(store.requests()[before..], asked);
}

#[tokio::test]
async fn outlines_that_are_damaged_name_the_object() {
    let memory = Arc::new(InMemory::new());
    let bucket = bucket(&memory);
    let (descriptor, bytes) = segment(&group(), Generation(1), None, 0);
    let name = SegmentName { claim: ClaimNumber(1), sequence: Sequence(1) };
    let key = bucket.keys().segment(name);
    let candidate = |size_bytes| Candidate { name, size_bytes };
    memory.put(&key, bytes.clone().into()).await.unwrap();
    let (header, trailer) = bucket.outline(candidate(descriptor.size_bytes)).await.unwrap();
    assert_eq!(header.position(trailer.hash), descriptor.position);
    assert_eq!(bucket.position(name).await.unwrap(), Some(descriptor.position));

    let mut damaged = bytes;
    *damaged.last_mut().unwrap() ^= 1;
    for bytes in [damaged, vec![0; 10]] {
        memory.put(&key, bytes.clone().into()).await.unwrap();
        let error = bucket.outline(candidate(bytes.len() as u64)).await.unwrap_err();
        assert!(matches!(error, RoadError::Segment { .. }), "{error}");
        assert!(error.to_string().contains(key.as_ref()));
        assert_eq!(bucket.position(name).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_claim_that_is_missing_between_others_is_an_error() {
    let memory = Arc::new(InMemory::new());
    let bucket = bucket(&memory);
    for number in [1, 3] {
        bucket.put_claim(&claim(number, ClaimKind::Start, None)).await.unwrap();
    }
    let error = bucket.claims().await.unwrap_err();
    assert!(error.to_string().contains("claim 2 of group 'db'"), "{error}");
}

#[tokio::test]
async fn documents_are_put_once_and_read_within_their_limit() {
    let memory = InMemory::new();
    let key = keys().store();
    assert_eq!(read_document::<StoreMark>(&memory, &key).await.unwrap(), None);
    assert_eq!(put_document(&memory, &key, &StoreMark {}).await.unwrap(), Put::Created);
    assert_eq!(put_document(&memory, &key, &StoreMark {}).await.unwrap(), Put::Existed);
    assert_eq!(read_document::<StoreMark>(&memory, &key).await.unwrap(), Some(StoreMark {}));
    memory.put(&key, vec![b' '; 70_000].into()).await.unwrap();
    let error = read_document::<StoreMark>(&memory, &key).await.unwrap_err();
    assert!(matches!(error, RoadError::TooLarge { actual: 70_000, .. }), "{error}");
}
