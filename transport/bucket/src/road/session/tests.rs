use journal_format::{Epoch, Timestamp};
use transport::PublicKey;

use super::*;
use crate::documents::{ClaimKind, ClaimSource, SessionId};
use crate::keys::ClaimNumber;

const INTERVAL: Duration = Duration::from_secs(5);

fn position(sequence: u64) -> Position {
    let hash = Hash([sequence as u8; 32]);
    Position { generation: Generation(2), sequence: Sequence(sequence), epoch: Epoch(sequence), hash }
}

fn descriptor(sequence: u64) -> SegmentDescriptor {
    let parent = if sequence == 1 { Hash::ZERO } else { position(sequence - 1).hash };
    SegmentDescriptor { position: position(sequence), parent, size_bytes: 400 }
}

fn claim() -> Box<Claim> {
    let fingerprint = PublicKey::from_bytes([1; 32]).fingerprint();
    Box::new(Claim {
        group: "db".parse().unwrap(),
        number: ClaimNumber(9),
        kind: ClaimKind::Fence,
        session: SessionId([0; 16]),
        generation: Generation(3),
        source: ClaimSource { name: "other".parse().unwrap(), fingerprint },
        software: String::new(),
        time: Timestamp(0),
        behind: None,
    })
}

struct Rig {
    machine: BucketSession,
    now: Instant,
}

impl Rig {
    fn new(rule: ReceivedBy, behind: u64, received: u64) -> Self {
        let options = SessionOptions {
            generation: Generation(2),
            uploads_max: 3,
            heartbeat_interval: Duration::from_secs(60),
            validate_interval: INTERVAL,
            rule,
            segment_bytes_max: 1000,
        };
        let now = Instant::now();
        let at = |sequence| (sequence > 0).then(|| position(sequence));
        Self { machine: BucketSession::new(options, at(behind), at(received), now), now }
    }

    /// Behind nothing, with its first heartbeat put.
    fn begun() -> Self {
        let mut rig = Self::new(ReceivedBy::Answers, 0, 0);
        assert_eq!(rig.actions(), ["heartbeat", "fetch 1+3"]);
        rig.machine.handle_beaten();
        rig
    }

    fn actions(&mut self) -> Vec<String> {
        let actions = std::iter::from_fn(|| self.machine.poll_action());
        let text = |action| match action {
            Action::Fetch { from, limit } => format!("fetch {from}+{limit}"),
            Action::Put(segment) => format!("put {}", segment.position.sequence),
            Action::Validate => "validate".to_owned(),
            Action::Heartbeat => "heartbeat".to_owned(),
            Action::Deliver(position) => format!("deliver {}", position.sequence),
            Action::Report(refusal) => format!("report {:?}", refusal.kind),
            Action::End(end) => format!("end {}", format!("{end:?}").split('(').next().unwrap()),
        };
        actions.map(text).collect()
    }

    fn pending(&mut self, sequences: &[u64], limit: usize) -> Vec<String> {
        let segments = sequences.iter().map(|&sequence| descriptor(sequence)).collect();
        self.machine.handle_pending(Generation(2), segments, limit);
        self.actions()
    }

    fn put(&mut self, sequence: u64) -> Vec<String> {
        self.machine.handle_put(Sequence(sequence), self.now);
        self.actions()
    }

    fn alone(&mut self, checked: Option<u64>) -> Vec<String> {
        self.machine.handle_validated(Validated::Alone(checked.map(position)), self.now);
        self.actions()
    }

    fn pass(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.machine.handle_timeout(self.now);
        self.actions()
    }
}

#[test]
fn puts_are_received_without_gaps_and_after_a_question() {
    let mut rig = Rig::begun();
    assert_eq!(rig.pending(&[1, 2, 3], 3), ["put 1", "put 2", "put 3"]);
    assert_eq!(rig.put(2), ["fetch 4+1"], "1 is not there, so nothing may be received");
    assert_eq!(rig.put(1), ["validate"]);
    assert_eq!(rig.put(3), [""; 0]);
    assert_eq!(rig.alone(None), ["deliver 2"], "3 was put after the question");
    assert_eq!(rig.pass(INTERVAL - Duration::from_millis(1)), [""; 0]);
    assert_eq!(rig.pass(Duration::from_millis(1)), ["validate"]);
    assert_eq!(rig.alone(None), ["deliver 3"]);
}

#[test]
fn a_put_that_takes_long_holds_up_what_is_too_far_behind_it() {
    let mut rig = Rig::begun();
    rig.pending(&[1, 2, 3], 3);
    let last = AHEAD_MAX as u64;
    for sequence in 2..last - 1 {
        rig.put(sequence);
        rig.pending(&[sequence + 2], 1);
    }
    assert_eq!(rig.put(last - 1), [""; 0]);
    assert_eq!(rig.put(1), ["fetch 257+2", "validate"]);
}

#[test]
fn the_first_receipt_after_a_pause_is_asked_for_at_once() {
    let mut rig = Rig::begun();
    rig.pending(&[1], 3);
    assert_eq!(rig.put(1), ["validate"]);
    rig.alone(None);
    rig.pass(INTERVAL * 2);
    rig.machine.handle_sealed();
    assert_eq!(rig.actions(), ["fetch 2+3"]);
    rig.pending(&[2, 3], 3);
    assert_eq!(rig.put(2), ["validate"]);
    assert_eq!(rig.put(3), [""; 0]);
    assert_eq!(rig.alone(None), ["deliver 2"]);
    assert_eq!(rig.machine.poll_timeout(), Some(rig.now + INTERVAL));
}

