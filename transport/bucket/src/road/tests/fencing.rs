//! Two writers of one group: exactly one goes on.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_newer_generation_takes_over_behind_what_was_received() {
    let store = memory();
    let (old, new) = (TestJournal::new(1, 1), TestJournal::new(2, 2));
    old.seal(5);
    let old_link = start(options(store.clone()), "host-a", &[&old]);
    old.until_received(5).await;
    let new_link = start(options(store.clone()), "host-b", &[&new]);
    new.until("it was told the head", |state| state.told_heads.len() == 1).await;
    new.seal(3);
    new.until_received(8).await;

    old.seal(2);
    old.until("it is fenced", |state| state.is_fenced()).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(old.read(|state| state.received()), 5);
    assert!(old_link.status()[0].last_error.as_ref().unwrap().contains("'host-b' took over group 'db'"));
    let chain = chain(&store).await;
    assert_eq!(
        chain.iter().map(|position| position.generation.0).collect::<Vec<_>>(),
        [1, 1, 1, 1, 1, 2, 2, 2]
    );

    // It comes back as soon as it writes a newer generation.
    old.change(|state| state.generation = journal_format::Generation(3));
    old.until("it goes on", |state| state.rebases == 1).await;
    old.seal(1);
    old.until_received(9).await;
    new.seal(1);
    new.until("it is fenced in its turn", |state| state.is_fenced()).await;
    old_link.shutdown().await;
    new_link.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_fenced_source_asks_for_nothing() {
    let store = FaultyStore::new(memory(), 1, Faults::default());
    let (old, new) = (TestJournal::new(1, 1), TestJournal::new(2, 2));
    let new_link = start(options(store.clone()), "host-b", &[&new]);
    new.until("it is connected", |state| state.told_heads.len() == 1).await;
    new.seal(1);
    new.until_received(1).await;
    new_link.shutdown().await;
    let old_link = start(options(store.clone()), "host-a", &[&old]);
    old.until("it is fenced", |state| state.is_fenced()).await;
    let before = store.requests().len();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(store.requests().len(), before);
    old_link.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn another_source_of_the_same_generation_is_refused() {
    let store = memory();
    let (first, second) = (TestJournal::new(1, 1), TestJournal::new(1, 2));
    first.seal(1);
    let first_link = start(options(store.clone()), "host-a", &[&first]);
    first.until_received(1).await;
    let second_link = start(options(store.clone()), "host-b", &[&second]);
    second.until("it is fenced", |state| state.is_fenced()).await;
    first.seal(1);
    first.until_received(2).await;
    second.read(|state| assert!(state.told_heads.is_empty()));
    first_link.shutdown().await;
    second_link.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_process_of_a_source_takes_over_from_the_first_for_good() {
    let store = memory();
    let (first, second) = (TestJournal::new(1, 1), TestJournal::new(1, 2));
    first.seal(1);
    let first_link = start(options(store.clone()), "pair", &[&first]);
    first.until_received(1).await;
    let second_link = start(options(store.clone()), "pair", &[&second]);
    second.until("it was told the head", |state| state.told_heads.len() == 1).await;
    second.seal(1);
    second.until_received(2).await;
    first.seal(1);
    first.until("it is fenced", |state| state.is_fenced()).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    second.seal(1);
    second.until_received(3).await;
    assert!(!second.read(|state| state.is_fenced()));
    first_link.shutdown().await;
    second_link.shutdown().await;
}

/// Both write from the beginning, with a store that is slow in a way that the seed decides.
async fn race(seed: u64, generations: [u64; 2], names: [&str; 2]) {
    let store = FaultyStore::new(memory(), seed, Faults { slow: 200, unlisted: 60, ..Faults::default() });
    let journals = [TestJournal::new(generations[0], 1), TestJournal::new(generations[1], 2)];
    let links = [0, 1].map(|at| {
        journals[at].seal(1 + (seed + at as u64) % 3);
        start(options(store.clone()), names[at], &[&journals[at]])
    });
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(seed % 90)).await;
        journals.iter().for_each(|journal| journal.seal(1));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    journals.iter().for_each(|journal| journal.seal(1));
    tokio::time::sleep(Duration::from_secs(60)).await;
    for link in links {
        link.shutdown().await;
    }
    let fenced: Vec<bool> = journals.iter().map(|journal| journal.read(|state| state.is_fenced())).collect();
    assert_eq!(fenced.iter().filter(|&&fenced| fenced).count(), 1, "seed {seed}: exactly one goes on");
    let store: Arc<dyn ObjectStore> = store;
    let chain = chain(&store).await;
    for journal in &journals {
        for received in journal.read(|state| state.receipts.clone()) {
            assert!(chain.contains(&received), "seed {seed}: {received} was received");
        }
    }
    let winner = &journals[usize::from(fenced[0])];
    assert_eq!(chain.last().copied(), winner.head(), "seed {seed}");
    assert_eq!(winner.read(|state| state.base), winner.head(), "seed {seed}: everything is received");
}

#[tokio::test(start_paused = true)]
async fn of_two_that_begin_at_once_exactly_one_goes_on() {
    for seed in 0..60 {
        race(seed, [1, 2], ["host-a", "host-b"]).await;
        race(seed, [1, 1], ["pair", "pair"]).await;
        race(seed, [1, 1], ["host-a", "host-b"]).await;
    }
}
