use std::sync::Arc;
use std::time::Duration;

use journal_format::Sequence;
use tokio::runtime::Runtime;

use crate::testing::{Lab, MemoryOutbox, group, until};
use crate::wire::{Receipt, Refusal, RefusalKind, SiteMessage, preamble};
use crate::{CallAnswer, CallError, CallRequest, Enrolment, LinkError, LinkState, SourceLink};

/// How often the site began to receive each segment of `a`, which is once unless something was sent twice.
fn begun(lab: &Lab, name: &str) -> Vec<u64> {
    let mut begun: Vec<u64> = lab.inbox.0.read(|state| {
        state.begun.iter().filter(|(of, _)| *of == group(name)).map(|(_, sequence)| sequence.0).collect()
    });
    begun.sort_unstable();
    begun
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_sealed_is_shipped_whole_and_confirmed() {
    let lab = Lab::new();
    let server = lab.serve();
    let (a, b) = (MemoryOutbox::new("a"), MemoryOutbox::new("b"));
    a.seal((0..40).map(|index| 1 + index * 20_011));
    b.seal([5_000_000, 1, 128 * 1024]);
    let link = lab.ship(&[&a, &b]);
    a.until_confirmed(40).await;
    b.until_confirmed(3).await;
    a.seal([17, 300_000]);
    a.until_confirmed(42).await;

    lab.inbox.0.read(|site| {
        for (outbox, name) in [(&a, "a"), (&b, "b")] {
            outbox.state.read(|state| {
                for (segment, bytes) in &state.segments {
                    let key = (group(name), segment.position.sequence);
                    assert!(site.segments[&key] == (*segment, bytes.clone()), "{key:?} differs");
                }
            });
        }
    });
    let confirmed: Vec<u64> =
        a.state.read(|state| state.receipts.iter().map(|position| position.sequence.0).collect());
    assert!(confirmed.is_sorted(), "{confirmed:?}");
    lab.inbox.0.until("a heartbeat arrives", |state| !state.heartbeats.is_empty()).await;
    assert_eq!(server.status().borrow().peers[0].groups.len(), 2);
    link.shutdown().await;
    lab.inbox.0.until("both groups are closed", |state| state.closed.len() == 2).await;
    assert!(a.state.read(|state| matches!(state.links.last(), Some(LinkState::Stopped))));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_source_sends_nothing_that_has_a_receipt() {
    let lab = Lab::new();
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([1000; 10]);
    let link = lab.ship(&[&outbox]);
    outbox.until_confirmed(10).await;
    link.shutdown().await;
    outbox.seal([1000; 5]);
    let link = lab.ship(&[&outbox]);
    outbox.until_confirmed(15).await;
    assert_eq!(begun(&lab, "a"), (1..=15).collect::<Vec<_>>());
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_killed_without_goodbye_is_replaced_by_its_next_start() {
    let lab = Lab::new();
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([1000; 3]);
    let source = Runtime::new().unwrap();
    let outboxes = vec![outbox.clone() as Arc<dyn crate::Outbox>];
    let link = SourceLink::start(
        lab.link_options(),
        lab.source.clone(),
        vec![lab.site.fingerprint()],
        outboxes,
        source.handle(),
    );
    outbox.until_confirmed(3).await;
    source.shutdown_background();
    drop(link);
    outbox.seal([1000; 2]);
    let link = lab.ship(&[&outbox]);
    outbox.until_confirmed(5).await;
    assert_eq!(begun(&lab, "a"), [1, 2, 3, 4, 5]);
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_site_is_sent_only_what_it_lacks() {
    let lab = Lab::new();
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([1000; 10]);
    let link = lab.ship(&[&outbox]);
    outbox.until_confirmed(10).await;
    server.shutdown().await;
    outbox.state.until("the loss is told", |state| state.errors().next().is_some()).await;
    assert!(outbox.state.read(|state| matches!(state.errors().next(), Some(LinkError::SiteStopped))));
    outbox.seal([1000; 5]);
    let server = lab.serve();
    outbox.until_confirmed(15).await;
    assert_eq!(begun(&lab, "a"), (1..=15).collect::<Vec<_>>());
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn site_killed_without_goodbye_is_noticed_by_its_stateless_reset() {
    let lab = Lab::new();
    let site = Runtime::new().unwrap();
    let killed = lab.serve_on(site.handle());
    let outbox = MemoryOutbox::new("a");
    outbox.seal([1000; 3]);
    let link = lab.ship(&[&outbox]);
    outbox.until_confirmed(3).await;
    // Ends every task and closes the socket, with no chance to send anything.
    tokio::task::spawn_blocking(move || site.shutdown_timeout(std::time::Duration::from_secs(10)))
        .await
        .unwrap();
    drop(killed);
    let open = lab.inbox.0.change(|state| {
        // The process that would have closed them is gone.
        state.closed = state.opened.clone();
        state.opened.len()
    });
    let server = lab.serve();
    outbox.seal([1000; 2]);
    outbox.until_confirmed(5).await;
    assert!(lab.inbox.0.read(|state| state.opened.len() > open));
    assert!(outbox.state.read(|state| matches!(
        state.errors().next(),
        Some(LinkError::Lost { source: quinn::ConnectionError::Reset, .. })
    )));
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn site_with_another_identity_is_not_used() {
    let lab = Lab::new();
    let server = lab.serve();
    let expected = lab.identity("other-site").fingerprint();
    let outbox = MemoryOutbox::new("a");
    let link = lab.ship_as(&lab.source, expected, &[&outbox]);
    outbox.state.until("the link fails", |state| state.errors().next().is_some()).await;
    outbox.state.read(|state| {
        let error = state.errors().next().unwrap();
        let LinkError::WrongSite { expected: wanted, actual, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!((*wanted, *actual), (expected, lab.site.fingerprint()));
        let text = error.to_string();
        assert!(text.contains(&expected.to_string()) && text.contains(&actual.to_string()), "{text}");
        assert!(!error.to_string().is_empty());
    });
    link.shutdown().await;
    server.shutdown().await;
    assert!(lab.inbox.0.read(|state| state.opened.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_that_is_not_enrolled_is_refused_until_it_is() {
    let lab = Lab::without_enrolment();
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([10]);
    let link = lab.ship(&[&outbox]);
    let own = lab.source.fingerprint();
    let refused = |state: &crate::testing::OutboxState| {
        state.errors().any(|error| matches!(error, LinkError::NotEnrolled { own: told, .. } if *told == own))
    };
    outbox.state.until("the source is refused", refused).await;
    let status = until(&mut server.status(), "the site tells", |status| status.refused.is_some()).await;
    assert_eq!(status.refused.unwrap().fingerprint, Some(own));
    lab.enrol(&lab.source, "pair", &["a"]);
    outbox.until_confirmed(1).await;
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_that_is_not_enrolled_is_refused_until_it_is() {
    let lab = Lab::without_enrolment();
    lab.enrol(&lab.source, "pair", &["a"]);
    let server = lab.serve();
    let (a, c) = (MemoryOutbox::new("a"), MemoryOutbox::new("c"));
    a.seal([10]);
    c.seal([10]);
    let link = lab.ship(&[&a, &c]);
    a.until_confirmed(1).await;
    let refused = |refusal: &Refusal| refusal.kind == RefusalKind::NotEnrolled;
    c.state.until("the group is refused", |state| state.refusals.iter().any(refused)).await;
    lab.enrol(&lab.source, "pair", &["c"]);
    c.until_confirmed(1).await;
    assert_eq!(a.state.read(|state| state.errors().count()), 0, "the other group was not disturbed");
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_enrolment_disconnects() {
    let lab = Lab::new();
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([10]);
    let link = lab.ship(&[&outbox]);
    outbox.until_confirmed(1).await;
    Enrolment::remove(&lab.enrolled(), &crate::testing::peer("pair")).unwrap();
    let removed = |error: &LinkError| matches!(error, LinkError::EnrolmentRemoved);
    outbox.state.until("the source is disconnected", |state| state.errors().any(removed)).await;
    let refused = |error: &LinkError| matches!(error, LinkError::NotEnrolled { .. });
    outbox.state.until("it is not let in again", |state| state.errors().any(refused)).await;
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_list_refuses_new_sources_and_leaves_old_ones() {
    let lab = Lab::new();
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([10]);
    let link = lab.ship(&[&outbox]);
    outbox.until_confirmed(1).await;
    std::fs::write(lab.enrolled(), "version = 1\npeers = 3\n").unwrap();
    let other = MemoryOutbox::new("b");
    let newcomer = lab.identity("newcomer");
    let second = lab.ship_as(&newcomer, lab.site.fingerprint(), &[&other]);
    let refused = |error: &LinkError| matches!(error, LinkError::NotEnrolled { .. });
    other.state.until("the newcomer is refused", |state| state.errors().any(refused)).await;
    outbox.seal([10]);
    outbox.until_confirmed(2).await;
    assert_eq!(outbox.state.read(|state| state.errors().count()), 0);
    second.shutdown().await;
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_connection_of_the_same_identity_replaces_the_older() {
    let lab = Lab::new();
    let server = lab.serve();
    let (older, newer) = (MemoryOutbox::new("a"), MemoryOutbox::new("a"));
    older.seal([10]);
    newer.seal([10, 20]);
    let first = lab.ship(&[&older]);
    older.until_confirmed(1).await;
    let second = lab.ship(&[&newer]);
    let replaced = |error: &LinkError| matches!(error, LinkError::Replaced);
    older.state.until("the older is told", |state| state.errors().any(replaced)).await;
    first.shutdown().await;
    newer.until_confirmed(2).await;
    second.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_segment_is_told_and_sent_again() {
    let lab = Lab::new();
    let full = Refusal::new(RefusalKind::Full, "the disk is full", "make room");
    lab.inbox.0.change(|state| state.refuse.insert(Sequence(3), full.clone()));
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([70_000; 6]);
    let link = lab.ship(&[&outbox]);
    outbox.until_confirmed(6).await;
    let refusals = outbox.state.read(|state| state.refusals.clone());
    assert_eq!(refusals, [full.of_segment(Sequence(3))]);
    assert_eq!(outbox.state.read(|state| state.errors().count()), 0, "the connection stayed");
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segment_shorter_than_its_descriptor_is_told_as_damage() {
    let lab = Lab::new();
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([70_000; 2]);
    outbox.state.change(|state| state.segments[1].1.truncate(60_000));
    let link = lab.ship(&[&outbox]);
    outbox.state.until("the damage is told", |state| !state.refusals.is_empty()).await;
    let refusal = outbox.state.read(|state| state.refusals[0].clone());
    assert_eq!((refusal.kind, refusal.sequence), (RefusalKind::Corrupt, Some(Sequence(2))));
    link.shutdown().await;
    server.shutdown().await;
}

/// A site that sends what a test wants it to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipt_with_a_wrong_signature_is_ignored_and_reported() {
    let lab = Lab::new();
    let enrolment = Enrolment::load(&lab.enrolled()).unwrap();
    let (crypto, _) = crate::tls::site_config(&lab.site, enrolment).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = crate::quic::site_endpoint(
        crate::Network::bind(&crate::SystemNetwork, "127.0.0.1:0".parse().unwrap()).unwrap(),
        &lab.site,
        config,
    )
    .unwrap();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([10, 20]);
    let options = crate::LinkOptions {
        site: endpoint.local_addr().unwrap().to_string(),
        ..crate::LinkOptions::new("", 1)
    };
    let link = SourceLink::start(
        options,
        lab.source.clone(),
        vec![lab.site.fingerprint()],
        vec![outbox.clone() as Arc<dyn crate::Outbox>],
        &tokio::runtime::Handle::current(),
    )
    .unwrap();

    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let (mut control, _recv) = connection.accept_bi().await.unwrap();
    let welcome = SiteMessage::Welcome { software: String::new(), head: None, partials: Vec::new() };
    control.write_all(&preamble()).await.unwrap();
    crate::frames::write_message(&mut control, &welcome).await.unwrap();
    let position = |index: usize| outbox.state.read(|state| state.segments[index].0.position);
    let sign = |identity: &crate::Identity, index| {
        Receipt::sign(identity, group("a"), position(index), journal_format::Timestamp(1))
    };
    let mut receipts = connection.open_uni().await.unwrap();
    let altered = Receipt { position: position(1), ..sign(&lab.site, 0) };
    for receipt in [sign(&lab.source, 1), altered, sign(&lab.site, 0)] {
        crate::frames::write_message(&mut receipts, &receipt).await.unwrap();
    }
    outbox.until_confirmed(1).await;
    outbox.state.read(|state| {
        assert_eq!(state.receipts, [sign(&lab.site, 0).position]);
        assert_eq!(state.refusals.len(), 2);
        assert!(state.refusals.iter().all(|refusal| refusal.kind == RefusalKind::Corrupt));
    });
    link.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_text_of_any_length_is_shortened() {
    let lab = Lab::new();
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([10]);
    let options = crate::LinkOptions { software: "é".repeat(50_000), ..lab.link_options() };
    let link = lab.ship_with(options, &lab.source, lab.site.fingerprint(), &[&outbox]);
    outbox.until_confirmed(1).await;
    assert_eq!(outbox.state.read(|state| state.errors().count()), 0);
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_group_cannot_be_shipped_twice() {
    let lab = Lab::new();
    let _server = lab.serve();
    let outboxes = vec![MemoryOutbox::new("a") as Arc<dyn crate::Outbox>, MemoryOutbox::new("a")];
    let error = SourceLink::start(
        lab.link_options(),
        lab.source.clone(),
        vec![lab.site.fingerprint()],
        outboxes,
        &tokio::runtime::Handle::current(),
    )
    .unwrap_err();
    assert!(matches!(error, LinkError::Groups { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_while_the_group_is_open_and_only_then() {
    let lab = Lab::new();
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([1000]);
    let link = lab.ship(&[&outbox]);
    assert!(link.caller(&group("z")).is_none());
    let caller = link.caller(&group("a")).unwrap();
    outbox.until_confirmed(1).await;
    let asking = caller.clone();
    tokio::task::spawn_blocking(move || {
        let many: Vec<_> = (0..200u8).map(|byte| asking.start(CallRequest::Pair(vec![byte; 1000]))).collect();
        for (byte, call) in many.into_iter().enumerate() {
            let answer = call.wait(Duration::from_secs(20)).unwrap();
            assert_eq!(answer, CallAnswer::Pair(vec![byte as u8; 1000]));
        }
    })
    .await
    .unwrap();
    server.shutdown().await;
    outbox
        .state
        .until("the link is gone", |state| matches!(state.links.last(), Some(LinkState::Disconnected(_))))
        .await;
    let refused = tokio::task::spawn_blocking(move || {
        caller.call(CallRequest::Pair(Vec::new()), Duration::from_secs(5))
    });
    assert!(matches!(refused.await.unwrap(), Err(CallError::NotConnected)));
    link.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_pins_both_keys_of_a_site_that_changes_its_own() {
    let lab = Lab::new();
    let server = lab.serve();
    let next = lab.identity("next");
    let start = |sites| {
        let outbox = MemoryOutbox::new("a");
        outbox.seal([1000]);
        let outboxes = vec![outbox.clone() as Arc<dyn crate::Outbox>];
        let runtime = tokio::runtime::Handle::current();
        (SourceLink::start(lab.link_options(), lab.source.clone(), sites, outboxes, &runtime), outbox)
    };
    let own = lab.site.fingerprint();
    for sites in [vec![own, next.fingerprint()], vec![next.fingerprint(), own]] {
        let (link, outbox) = start(sites);
        outbox.until_confirmed(1).await;
        link.unwrap().shutdown().await;
    }
    for sites in [vec![], vec![own; 3]] {
        let actual = sites.len();
        assert!(matches!(start(sites).0, Err(LinkError::Sites { actual: found }) if found == actual));
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_changes_its_key_without_a_pause_and_the_old_one_is_then_refused() {
    let lab = Lab::new();
    let server = lab.serve();
    let next = lab.identity("next");
    let name = "pair".parse().unwrap();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([1000]);
    let old = lab.ship(&[&outbox]);
    outbox.until_confirmed(1).await;
    Enrolment::rotate(&lab.enrolled(), &name, Some(next.fingerprint())).unwrap();
    let with_old = MemoryOutbox::new("b");
    with_old.seal([1000]);
    old.shutdown().await;
    let new = lab.ship_as(&next, lab.site.fingerprint(), &[&outbox]);
    outbox.seal([1000]);
    outbox.until_confirmed(2).await;
    new.shutdown().await;
    let old = lab.ship(&[&with_old]);
    with_old.until_confirmed(1).await;
    Enrolment::rotate(&lab.enrolled(), &name, None).unwrap();
    let refused =
        |error: &LinkError| matches!(error, LinkError::NotEnrolled { .. } | LinkError::EnrolmentRemoved);
    with_old.state.until("the old key is refused", |state| state.errors().any(refused)).await;
    old.shutdown().await;
    server.shutdown().await;
}
