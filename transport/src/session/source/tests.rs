use std::iter;

use journal_format::{Epoch, Generation, Hash, Timestamp};

use super::*;
use crate::identity::Signature;
use crate::testing::{REFUSAL_KINDS, group, heartbeat, segment};

const OPTIONS: SourceSessionOptions = SourceSessionOptions {
    heartbeat_interval: Duration::from_secs(2),
    writing_max: 3,
    unconfirmed_max: 5,
    receipt_timeout: Duration::from_secs(60),
    silence_timeout: Duration::from_secs(120),
    segment_bytes_max: 1000,
};

/// A session in virtual time.
struct Rig {
    session: SourceSession,
    now: Instant,
}

fn hello() -> Hello {
    Hello {
        software: "thirdsite 9".into(),
        group: group("a"),
        generation: Generation(1),
        head: Some(at(9)),
        oldest: Sequence(4),
    }
}

fn at(sequence: u64) -> Position {
    Position { generation: Generation(1), ..segment(sequence, 10, Hash::ZERO).0.position }
}

fn receipt_at(position: Position) -> Receipt {
    Receipt { group: group("a"), position, time: Timestamp(1), signature: Signature([0; 64]) }
}

fn receipt(sequence: u64) -> Receipt {
    receipt_at(at(sequence))
}

fn pong() -> SiteMessage {
    SiteMessage::Pong { heartbeat: Timestamp(5), now: Timestamp(6) }
}

fn welcome(head: Option<Position>) -> SiteMessage {
    SiteMessage::Welcome { software: "thirdsite 8".into(), head, partials: Vec::new() }
}

fn fetch(from: u64, limit: usize) -> SourceAction {
    SourceAction::Fetch { from: Sequence(from), limit }
}

fn over(refusal: &Refusal) -> [SourceAction; 2] {
    [SourceAction::Report(refusal.clone()), SourceAction::End(SourceEnd::Refused)]
}

impl Rig {
    /// A session that waits for Welcome.
    fn greeting() -> Self {
        let now = Instant::now();
        let mut rig = Self { session: SourceSession::new(OPTIONS, hello(), now), now };
        assert_eq!(rig.actions(), [SourceAction::Send(SourceMessage::Hello(hello()))]);
        rig.session.handle_version(PROTOCOL_VERSION);
        rig
    }

    /// A session that has asked for what is sealed from `next` on.
    fn open(next: u64) -> Self {
        let mut rig = Self::greeting();
        let head = (next > 1).then(|| at(next - 1));
        rig.site(welcome(head));
        assert_eq!(rig.actions(), [SourceAction::Opened(head), SourceAction::Resume(head)]);
        rig.session.handle_resumed(Ok(Sequence(next)), rig.now);
        assert_eq!(rig.actions(), [SourceAction::Heartbeat, fetch(next, 3)]);
        rig
    }

    fn actions(&mut self) -> Vec<SourceAction> {
        iter::from_fn(|| self.session.poll_action()).collect()
    }

    fn site(&mut self, message: SiteMessage) {
        self.session.handle_message(message, self.now);
    }

    /// Answers a fetch; the outbox has these sequences.
    fn pending(&mut self, sequences: impl IntoIterator<Item = u64>, limit: usize) -> Vec<SourceAction> {
        let segments = sequences.into_iter().map(|sequence| segment(sequence, 10, Hash::ZERO).0).collect();
        self.session.handle_pending(segments, limit, self.now);
        self.actions()
    }

    fn written(&mut self, sequence: u64) -> Vec<SourceAction> {
        self.session.handle_written(Sequence(sequence), self.now);
        self.actions()
    }

    fn delivered(&mut self, sequence: u64) -> Vec<SourceAction> {
        self.session.handle_delivered(Sequence(sequence), self.now);
        self.actions()
    }

    fn receipt(&mut self, sequence: u64) -> Vec<SourceAction> {
        self.session.handle_receipt(receipt(sequence), self.now);
        self.actions()
    }

    fn fail(&mut self, failure: WriteFailure) -> Vec<SourceAction> {
        self.session.handle_write_failed(failure, self.now);
        self.actions()
    }

    /// Lets the time pass that the session asked for; answers how long that was.
    fn pass(&mut self) -> Duration {
        let due = self.session.poll_timeout().expect("the session waits for something");
        let passed = due - self.now;
        self.now = due;
        self.session.handle_timeout(self.now);
        passed
    }

