//! Receipts that the recovery site gives.

use journal_format::Timestamp;
use tempfile::TempDir;
use transport::{Identity, Receipt, RefusalKind};

use super::*;
use crate::documents::Checked;
use crate::lister::replace_document;

struct Lab {
    dir: TempDir,
    store: Arc<FaultyStore>,
    site: Identity,
    journal: Arc<TestJournal>,
}

impl Lab {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let site = Identity::create(&dir.path().join("site"), &"site".parse().unwrap()).unwrap();
        let store = FaultyStore::new(memory(), 1, Faults::default());
        Self { store, site, journal: TestJournal::new(1, 0), dir }
    }

    fn ship(&self) -> BucketLink {
        let site = self.site.fingerprint();
        let receipts = ReceiptRule::Checked { site };
        start(BucketLinkOptions { receipts, ..options(self.store.clone()) }, "pair", &[&self.journal])
    }

    async fn until_put(&self, count: usize) -> Vec<Position> {
        let store: Arc<dyn ObjectStore> = self.store.clone();
        loop {
            let chain = chain(&store).await;
            if chain.len() >= count {
                return chain;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn say(&self, signer: &Identity, position: Position) {
        let receipt = Receipt::sign(signer, group(), position, Timestamp(1));
        let checked = Checked::new(&receipt, &self.site.public_key());
        replace_document(&*self.store, &keys().group(&group()).checked(), &checked).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_the_recovery_site_has_checked_is_received() {
    let lab = Lab::new();
    lab.journal.seal(5);
    let link = lab.ship();
    let chain = lab.until_put(5).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.journal.read(|state| state.received()), 0);
    lab.say(&lab.site, chain[2]).await;
    lab.journal.until_received(3).await;

    let forger = Identity::create(&lab.dir.path().join("forger"), &"site".parse().unwrap()).unwrap();
    lab.say(&forger, chain[4]).await;
    lab.journal.until("it is told", |state| !state.refusals.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    lab.journal.read(|state| {
        assert_eq!(state.received(), 3);
        assert_eq!(state.refusals.len(), 1, "told once");
        assert_eq!(state.refusals[0].kind, RefusalKind::Invalid);
        assert!(state.refusals[0].reason.contains("the signature is wrong"));
    });
    assert!(link.status()[0].last_error.as_ref().unwrap().contains("not signed"));
    lab.say(&lab.site, chain[4]).await;
    lab.journal.until_received(5).await;
    let before = lab.store.requests().len();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert!(lab.store.requests().len() <= before + 1, "nothing is asked while nothing is unconfirmed");
    link.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_session_trims_nothing_that_was_not_checked_and_puts_nothing_twice() {
    let lab = Lab::new();
    lab.journal.seal(5);
    let link = lab.ship();
    let chain = lab.until_put(5).await;
    link.shutdown().await;

    // Nothing is checked.
    let link = lab.ship();
    lab.journal.until("the second session", |state| state.told_heads.len() == 2).await;
    lab.journal.seal(1);
    lab.until_put(6).await;
    link.shutdown().await;
    lab.journal.read(|state| assert_eq!((state.segments.len(), state.base), (6, None)));

    // Some of it is, while the source is away.
    lab.say(&lab.site, chain[1]).await;
    let link = lab.ship();
    lab.journal.until("the third session", |state| state.told_heads.len() == 3).await;
    lab.journal.seal(1);
    let chain = lab.until_put(7).await;
    lab.journal.read(|state| assert_eq!((state.base, state.rebases), (Some(chain[1]), 0)));
    lab.say(&lab.site, chain[5]).await;
    lab.journal.until_received(6).await;
    link.shutdown().await;

    // It was trimmed further than `checked.json` says now.
    lab.say(&lab.site, chain[1]).await;
    let link = lab.ship();
    lab.journal.until("the fourth session", |state| state.told_heads.len() == 4).await;
    lab.journal.read(|state| assert_eq!(state.told_heads[3], Some(chain[5])));
    link.shutdown().await;
    let puts = lab
        .store
        .requests()
        .iter()
        .filter(|request| request.starts_with("PUT") && request.ends_with(".seg"))
        .count();
    assert_eq!(puts, 7);
}

#[tokio::test(start_paused = true)]
async fn a_fenced_source_gets_no_receipt_for_what_was_checked() {
    let lab = Lab::new();
    lab.journal.seal(2);
    let link = lab.ship();
    let chain = lab.until_put(2).await;
    let other = TestJournal::new(2, 7);
    let other_link = start(options(lab.store.clone()), "host-b", &[&other]);
    other.until("it is told the head", |state| state.told_heads.len() == 1).await;
    lab.say(&lab.site, chain[1]).await;
    lab.journal.until("it is fenced", |state| state.is_fenced()).await;
    assert_eq!(lab.journal.read(|state| state.received()), 0);
    link.shutdown().await;
    other_link.shutdown().await;
}
