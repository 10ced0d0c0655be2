//! One group's session as the source sees it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use journal_format::{Position, Sequence};

use crate::ranges::Ranges;
use crate::wire::{
    Heartbeat, Hello, PROTOCOL_VERSION, RawHash, Receipt, Refusal, RefusalKind, SegmentDescriptor,
    SiteMessage, SourceMessage,
};

/// How a source's session behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceSessionOptions {
    /// Time between two heartbeats.
    pub(crate) heartbeat_interval: Duration,
    /// Segments whose bytes may be being written at once.
    pub(crate) writing_max: usize,
    /// Segments that may be sent without having a receipt.
    pub(crate) unconfirmed_max: usize,
    /// Time without a receipt, when everything was delivered, after which the session is begun anew.
    pub(crate) receipt_timeout: Duration,
    /// Time without any word from the site after which the session is begun anew.
    pub(crate) silence_timeout: Duration,
    /// Largest segment that the protocol carries, in bytes.
    pub(crate) segment_bytes_max: u64,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceAction {
    /// Write a message to the control stream.
    Send(SourceMessage),
    /// Ask the outbox where to go on, given the site's head; answer with `handle_resumed`.
    Resume(Option<Position>),
    /// The session is open; tell the outbox.
    Opened(Option<Position>),
    /// Ask the outbox for a heartbeat; answer with `handle_heartbeat`.
    Heartbeat,
    /// Ask the outbox what is sealed; answer with `handle_pending`.
    Fetch {
        /// First sequence wanted.
        from: Sequence,
        /// Most segments wanted.
        limit: usize,
    },
    /// Write a segment to a stream of its own; answer with `handle_written`, `handle_delivered` or `handle_write_failed`.
    Ship(SegmentDescriptor),
    /// Hand a receipt to the outbox.
    Deliver(Receipt),
    /// Tell the outbox of a refusal.
    Report(Refusal),
    /// The session is over; nothing follows.
    End(SourceEnd),
}

/// Why a source's session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceEnd {
    /// Refused: begin anew after the long pause.
    Refused,
    /// Something was lost or is overdue: begin anew soon.
    Retry,
    /// The site is shutting down.
    SiteStopping,
    /// This side said goodbye and the site understood.
    Goodbye,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Hello was sent.
    Greeting,
    /// The outbox looks at the site's head.
    Resuming,
    Open,
    /// Goodbye was sent.
    Leaving,
    Ended,
}

/// Why a segment could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WriteFailure {
    /// The site stopped the stream; its reason is on the way on the control stream.
    Stopped,
    /// The segment could not be read here.
    Local(Refusal),
    /// The stream or connection broke, or the segment was trimmed meanwhile.
    Lost,
}

/// The state of one group's session. See PROTOCOL.md, "A session".
#[derive(Debug)]
pub(crate) struct SourceSession {
    options: SourceSessionOptions,
    state: State,
    /// What the site holds of segments that are not complete there.
    partials: HashMap<(Sequence, RawHash), Ranges>,
    /// Next segment to ask the outbox for.
    next: Sequence,
    /// Whether the outbox may have something from `next` on.
    more: bool,
    fetching: bool,
    /// Bytes are being handed to the connection.
    writing: BTreeSet<Sequence>,
    /// All bytes were handed over, and the site's endpoint has not acknowledged them all.
    delivering: BTreeSet<Sequence>,
    /// Begun and without a receipt.
    unconfirmed: BTreeSet<Sequence>,
    confirmed: Option<Position>,
    heartbeat_at: Option<Instant>,
    heard_at: Instant,
    progress_at: Instant,
    /// When to stop waiting for the reason of a stopped stream.
    reason_until: Option<Instant>,
    actions: VecDeque<SourceAction>,
}

/// How long the reason for a stopped stream may take; it travels on another stream.
const REASON_WAIT: Duration = Duration::from_secs(2);

impl SourceSession {
    /// Begins a session with Hello.
    pub(crate) fn new(options: SourceSessionOptions, hello: Hello, now: Instant) -> Self {
        Self {
            options,
            state: State::Greeting,
            partials: HashMap::new(),
            next: Sequence(0),
            more: false,
            fetching: false,
            writing: BTreeSet::new(),
            delivering: BTreeSet::new(),
            unconfirmed: BTreeSet::new(),
            confirmed: None,
            heartbeat_at: None,
            heard_at: now,
            progress_at: now,
            reason_until: None,
            actions: VecDeque::from([SourceAction::Send(SourceMessage::Hello(hello))]),
        }
    }