    /// The same, with heartbeats that the site answers, until there is something else to do.
    fn pass_with_heartbeats(&mut self) -> (Duration, Vec<SourceAction>) {
        let mut passed = Duration::ZERO;
        loop {
            passed += self.pass();
            let actions = self.actions();
            if actions != [SourceAction::Heartbeat] {
                return (passed, actions);
            }
            self.site(pong());
        }
    }

    /// Nothing moves a session that is over.
    fn check_over(&mut self) {
        self.session.handle_version(PROTOCOL_VERSION + 1);
        for message in [welcome(None), pong(), SiteMessage::Goodbye, SiteMessage::Refused(refusal())] {
            self.site(message);
        }
        self.session.handle_resumed(Ok(Sequence(1)), self.now);
        self.session.handle_heartbeat(heartbeat());
        self.session.handle_sealed();
        self.session.handle_lost();
        self.session.handle_shutdown();
        self.session.handle_timeout(self.now + Duration::from_secs(3600));
        self.fail(WriteFailure::Local(refusal()));
        self.pending([1, 2, 3], 3);
        self.written(1);
        self.delivered(1);
        self.receipt(1);
        assert_eq!(self.actions(), []);
        assert_eq!(self.session.poll_timeout(), None);
    }
}

fn refusal() -> Refusal {
    Refusal::new(RefusalKind::Full, "the disk is full", "make room")
}

/// The sequences of actions that are all Ship.
fn shipped(actions: &[SourceAction]) -> Vec<u64> {
    let sequence = |action: &SourceAction| match action {
        SourceAction::Ship(segment) => segment.position.sequence.0,
        other => panic!("{other:?} instead of Ship"),
    };
    actions.iter().map(sequence).collect()
}

#[test]
fn session_goes_on_where_the_outbox_says() {
    let mut rig = Rig::greeting();
    rig.session.handle_sealed();
    assert_eq!(rig.actions(), [], "nothing is sent before the site's head is known");
    rig.site(welcome(Some(at(5))));
    assert_eq!(rig.actions(), [SourceAction::Opened(Some(at(5))), SourceAction::Resume(Some(at(5)))]);
    rig.session.handle_sealed();
    assert_eq!(rig.actions(), [], "nothing is sent before the outbox has looked at the head");
    // A rebase may answer another one than the head's next.
    rig.session.handle_resumed(Ok(Sequence(8)), rig.now);
    assert_eq!(rig.actions(), [SourceAction::Heartbeat, fetch(8, 3)]);
    assert_eq!(shipped(&rig.pending([8, 9], 3)), [8, 9]);
}

#[test]
fn few_segments_are_written_at_once() {
    let mut rig = Rig::open(1);
    assert_eq!(shipped(&rig.pending(1..=3, 3)), [1, 2, 3]);
    // Receipts of others do not make room: the limit is for bytes on their way.
    rig.session.handle_sealed();
    assert_eq!(rig.actions(), []);
    assert_eq!(rig.written(2), [fetch(4, 1)]);
    assert_eq!(shipped(&rig.pending([4], 1)), [4]);
    assert_eq!(rig.written(1), [fetch(5, 1)]);
}

#[test]
fn segment_that_the_site_has_makes_room_without_being_written() {
    let mut rig = Rig::open(1);
    rig.pending(1..=3, 3);
    assert_eq!(rig.delivered(1), [fetch(4, 1)]);
}

#[test]
fn segments_without_receipt_are_limited() {
    let mut rig = Rig::open(1);
    rig.pending(1..=3, 3);
    rig.written(1);
    rig.pending([4], 1);
    rig.written(2);
    assert_eq!(shipped(&rig.pending([5], 1)), [5]);
    for sequence in 1..=5 {
        rig.written(sequence);
        assert_eq!(rig.delivered(sequence), [], "five are without receipt");
    }
    // A receipt covers all that is before it.
    assert_eq!(rig.receipt(3), [SourceAction::Deliver(receipt(3)), fetch(6, 3)]);
    assert_eq!(shipped(&rig.pending(6..=8, 3)), [6, 7, 8]);
}

#[test]
fn outbox_that_has_nothing_more_is_asked_again_when_something_is_sealed() {
    let mut rig = Rig::open(1);
    assert_eq!(shipped(&rig.pending([1], 3)), [1]);
    assert_eq!(rig.written(1), []);
    assert_eq!(rig.delivered(1), []);
    rig.session.handle_sealed();
    assert_eq!(rig.actions(), [fetch(2, 3)]);
}

