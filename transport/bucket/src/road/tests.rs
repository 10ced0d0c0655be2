mod checked;
mod faults;
mod fencing;

use journal_format::{Position, Sequence};
use object_store::ObjectStoreExt;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;

use super::*;
use crate::documents::{BucketHeartbeat, Document as _, StoreMark};
use crate::keys::{ClaimNumber, SegmentName};
use crate::rig::{Faults, FaultyStore, JournalState, TestJournal, chain, chain_of, group, keys, source};

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

fn options(store: Arc<dyn ObjectStore>) -> BucketLinkOptions {
    BucketLinkOptions::new(store, keys(), "memory", 1)
}

fn start(options: BucketLinkOptions, name: &str, journals: &[&Arc<TestJournal>]) -> BucketLink {
    let outboxes = journals.iter().map(|&journal| Arc::clone(journal) as Arc<dyn Outbox>).collect();
    BucketLink::start(options, source(name), outboxes, &Handle::current()).unwrap()
}

fn ship(store: &Arc<impl ObjectStore>, journal: &Arc<TestJournal>) -> BucketLink {
    start(options(store.clone()), "pair", &[journal])
}

fn sequences(chain: &[Position]) -> Vec<u64> {
    chain.iter().map(|position| position.sequence.0).collect()
}

#[tokio::test(start_paused = true)]
async fn everything_that_is_sealed_is_received_and_read() {
    let store = memory();
    let journal = TestJournal::new(1, 0);
    journal.seal(20);
    let link = ship(&Arc::new(store.clone()), &journal);
    journal.until_received(20).await;
    journal.seal(3);
    journal.until_received(23).await;
    assert_eq!(sequences(&chain(&store).await), (1..=23).collect::<Vec<_>>());
    assert!(store.get(&keys().store()).await.is_ok());

    let status = link.status().remove(0);
    let head = journal.head();
    assert_eq!((status.head, status.claim, status.puts_under_way), (head, Some(ClaimNumber(2)), 0));
    assert_eq!(status.last_error, None);
    link.shutdown().await;
    journal.read(|state| assert!(matches!(state.links.last(), Some(LinkState::Stopped))));

    let link = ship(&Arc::new(store.clone()), &journal);
    journal.seal(2);
    journal.until_received(25).await;
    link.shutdown().await;
    let all: Vec<Position> = journal.read(|state| state.timeline.values().copied().collect());
    assert_eq!(chain(&store).await, all);
    journal.read(|state| assert_eq!((state.rebases, state.refusals.len()), (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_a_bucket_too() {
    let dir = tempfile::TempDir::new().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(dir.path()).unwrap());
    let journal = TestJournal::new(1, 0);
    for round in 1..=3 {
        journal.seal(4);
        let link = ship(&Arc::new(store.clone()), &journal);
        journal.until_received(round * 4).await;
        link.shutdown().await;
    }
    assert_eq!(sequences(&chain(&store).await), (1..=12).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_idle_group_costs_one_put_for_each_heartbeat() {
    let store = FaultyStore::new(memory(), 1, Faults::default());
    let journal = TestJournal::new(1, 0);
    journal.seal(1);
    let link = ship(&store, &journal);
    journal.until_received(1).await;
    journal.until("the first heartbeat", |state| state.heartbeats == 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = store.requests().len();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(store.requests()[before..], vec!["PUT p/groups/db/heartbeat.json"; 10]);
    link.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn sessions_cost_what_the_document_says() {
    let store = FaultyStore::new(memory(), 1, Faults::default());
    let journal = TestJournal::new(1, 0);
    for (received, expect) in [(0, (2, 1)), (3, (5, 2))] {
        let before = store.requests().len();
        let link = ship(&store, &journal);
        let connected =
            |state: &JournalState| matches!(state.links.last(), Some(LinkState::Connected { .. }));
        journal.until("it is connected", connected).await;
        let requests = store.requests().split_off(before);
        let count = |verb| requests.iter().filter(|request| request.starts_with(verb)).count();
        assert_eq!((count("GET") + count("HEAD"), count("LIST")), expect, "{requests:?}");
        journal.seal(3);
        journal.until_received(received + 3).await;
        link.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_ends_finishes_its_puts_and_says_so() {
    let store = FaultyStore::new(memory(), 3, Faults { slow: 255, ..Faults::default() });
    let journal = TestJournal::new(1, 0);
    journal.seal(8);
    let link = ship(&store, &journal);
    journal.until("it is connected", |state| state.links.len() >= 2).await;
    let first = keys().group(&group()).segment(SegmentName { claim: ClaimNumber(2), sequence: Sequence(1) });
    let first = format!("PUT {first}");
    while !store.requests().contains(&first) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let begun = tokio::time::Instant::now();
    link.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(6));
    assert_eq!(journal.read(|state| state.received()), 8);
    let key = keys().group(&group()).heartbeat();
    assert_eq!(*store.requests().last().unwrap(), format!("PUT {key}"));
    let bytes = store.get(&key).await.unwrap().bytes().await.unwrap();
    let heartbeat = BucketHeartbeat::decode(&key, &bytes).unwrap();
    assert_eq!((heartbeat.number, heartbeat.backlog_segments), (ClaimNumber(2), 0));
    assert_eq!(heartbeat.head, journal.head());
}

#[tokio::test(start_paused = true)]
async fn groups_share_the_puts_and_none_waits_for_all_of_anothers() {
    let store = FaultyStore::new(memory(), 5, Faults { slow: 255, ..Faults::default() });
    let (many, few) = (TestJournal::of("many", 1, 0), TestJournal::of("few", 1, 0));
    many.seal(200);
    few.seal(2);
    let link = start(options(store.clone()), "pair", &[&many, &few]);
    few.until_received(2).await;
    assert!(many.read(|state| state.received()) < 200);
    many.until_received(200).await;
    let store: Arc<dyn ObjectStore> = store;
    assert_eq!(chain_of(&store, few.group()).await.len(), 2);
    link.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_is_named_once() {
    let (one, two) = (TestJournal::new(1, 0), TestJournal::new(1, 0));
    let outboxes: Vec<Arc<dyn Outbox>> = vec![one, two];
    let refused = BucketLink::start(options(memory()), source("pair"), outboxes, &Handle::current());
    assert!(refused.unwrap_err().to_string().contains("'db' is too much"));
}

#[tokio::test(start_paused = true)]
async fn a_bucket_of_a_later_version_is_left_alone() {
    let store = FaultyStore::new(memory(), 1, Faults::default());
    let later = String::from_utf8(StoreMark {}.encode()).unwrap().replace("\"version\":1", "\"version\":2");
    store.put(&keys().store(), later.into()).await.unwrap();
    let journal = TestJournal::new(1, 0);
    let link = ship(&store, &journal);
    journal.until("it failed twice", |state| state.links.len() >= 4).await;
    let puts = store.requests().iter().filter(|request| request.starts_with("PUT")).count();
    assert_eq!(puts, 1, "the test's own");
    assert!(link.status()[0].last_error.as_ref().unwrap().contains("is of version 2"));
    link.shutdown().await;
}
