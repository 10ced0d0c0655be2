use std::iter;

use journal_format::{Epoch, Generation, Hash};

use super::*;
use crate::testing::{group, heartbeat, segment};
use crate::wire::Hello;

const SEGMENT_BYTES_MAX: u64 = 1000;
const NOW: Timestamp = Timestamp(77);

fn new() -> SiteSession {
    SiteSession::new("thirdsite 9".into(), SEGMENT_BYTES_MAX)
}

fn hello() -> SourceMessage {
    SourceMessage::Hello(Hello {
        software: String::new(),
        group: group("a"),
        generation: Generation(1),
        head: None,
        oldest: Sequence(1),
    })
}

fn at(generation: u64, sequence: u64) -> Position {
    Position {
        generation: Generation(generation),
        sequence: Sequence(sequence),
        epoch: Epoch(sequence),
        hash: Hash::of(&sequence.to_le_bytes()),
    }
}

fn actions(session: &mut SiteSession) -> Vec<SiteAction> {
    iter::from_fn(|| session.poll_action()).collect()
}

fn refused(refusal: &Refusal) -> [SiteAction; 2] {
    [SiteAction::Send(SiteMessage::Refused(refusal.clone())), SiteAction::End]
}

/// A session that is open with this head, and has nothing more to do.
fn open(head: Option<Position>) -> SiteSession {
    let mut session = new();
    session.handle_version(PROTOCOL_VERSION);
    session.handle_message(hello(), NOW);
    session.handle_opened(Ok((head, Vec::new())));
    actions(&mut session);
    session
}

/// Nothing that a source sends moves a session that is over.
fn check_over(session: &mut SiteSession) {
    session.handle_version(PROTOCOL_VERSION + 1);
    session.handle_message(hello(), NOW);
    session.handle_message(SourceMessage::Heartbeat(heartbeat()), NOW);
    session.handle_message(SourceMessage::Goodbye, NOW);
    session.handle_opened(Ok((None, Vec::new())));
    assert!(!session.handle_offer(&segment(1, 10, Hash::ZERO).0));
    session.handle_refused(Sequence(1), Refusal::new(RefusalKind::Full, "full", ""));
    session.handle_shutdown();
    session.handle_lost();
    assert_eq!(actions(session), []);
}

#[test]
fn welcome_tells_the_head_and_its_receipt_follows() {
    let mut session = new();
    session.handle_version(PROTOCOL_VERSION);
    session.handle_message(hello(), NOW);
    assert_eq!(actions(&mut session), [SiteAction::Open(group("a"), Generation(1))]);
    session.handle_opened(Ok((Some(at(1, 7)), Vec::new())));
    let welcome =
        SiteMessage::Welcome { software: "thirdsite 9".into(), head: Some(at(1, 7)), partials: Vec::new() };
    assert_eq!(actions(&mut session), [SiteAction::Send(welcome), SiteAction::Receipt(at(1, 7))]);
}

#[test]
fn empty_group_is_welcomed_without_a_receipt() {
    let mut session = new();
    session.handle_message(hello(), NOW);
    actions(&mut session);
    session.handle_opened(Ok((None, Vec::new())));
    let welcome = SiteMessage::Welcome { software: "thirdsite 9".into(), head: None, partials: Vec::new() };
    assert_eq!(actions(&mut session), [SiteAction::Send(welcome)]);
}

#[test]
fn other_version_is_refused_with_both_versions() {
    let mut session = new();
    session.handle_version(PROTOCOL_VERSION + 4);
    let actions = actions(&mut session);
    let [SiteAction::Send(SiteMessage::Refused(refusal)), SiteAction::End] = &*actions else {
        panic!("{actions:?}");
    };
    assert_eq!((refusal.kind, refusal.sequence), (RefusalKind::Version, None));
    assert!(refusal.reason.contains("version 5") && refusal.reason.contains("site 1"), "{refusal}");
    check_over(&mut session);
}

#[test]
fn group_that_is_not_opened_is_refused() {
    let mut session = new();
    session.handle_message(hello(), NOW);
    actions(&mut session);
    let refusal = Refusal::new(RefusalKind::NotEnrolled, "not enrolled", "enroll it");
    session.handle_opened(Err(refusal.clone()));
    assert_eq!(actions(&mut session), refused(&refusal));
    check_over(&mut session);
}

#[test]
fn heartbeat_is_handed_on_and_answered_with_both_times() {
    let mut session = open(None);
    session.handle_message(SourceMessage::Heartbeat(heartbeat()), NOW);
    let pong = SiteMessage::Pong { heartbeat: Timestamp(5), now: NOW };
    assert_eq!(actions(&mut session), [SiteAction::Heartbeat(heartbeat()), SiteAction::Send(pong)]);
}

#[test]
fn message_out_of_place_breaks_the_protocol() {
    let mut opening = new();
    opening.handle_message(hello(), NOW);
    actions(&mut opening);
    let cases = [(new(), SourceMessage::Heartbeat(heartbeat())), (opening, hello()), (open(None), hello())];
    for (mut session, message) in cases {
        session.handle_message(message, NOW);
        assert!(matches!(*actions(&mut session), [SiteAction::Violation(_)]));
        check_over(&mut session);
    }
}