#[test]
fn sealing_while_the_outbox_answers_is_not_lost() {
    let mut rig = Rig::open(1);
    rig.session.handle_sealed();
    assert_eq!(rig.actions(), [], "one question at a time");
    assert_eq!(rig.pending([], 3), [fetch(1, 3)]);
    assert_eq!(rig.pending([], 3), []);
}

#[test]
fn segment_is_not_begun_twice_and_no_more_than_asked_for() {
    let mut rig = Rig::open(4);
    assert_eq!(shipped(&rig.pending(2..=5, 5)), [4, 5]);
    let mut rig = Rig::open(4);
    assert_eq!(shipped(&rig.pending(4..=20, 3)), [4, 5, 6]);
}

#[test]
fn receipts_never_go_backwards_and_may_repeat() {
    let mut rig = Rig::open(1);
    rig.pending(1..=3, 3);
    rig.receipt(2);
    assert_eq!(rig.receipt(1), []);
    assert_eq!(rig.receipt(2), [SourceAction::Deliver(receipt(2))]);
    let branched = Position { generation: Generation(2), ..at(1) };
    rig.session.handle_receipt(receipt_at(branched), rig.now);
    assert_eq!(rig.actions(), [SourceAction::Deliver(receipt_at(branched))]);
    assert_eq!(rig.receipt(3), [], "a later generation outranks a later sequence");
}

#[test]
fn segment_that_got_a_receipt_before_its_turn_is_not_sent() {
    // The site has 2 to 4 of an earlier connection and lacks 1.
    let mut rig = Rig::open(1);
    rig.pending([1], 3);
    rig.receipt(4);
    rig.session.handle_sealed();
    assert_eq!(rig.actions(), [fetch(2, 2)]);
    assert_eq!(shipped(&rig.pending(2..=5, 5)), [5]);
}

#[test]
fn receipt_of_an_older_generation_does_not_hold_back_another_branch() {
    let mut rig = Rig::greeting();
    rig.receipt(9);
    rig.site(welcome(None));
    rig.session.handle_resumed(Ok(Sequence(1)), rig.now);
    rig.actions();
    let (mut branched, _) = segment(1, 10, Hash::ZERO);
    branched.position.generation = Generation(2);
    rig.session.handle_pending(vec![branched], 3, rig.now);
    assert_eq!(rig.actions(), [SourceAction::Ship(branched)]);
}

#[test]
fn receipt_that_overtakes_the_welcome_counts() {
    let mut rig = Rig::greeting();
    assert_eq!(rig.receipt(5), [SourceAction::Deliver(receipt(5))]);
}

#[test]
fn receipt_for_the_last_sequence_there_is_does_no_harm() {
    let mut rig = Rig::open(1);
    rig.pending([1, 2], 3);
    let last = Position { sequence: Sequence(u64::MAX), epoch: Epoch(1), ..at(1) };
    rig.session.handle_receipt(receipt_at(last), rig.now);
    assert_eq!(rig.actions(), [SourceAction::Deliver(receipt_at(last))]);
}

#[test]
fn each_refusal_is_reported_and_ends_the_session() {
    for kind in REFUSAL_KINDS {
        let whole = Refusal::new(kind, "why", "what to do");
        for refusal in [whole.clone(), whole.of_segment(Sequence(2))] {
            let mut greeting = Rig::greeting();
            greeting.site(SiteMessage::Refused(refusal.clone()));
            assert_eq!(greeting.actions(), over(&refusal));
            greeting.check_over();

            let mut open = Rig::open(1);
            open.pending(1..=3, 3);
            open.site(SiteMessage::Refused(refusal.clone()));
            assert_eq!(open.actions(), over(&refusal));
            open.check_over();
        }
    }
}

#[test]
fn refusal_of_the_outbox_is_reported() {
    let mut rig = Rig::greeting();
    rig.site(welcome(Some(at(5))));
    rig.actions();
    let diverged = Refusal::new(RefusalKind::Diverged, "another chain", "resync");
    rig.session.handle_resumed(Err(diverged.clone()), rig.now);
    assert_eq!(rig.actions(), over(&diverged));
    rig.check_over();
}

