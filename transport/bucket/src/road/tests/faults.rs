//! Kills, lost answers, late listings, a busy server, and objects that are there already.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::rig::random;

const ALL: Faults = Faults { refused: 20, lost: 20, repeated: 30, unlisted: 80, slow: 60 };

/// The chain is a prefix of what was sealed, and covers everything that was received.
async fn check(store: &Arc<dyn ObjectStore>, journal: &TestJournal, seed: u64) {
    let chain = chain(store).await;
    let sealed: Vec<Position> = journal.read(|state| state.timeline.values().copied().collect());
    assert!(chain.len() <= sealed.len(), "seed {seed}");
    assert_eq!(chain, sealed[..chain.len()], "seed {seed}: the chain is what was sealed");
    let received = journal.read(|state| state.base);
    assert!(
        received.is_none_or(|received| chain.contains(&received)),
        "seed {seed}: {received:?} is in the chain"
    );
}

#[tokio::test(start_paused = true)]
async fn a_kill_at_any_step_loses_nothing_that_was_received() {
    let mut kills = 0;
    for seed in 0..200 {
        let choices = AtomicU64::new(seed);
        let inner = memory();
        let journal = TestJournal::new(1, 0);
        let store = FaultyStore::new(inner.clone(), seed, ALL);
        for _ in 0..8 {
            let link = ship(&store, &journal);
            let until = store.requests().len() + random(&choices) as usize % 30;
            journal.seal(random(&choices) % 6);
            if random(&choices).is_multiple_of(4) {
                journal
                    .until("it is connected", |state| {
                        matches!(state.links.last(), Some(LinkState::Connected { .. }))
                    })
                    .await;
                journal.seal(2);
            }
            tokio::select! {
                () = store.until_requests(until) => kills += 1,
                () = tokio::time::sleep(Duration::from_secs(50)) => {}
            }
            drop(link);
            check(&inner, &journal, seed).await;
        }
        store.set_faults(Faults::default());
        journal.seal(1);
        let link = ship(&store, &journal);
        let head = journal.head();
        journal.until("everything is received", |state| state.base == head).await;
        link.shutdown().await;
        check(&inner, &journal, seed).await;
        assert_eq!(chain(&inner).await.last().copied(), head, "seed {seed}");
        journal.read(|state| assert_eq!((state.rebases, state.is_fenced()), (0, false), "seed {seed}"));
    }
    assert!(kills > 1000, "only {kills} were killed in the middle of something");
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_only_costs_time() {
    let store = FaultyStore::new(memory(), 11, Faults { refused: 60, ..Faults::default() });
    let journal = TestJournal::new(1, 0);
    let link = ship(&store, &journal);
    for round in 1..=10 {
        journal.seal(3);
        journal.until_received(round * 3).await;
    }
    journal.read(|state| {
        let down = state.links.iter().filter(|state| matches!(state, LinkState::Disconnected(_))).count();
        assert!(down > 0 && state.refusals.is_empty());
    });
    link.shutdown().await;
    store.set_faults(Faults::default());
    let store: Arc<dyn ObjectStore> = store;
    assert_eq!(chain(&store).await.len(), 30);
}

async fn put_before(store: &Arc<dyn ObjectStore>, bytes: Vec<u8>) {
    let name = SegmentName { claim: ClaimNumber(2), sequence: Sequence(1) };
    store.put(&keys().group(&group()).segment(name), bytes.into()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_object_with_the_same_bytes_counts_as_put() {
    let store = memory();
    let journal = TestJournal::new(1, 0);
    journal.seal(2);
    put_before(&store, journal.read(|state| state.segments[0].1.clone())).await;
    let link = ship(&Arc::new(store.clone()), &journal);
    journal.until_received(2).await;
    assert_eq!(link.status()[0].claim, Some(ClaimNumber(2)));
    link.shutdown().await;
    assert_eq!(chain(&store).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_object_with_other_bytes_is_told_and_gone_around() {
    let store = memory();
    let (journal, other) = (TestJournal::new(1, 0), TestJournal::new(1, 1));
    journal.seal(2);
    other.seal(1);
    put_before(&store, other.read(|state| state.segments[0].1.clone())).await;
    let link = ship(&Arc::new(store.clone()), &journal);
    journal
        .until("it was told", |state| {
            state.links.iter().any(|state| match state {
                LinkState::Disconnected(error) => std::error::Error::source(&**error).is_some_and(|source| {
                    source.to_string().contains("exists in the bucket with other bytes")
                }),
                _ => false,
            })
        })
        .await;
    journal.until("the next session has it", |state| state.rebases == 1).await;
    journal.seal(1);
    journal.until_received(2).await;
    link.shutdown().await;
    assert_eq!(chain(&store).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_segment_in_the_journal_is_not_put() {
    let store = memory();
    let journal = TestJournal::new(1, 0);
    journal.seal(1);
    journal.change(|state| *state.segments[0].1.last_mut().unwrap() ^= 1);
    let link = ship(&Arc::new(store.clone()), &journal);
    journal.until("it is refused", |state| !state.refusals.is_empty()).await;
    journal.read(|state| {
        let refusal = &state.refusals[0];
        assert_eq!((refusal.kind, refusal.sequence), (transport::RefusalKind::Corrupt, Some(Sequence(1))));
    });
    link.shutdown().await;
    assert!(chain(&store).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_was_made_anew_goes_on_behind_the_head() {
    let store = memory();
    let journal = TestJournal::new(1, 0);
    journal.seal(3);
    let link = ship(&Arc::new(store.clone()), &journal);
    journal.until_received(3).await;
    link.shutdown().await;
    let anew = TestJournal::new(1, 9);
    anew.seal(1);
    let link = ship(&Arc::new(store.clone()), &anew);
    anew.until("it is rebased", |state| state.rebases == 1).await;
    anew.seal(2);
    anew.until_received(5).await;
    link.shutdown().await;
    assert_eq!(sequences(&chain(&store).await), [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_new_generation_of_the_same_journal_claims_again() {
    let store = memory();
    let journal = TestJournal::new(1, 0);
    journal.seal(1);
    let link = ship(&Arc::new(store.clone()), &journal);
    journal.until_received(1).await;
    // What was sealed by the older generation is put by the newer one.
    journal.seal(1);
    journal.change(|state| state.generation = journal_format::Generation(2));
    journal.seal(1);
    journal.until_received(3).await;
    assert_eq!(link.status()[0].generation, Some(journal_format::Generation(2)));
    link.shutdown().await;
    let generations: Vec<u64> = chain(&store).await.iter().map(|position| position.generation.0).collect();
    assert_eq!(generations, [1, 1, 2]);
}