#[test]
fn segment_is_looked_at_only_while_the_group_is_open() {
    let (offer, _) = segment(1, 10, Hash::ZERO);
    let mut session = new();
    assert!(!session.handle_offer(&offer));
    session.handle_message(hello(), NOW);
    assert!(!session.handle_offer(&offer));
    session.handle_opened(Ok((None, Vec::new())));
    assert!(session.handle_offer(&offer));
    session.handle_lost();
    assert!(!session.handle_offer(&offer));
}

#[test]
fn segment_of_a_size_that_is_not_taken_is_refused() {
    assert!(open(None).handle_offer(&segment(4, 1, Hash::ZERO).0));
    assert!(open(None).handle_offer(&segment(4, 1000, Hash::ZERO).0));
    for size in [0, 1001, u64::MAX] {
        let mut session = open(None);
        let offer = SegmentDescriptor { size_bytes: size, ..segment(4, 10, Hash::ZERO).0 };
        assert!(!session.handle_offer(&offer));
        let actions = actions(&mut session);
        let [SiteAction::Send(SiteMessage::Refused(refusal)), SiteAction::End] = &*actions else {
            panic!("{actions:?}");
        };
        assert_eq!((refusal.kind, refusal.sequence), (RefusalKind::Invalid, Some(Sequence(4))));
        assert!(refusal.reason.contains(&size.to_string()) && refusal.reason.contains("1000"), "{refusal}");
        check_over(&mut session);
    }
}

#[test]
fn receipts_name_the_contiguous_head_and_only_when_it_goes_on() {
    let mut session = open(None);
    // What was committed waits for its parent.
    session.handle_committed(None);
    assert_eq!(actions(&mut session), []);
    // Two commits whose answers arrive in the other order.
    session.handle_committed(Some(at(1, 3)));
    session.handle_committed(Some(at(1, 1)));
    session.handle_committed(Some(at(1, 3)));
    session.handle_committed(None);
    assert_eq!(actions(&mut session), [SiteAction::Receipt(at(1, 3))]);
    session.handle_committed(Some(at(1, 4)));
    assert_eq!(actions(&mut session), [SiteAction::Receipt(at(1, 4))]);
    // A newer generation branches off earlier in the chain.
    session.handle_committed(Some(at(2, 2)));
    session.handle_committed(Some(at(1, 5)));
    assert_eq!(actions(&mut session), [SiteAction::Receipt(at(2, 2))]);
}

#[test]
fn segment_that_is_here_repeats_the_newest_receipt() {
    let mut session = open(Some(at(1, 5)));
    session.handle_had(Some(at(1, 3)));
    session.handle_had(Some(at(1, 6)));
    assert_eq!(actions(&mut session), [SiteAction::Receipt(at(1, 5)), SiteAction::Receipt(at(1, 6))]);
    let mut session = open(None);
    session.handle_had(None);
    assert_eq!(actions(&mut session), []);
}

#[test]
fn refused_segment_is_named_and_only_the_first_refusal_is_sent() {
    let kinds = [
        RefusalKind::Full,
        RefusalKind::Diverged,
        RefusalKind::Fenced,
        RefusalKind::Corrupt,
        RefusalKind::Retry,
    ];
    for kind in kinds {
        let mut session = open(Some(at(1, 5)));
        session.handle_refused(Sequence(6), Refusal::new(kind, "why", "what to do"));
        session.handle_refused(Sequence(7), Refusal::new(kind, "also", ""));
        let expected = Refusal::new(kind, "why", "what to do").of_segment(Sequence(6));
        assert_eq!(actions(&mut session), refused(&expected));
        check_over(&mut session);
    }
}

#[test]
fn commit_that_ends_after_the_session_still_gets_its_receipt() {
    let mut session = open(Some(at(1, 5)));
    session.handle_refused(Sequence(8), Refusal::new(RefusalKind::Full, "full", ""));
    actions(&mut session);
    session.handle_committed(Some(at(1, 6)));
    session.handle_committed(Some(at(1, 7)));
    assert_eq!(actions(&mut session), [SiteAction::Receipt(at(1, 6)), SiteAction::Receipt(at(1, 7))]);
}

#[test]
fn goodbye_is_answered_and_a_loss_is_not() {
    let goodbye = [SiteAction::Send(SiteMessage::Goodbye), SiteAction::End];
    for mut session in [new(), open(None)] {
        session.handle_message(SourceMessage::Goodbye, NOW);
        assert_eq!(actions(&mut session), goodbye);
        check_over(&mut session);
    }
    let mut stopping = open(None);
    stopping.handle_shutdown();
    assert_eq!(actions(&mut stopping), goodbye);
    check_over(&mut stopping);
    let mut lost = open(None);
    lost.handle_lost();
    assert_eq!(actions(&mut lost), [SiteAction::End]);
    check_over(&mut lost);
}

#[test]
fn group_that_is_opened_after_the_source_has_gone_is_not_welcomed() {
    let mut session = new();
    session.handle_message(hello(), NOW);
    session.handle_lost();
    actions(&mut session);
    session.handle_opened(Ok((Some(at(1, 5)), Vec::new())));
    assert_eq!(actions(&mut session), []);
}