#[test]
fn segment_of_a_size_that_is_not_carried_is_not_sent() {
    for size in [0, 1001] {
        let mut rig = Rig::open(1);
        let wrong = SegmentDescriptor { size_bytes: size, ..segment(2, 10, Hash::ZERO).0 };
        let segments = vec![segment(1, 1000, Hash::ZERO).0, wrong, segment(3, 10, Hash::ZERO).0];
        rig.session.handle_pending(segments, 3, rig.now);
        let actions = rig.actions();
        let [ship @ SourceAction::Ship(_), SourceAction::Report(refusal), SourceAction::End(end)] = &*actions
        else {
            panic!("{actions:?}");
        };
        assert_eq!((shipped(std::slice::from_ref(ship)), *end), (vec![1], SourceEnd::Refused));
        assert_eq!((refusal.kind, refusal.sequence), (RefusalKind::Invalid, Some(Sequence(2))));
        assert!(refusal.reason.contains(&size.to_string()) && refusal.reason.contains("1000"), "{refusal}");
        rig.check_over();
    }
}

#[test]
fn stopped_stream_waits_for_the_reason() {
    let mut rig = Rig::open(1);
    rig.pending(1..=3, 3);
    assert_eq!(rig.fail(WriteFailure::Stopped), []);
    assert_eq!(rig.written(2), [], "nothing is begun meanwhile");
    rig.site(SiteMessage::Refused(refusal().of_segment(Sequence(1))));
    assert_eq!(rig.actions(), over(&refusal().of_segment(Sequence(1))));
}

#[test]
fn stopped_stream_without_a_reason_begins_anew() {
    let mut rig = Rig::open(1);
    rig.pending(1..=3, 3);
    rig.fail(WriteFailure::Stopped);
    rig.now += REASON_WAIT / 4;
    rig.fail(WriteFailure::Stopped);
    assert_eq!(rig.pass(), REASON_WAIT * 3 / 4, "the first stop counts");
    assert_eq!(rig.actions(), [SourceAction::End(SourceEnd::Retry)]);
    rig.check_over();
}

#[test]
fn segment_that_cannot_be_read_is_reported_and_one_that_was_lost_is_not() {
    let mut rig = Rig::open(1);
    rig.pending(1..=3, 3);
    let corrupt = Refusal::new(RefusalKind::Corrupt, "too short", "").of_segment(Sequence(2));
    assert_eq!(rig.fail(WriteFailure::Local(corrupt.clone())), over(&corrupt));
    rig.check_over();

    let mut rig = Rig::open(1);
    rig.pending(1..=3, 3);
    assert_eq!(rig.fail(WriteFailure::Lost), [SourceAction::End(SourceEnd::Retry)]);
    rig.check_over();
}

#[test]
fn lost_connection_begins_anew() {
    for mut rig in [Rig::greeting(), Rig::open(1)] {
        rig.session.handle_lost();
        assert_eq!(rig.actions(), [SourceAction::End(SourceEnd::Retry)]);
        rig.check_over();
    }
}

#[test]
fn receipt_that_is_overdue_begins_anew() {
    let mut rig = Rig::open(1);
    rig.pending([1, 2], 3);
    for sequence in [1, 2] {
        rig.written(sequence);
        rig.delivered(sequence);
    }
    let (passed, actions) = rig.pass_with_heartbeats();
    assert_eq!(passed, OPTIONS.receipt_timeout);
    assert_eq!(actions, [SourceAction::End(SourceEnd::Retry)]);
}

#[test]
fn no_receipt_is_overdue_while_bytes_are_on_their_way_or_nothing_is() {
    let mut idle = Rig::open(1);
    idle.pending([], 3);
    let mut writing = Rig::open(1);
    writing.pending([1], 3);
    let mut delivering = Rig::open(1);
    delivering.pending([1], 3);
    delivering.written(1);
    let mut confirmed = Rig::open(1);
    confirmed.pending([1], 3);
    confirmed.delivered(1);
    confirmed.receipt(1);
    for mut rig in [idle, writing, delivering, confirmed] {
        let begun = rig.now;
        while rig.now - begun < OPTIONS.receipt_timeout * 3 {
            rig.pass();
            assert_eq!(rig.actions(), [SourceAction::Heartbeat]);
            rig.site(pong());
        }
    }
}

#[test]
fn receipt_gives_the_next_one_its_whole_time() {
    let mut rig = Rig::open(1);
    rig.pending([1, 2], 3);
    rig.delivered(1);
    rig.delivered(2);
    rig.now += OPTIONS.receipt_timeout / 2;
    rig.receipt(1);
    let (passed, actions) = rig.pass_with_heartbeats();
    assert_eq!(actions, [SourceAction::End(SourceEnd::Retry)]);
    assert!(passed >= OPTIONS.receipt_timeout, "{passed:?}");
}