#[test]
fn an_idle_session_only_beats() {
    let mut rig = Rig::new(ReceivedBy::Answers, 4, 4);
    assert_eq!(rig.actions(), ["heartbeat", "fetch 5+3"]);
    rig.machine.handle_beaten();
    rig.pending(&[], 3);
    for _ in 0..3 {
        assert_eq!(rig.pass(Duration::from_secs(59)), [""; 0]);
        assert_eq!(rig.pass(Duration::from_secs(1)), ["heartbeat"]);
        assert_eq!(rig.pass(Duration::from_secs(60)), [""; 0], "one is under way");
        rig.machine.handle_beaten();
        assert_eq!(rig.pass(Duration::ZERO), ["heartbeat"]);
        rig.machine.handle_beaten();
    }
}

#[test]
fn what_was_put_before_a_newer_claim_is_not_received_after_it() {
    let mut rig = Rig::begun();
    rig.pending(&[1], 3);
    rig.put(1);
    rig.machine.handle_validated(Validated::Fenced(claim()), rig.now);
    assert_eq!(rig.actions(), ["end Fenced"]);
    assert_eq!(rig.pass(INTERVAL), [""; 0]);
    rig.machine.handle_sealed();
    assert_eq!(rig.actions(), [""; 0]);
}

#[test]
fn segments_that_do_not_continue_the_chain_are_not_put() {
    for (segment, expect) in [
        (descriptor(2), "report Diverged"),
        (SegmentDescriptor { parent: Hash([9; 32]), ..descriptor(1) }, "report Diverged"),
        (SegmentDescriptor { size_bytes: 1001, ..descriptor(1) }, "report Invalid"),
        (SegmentDescriptor { size_bytes: 0, ..descriptor(1) }, "report Invalid"),
    ] {
        let mut rig = Rig::begun();
        rig.machine.handle_pending(Generation(2), vec![segment], 3);
        assert_eq!(rig.actions(), [expect, "end Refused"]);
    }
}

#[test]
fn a_new_generation_begins_a_new_session() {
    let mut rig = Rig::begun();
    rig.machine.handle_pending(Generation(3), vec![descriptor(1)], 3);
    assert_eq!(rig.actions(), ["end Anew"]);
}

#[test]
fn failures_end_the_session() {
    let failed = || Arc::new(RoadError::OtherBytes { key: "x".into() });
    let refusal = Refusal::new(RefusalKind::Corrupt, "", "");
    for (failure, expect) in [
        (PutFailure::Gone, vec!["end Retry"]),
        (PutFailure::Local(refusal), vec!["report Corrupt", "end Refused"]),
        (PutFailure::Bucket(failed()), vec!["end Failed"]),
    ] {
        let mut rig = Rig::begun();
        rig.pending(&[1], 3);
        rig.machine.handle_put_failed(failure);
        assert_eq!(rig.actions(), expect);
    }
    let mut rig = Rig::begun();
    rig.pending(&[1], 3);
    rig.put(1);
    rig.machine.handle_validated(Validated::Failed(failed()), rig.now);
    assert_eq!(rig.actions(), ["end Failed"]);
}

#[test]
fn only_what_was_checked_is_received_if_that_is_wanted() {
    let mut rig = Rig::new(ReceivedBy::Checks, 4, 2);
    assert_eq!(rig.actions(), ["heartbeat", "validate", "fetch 5+3"]);
    rig.machine.handle_beaten();
    assert_eq!(rig.alone(None), [""; 0]);
    rig.pending(&[5, 6], 3);
    rig.put(5);
    rig.put(6);
    assert_eq!(rig.pass(INTERVAL), ["validate"]);
    assert_eq!(rig.alone(Some(3)), [""; 0], "not one of this session's");
    assert_eq!(rig.pass(INTERVAL), ["validate"]);
    assert_eq!(rig.alone(Some(7)), [""; 0], "nothing that was put");
    assert_eq!(rig.pass(INTERVAL), ["validate"]);
    assert_eq!(rig.alone(Some(5)), ["deliver 5"]);
    assert_eq!(rig.pass(INTERVAL), ["validate"]);
    assert_eq!(rig.alone(Some(5)), [""; 0]);
    assert_eq!(rig.pass(INTERVAL), ["validate"]);
    assert_eq!(rig.alone(Some(6)), ["deliver 6"]);
    assert_eq!(rig.pass(INTERVAL), [""; 0], "nothing is unconfirmed");
}

#[test]
fn leaving_waits_for_puts_and_asks_once_more() {
    let mut rig = Rig::begun();
    rig.pending(&[1, 2], 3);
    assert_eq!(rig.put(1), ["validate"]);
    assert_eq!(rig.alone(None), ["deliver 1"]);
    rig.machine.handle_shutdown(rig.now);
    rig.machine.handle_sealed();
    assert_eq!(rig.actions(), [""; 0]);
    assert_eq!(rig.put(2), ["validate"]);
    assert_eq!(rig.alone(None), ["deliver 2", "heartbeat"]);
    rig.machine.handle_beaten();
    assert_eq!(rig.actions(), ["end Goodbye"]);
}

#[test]
fn leaving_does_not_wait_for_checks() {
    let mut rig = Rig::new(ReceivedBy::Checks, 4, 2);
    rig.actions();
    rig.machine.handle_beaten();
    rig.machine.handle_shutdown(rig.now);
    assert_eq!(rig.alone(None), ["validate"]);
    assert_eq!(rig.alone(None), ["heartbeat"]);
    rig.machine.handle_beaten();
    assert_eq!(rig.actions(), ["end Goodbye"]);
}