    /// The next thing to do; none until another event.
    pub(crate) fn poll_action(&mut self) -> Option<SourceAction> {
        self.actions.pop_front()
    }

    /// What the site held of a segment when it said welcome; asked once for each segment.
    pub(crate) fn take_held(&mut self, segment: &Position) -> Ranges {
        self.partials.remove(&(segment.sequence, segment.hash.0)).unwrap_or_default()
    }

    /// When `handle_timeout` wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.state == State::Ended {
            return None;
        }
        let silent = Some(self.heard_at + self.options.silence_timeout);
        [silent, self.heartbeat_at, self.reason_until, self.receipt_due()].into_iter().flatten().min()
    }

    /// The version in the site's preamble.
    pub(crate) fn handle_version(&mut self, version: u32) {
        if version != PROTOCOL_VERSION {
            self.refuse(Refusal::new(
                RefusalKind::Version,
                format!("the site speaks version {version} of the protocol, this source {PROTOCOL_VERSION}"),
                "install the same release of thirdsite at both sites",
            ));
        }
    }

    /// A message arrived on the control stream.
    pub(crate) fn handle_message(&mut self, message: SiteMessage, now: Instant) {
        self.heard_at = now;
        match (self.state, message) {
            (State::Ended, _) => {}
            (_, SiteMessage::Refused(refusal)) => self.refuse(refusal),
            (State::Leaving, SiteMessage::Goodbye) => self.end(SourceEnd::Goodbye),
            (State::Leaving, _) => {}
            (_, SiteMessage::Goodbye) => {
                self.actions.push_back(SourceAction::Send(SourceMessage::Goodbye));
                self.end(SourceEnd::SiteStopping);
            }
            (State::Greeting, SiteMessage::Welcome { head, partials, .. }) => {
                for partial in partials {
                    let have = self.partials.entry((partial.sequence, partial.hash)).or_default();
                    for (offset, length) in partial.have {
                        have.insert(offset..offset.saturating_add(length));
                    }
                }
                self.state = State::Resuming;
                self.actions.push_back(SourceAction::Opened(head));
                self.actions.push_back(SourceAction::Resume(head));
            }
            (State::Open | State::Resuming, SiteMessage::Pong { .. }) => {}
            (_, SiteMessage::Welcome { .. } | SiteMessage::Pong { .. }) => self.refuse(Refusal::new(
                RefusalKind::Invalid,
                "the site sent a message that does not belong here",
                "install the same release of thirdsite at both sites",
            )),
        }
    }

    /// The outbox looked at the site's head.
    pub(crate) fn handle_resumed(&mut self, resumed: Result<Sequence, Refusal>, now: Instant) {
        if self.state != State::Resuming {
            return;
        }
        match resumed {
            Ok(next) => {
                self.state = State::Open;
                self.next = next;
                self.more = true;
                self.progress_at = now;
                self.heartbeat_at = Some(now + self.options.heartbeat_interval);
                self.actions.push_back(SourceAction::Heartbeat);
                self.fetch();
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// Something new was sealed.
    pub(crate) fn handle_sealed(&mut self) {
        self.more = true;
        self.fetch();
    }

    /// The outbox answered what is sealed.
    pub(crate) fn handle_pending(&mut self, segments: Vec<SegmentDescriptor>, limit: usize, now: Instant) {
        self.fetching = false;
        if self.state != State::Open {
            return;
        }
        self.more |= segments.len() >= limit;
        for segment in segments.into_iter().take(limit) {
            let sequence = segment.position.sequence;
            // An outbox may answer what it had when it was asked; what was begun since is not begun twice.
            if sequence < self.next {
                continue;
            }
            if segment.size_bytes == 0 || segment.size_bytes > self.options.segment_bytes_max {
                self.refuse(
                    Refusal::new(
                        RefusalKind::Invalid,
                        format!(
                            "the segment has {} bytes; between 1 and {} can be sent",
                            segment.size_bytes, self.options.segment_bytes_max
                        ),
                        "lower the size of segments in the source's settings",
                    )
                    .of_segment(sequence),
                );
                return;
            }
            self.next = sequence.next();
            // The site may have had later segments already, and a receipt of theirs overtakes the sending.
            if self.is_confirmed(&segment.position) {
                continue;
            }
            self.writing.insert(sequence);
            self.unconfirmed.insert(sequence);
            self.progress_at = now;
            self.actions.push_back(SourceAction::Ship(segment));
        }
        self.fetch();
    }

    /// All bytes of a segment were handed to the connection.
    pub(crate) fn handle_written(&mut self, sequence: Sequence, now: Instant) {
        if self.writing.remove(&sequence) {
            self.delivering.insert(sequence);
            self.progress_at = now;
            self.fetch();
        }
    }

    /// The site's endpoint has all bytes of a segment, or the site had it already.
    pub(crate) fn handle_delivered(&mut self, sequence: Sequence, now: Instant) {
        self.writing.remove(&sequence);
        self.delivering.remove(&sequence);
        self.progress_at = now;
        self.fetch();
    }

    /// A segment could not be sent.
    pub(crate) fn handle_write_failed(&mut self, failure: WriteFailure, now: Instant) {
        if matches!(self.state, State::Ended | State::Leaving) {
            return;
        }
        match failure {
            WriteFailure::Stopped => {
                self.reason_until.get_or_insert(now + REASON_WAIT);
            }
            WriteFailure::Local(refusal) => self.refuse(refusal),
            WriteFailure::Lost => self.end(SourceEnd::Retry),
        }
    }

    /// A receipt arrived whose signature is right.
    pub(crate) fn handle_receipt(&mut self, receipt: Receipt, now: Instant) {
        if self.state == State::Ended {
            return;
        }
        self.heard_at = now;
        let order = |position: Position| (position.generation, position.sequence);
        if self.confirmed.is_some_and(|confirmed| order(confirmed) > order(receipt.position)) {
            return;
        }
        self.confirmed = Some(receipt.position);
        self.progress_at = now;
        self.unconfirmed.retain(|sequence| *sequence > receipt.position.sequence);
        self.actions.push_back(SourceAction::Deliver(receipt));
        self.fetch();
    }

    /// The outbox answered a heartbeat.
    pub(crate) fn handle_heartbeat(&mut self, heartbeat: Heartbeat) {
        if self.state == State::Open {
            self.actions.push_back(SourceAction::Send(SourceMessage::Heartbeat(heartbeat)));
        }
    }

    /// This side wants to leave in good order.
    pub(crate) fn handle_shutdown(&mut self) {
        if !matches!(self.state, State::Ended | State::Leaving) {
            self.state = State::Leaving;
            self.heartbeat_at = None;
            self.actions.push_back(SourceAction::Send(SourceMessage::Goodbye));
        }
    }

    /// The control stream or the connection broke.
    pub(crate) fn handle_lost(&mut self) {
        let left = self.state == State::Leaving;
        self.end(if left { SourceEnd::Goodbye } else { SourceEnd::Retry });
    }

    /// Time has come.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.state == State::Ended {
            return;
        }
        let silent = Some(self.heard_at + self.options.silence_timeout);
        if due(silent) || due(self.reason_until) || due(self.receipt_due()) {
            self.end(SourceEnd::Retry);
        } else if due(self.heartbeat_at) {
            self.heartbeat_at = Some(now + self.options.heartbeat_interval);
            self.actions.push_back(SourceAction::Heartbeat);
        }
    }

    /// When a receipt is overdue: only while nothing is on its way, because a slow link is no fault of the site.
    fn receipt_due(&self) -> Option<Instant> {
        let waiting = self.state == State::Open
            && !self.unconfirmed.is_empty()
            && self.writing.is_empty()
            && self.delivering.is_empty();
        waiting.then(|| self.progress_at + self.options.receipt_timeout)
    }

    /// Whether a receipt covers a segment. One of an older generation may be of another branch.
    fn is_confirmed(&self, segment: &Position) -> bool {
        self.confirmed.is_some_and(|confirmed| {
            confirmed.generation >= segment.generation && confirmed.sequence >= segment.sequence
        })
    }

    fn fetch(&mut self) {
        let room = usize::min(
            self.options.writing_max.saturating_sub(self.writing.len()),
            self.options.unconfirmed_max.saturating_sub(self.unconfirmed.len()),
        );
        if self.state == State::Open && self.more && !self.fetching && room > 0 && self.reason_until.is_none()
        {
            self.more = false;
            self.fetching = true;
            self.actions.push_back(SourceAction::Fetch { from: self.next, limit: room });
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        if self.state != State::Ended {
            self.actions.push_back(SourceAction::Report(refusal));
            self.end(SourceEnd::Refused);
        }
    }

    fn end(&mut self, end: SourceEnd) {
        if self.state != State::Ended {
            self.state = State::Ended;
            self.actions.push_back(SourceAction::End(end));
        }
    }
}

#[cfg(test)]
mod tests;