#[test]
fn silence_begins_anew_and_any_word_of_the_site_breaks_it() {
    let mut rig = Rig::greeting();
    assert_eq!(rig.pass(), OPTIONS.silence_timeout);
    assert_eq!(rig.actions(), [SourceAction::End(SourceEnd::Retry)]);

    let mut rig = Rig::open(1);
    rig.now += OPTIONS.silence_timeout / 2;
    rig.receipt(1);
    let heard = rig.now;
    let actions = loop {
        rig.pass();
        let actions = rig.actions();
        if actions != [SourceAction::Heartbeat] {
            break actions;
        }
    };
    assert_eq!(actions, [SourceAction::End(SourceEnd::Retry)]);
    assert_eq!(rig.now - heard, OPTIONS.silence_timeout);
}

#[test]
fn heartbeats_are_sent_at_intervals_while_the_group_is_open() {
    let mut rig = Rig::open(1);
    for _ in 0..3 {
        rig.session.handle_heartbeat(heartbeat());
        assert_eq!(rig.actions(), [SourceAction::Send(SourceMessage::Heartbeat(heartbeat()))]);
        assert_eq!(rig.pass(), OPTIONS.heartbeat_interval);
        assert_eq!(rig.actions(), [SourceAction::Heartbeat]);
    }
    rig.session.handle_shutdown();
    rig.actions();
    rig.session.handle_heartbeat(heartbeat());
    assert_eq!(rig.actions(), [], "goodbye is the last message");
}

#[test]
fn goodbye_waits_for_the_answer_and_sends_nothing_more() {
    for mut rig in [Rig::greeting(), Rig::open(1)] {
        rig.session.handle_shutdown();
        rig.session.handle_shutdown();
        assert_eq!(rig.actions(), [SourceAction::Send(SourceMessage::Goodbye)]);
        rig.session.handle_sealed();
        rig.site(welcome(None));
        rig.site(pong());
        assert_eq!(rig.pending([1, 2], 3), []);
        // The site finishes what it was making durable before it answers.
        assert_eq!(rig.receipt(1), [SourceAction::Deliver(receipt(1))]);
        rig.site(SiteMessage::Goodbye);
        assert_eq!(rig.actions(), [SourceAction::End(SourceEnd::Goodbye)]);
        rig.check_over();
    }
}

#[test]
fn goodbye_is_over_when_the_connection_is() {
    let mut rig = Rig::open(1);
    rig.session.handle_shutdown();
    rig.actions();
    rig.session.handle_lost();
    assert_eq!(rig.actions(), [SourceAction::End(SourceEnd::Goodbye)]);
}

#[test]
fn site_that_stops_is_answered() {
    for mut rig in [Rig::greeting(), Rig::open(1)] {
        rig.site(SiteMessage::Goodbye);
        let goodbye = SourceAction::Send(SourceMessage::Goodbye);
        assert_eq!(rig.actions(), [goodbye, SourceAction::End(SourceEnd::SiteStopping)]);
        rig.check_over();
    }
}

fn check_reported(rig: &mut Rig, kind: RefusalKind, words: &[&str]) {
    let actions = rig.actions();
    let [SourceAction::Report(refusal), SourceAction::End(SourceEnd::Refused)] = &*actions else {
        panic!("{actions:?}");
    };
    assert_eq!((refusal.kind, refusal.sequence), (kind, None));
    assert!(words.iter().all(|word| refusal.reason.contains(word)), "{refusal}");
    rig.check_over();
}

#[test]
fn other_version_is_reported_with_both_versions() {
    let mut rig = Rig::greeting();
    rig.session.handle_version(7);
    check_reported(&mut rig, RefusalKind::Version, &["version 7", "source 1"]);
}

#[test]
fn message_out_of_place_is_reported() {
    let mut greeting = Rig::greeting();
    greeting.site(pong());
    let mut resuming = Rig::greeting();
    resuming.site(welcome(None));
    resuming.actions();
    resuming.site(welcome(None));
    let mut open = Rig::open(1);
    open.site(welcome(None));
    for mut rig in [greeting, resuming, open] {
        check_reported(&mut rig, RefusalKind::Invalid, &["does not belong here"]);
    }
}
