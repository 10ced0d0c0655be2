//! One group's session as the site sees it.

use std::collections::VecDeque;

use journal_format::{Generation, GroupName, Position, Sequence, Timestamp};

use crate::wire::{
    Heartbeat, PROTOCOL_VERSION, Partial, Refusal, RefusalKind, SegmentDescriptor, SiteMessage, SourceMessage,
};

/// What a group's session begins with: the head, and what is here of segments behind it.
pub(crate) type Opened = (Option<Position>, Vec<Partial>);

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SiteAction {
    /// Check that the peer may send this group, and open it; answer with `handle_opened`.
    Open(GroupName, Generation),
    /// Write a message to the control stream.
    Send(SiteMessage),
    /// Sign and send a receipt for the contiguous head.
    Receipt(Position),
    /// Hand a heartbeat to the inbox.
    Heartbeat(Heartbeat),
    /// The session is over: finish the control stream. Only receipts for commits that were under way follow.
    End,
    /// The peer broke the protocol: close the connection. The session is over.
    Violation(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Opening,
    Open,
    Ended,
}

/// The state of one group's session. See PROTOCOL.md, "A session".
#[derive(Debug)]
pub(crate) struct SiteSession {
    state: State,
    software: String,
    segment_bytes_max: u64,
    head: Option<Position>,
    actions: VecDeque<SiteAction>,
}

impl SiteSession {
    /// Waits for Hello. `segment_bytes_max` is the largest segment that is taken.
    pub(crate) fn new(software: String, segment_bytes_max: u64) -> Self {
        Self { state: State::Greeting, software, segment_bytes_max, head: None, actions: VecDeque::new() }
    }

    /// The next thing to do; none until another event.
    pub(crate) fn poll_action(&mut self) -> Option<SiteAction> {
        self.actions.pop_front()
    }

    /// The version in the source's preamble.
    pub(crate) fn handle_version(&mut self, version: u32) {
        if version != PROTOCOL_VERSION {
            self.refuse(Refusal::new(
                RefusalKind::Version,
                format!("the source speaks version {version} of the protocol, this site {PROTOCOL_VERSION}"),
                "install the same release of thirdsite at both sites",
            ));
        }
    }

    /// A message arrived on the control stream. `now` is the site's time.
    pub(crate) fn handle_message(&mut self, message: SourceMessage, now: Timestamp) {
        match (self.state, message) {
            (State::Ended, _) => {}
            (State::Greeting, SourceMessage::Hello(hello)) => {
                self.state = State::Opening;
                self.actions.push_back(SiteAction::Open(hello.group, hello.generation));
            }
            (State::Open, SourceMessage::Heartbeat(heartbeat)) => {
                let pong = SiteMessage::Pong { heartbeat: heartbeat.now, now };
                self.actions.push_back(SiteAction::Heartbeat(heartbeat));
                self.actions.push_back(SiteAction::Send(pong));
            }
            (_, SourceMessage::Goodbye) => self.say_goodbye(),
            (_, SourceMessage::Hello(_) | SourceMessage::Heartbeat(_)) => {
                self.state = State::Ended;
                self.actions.push_back(SiteAction::Violation("a control message does not belong here"));
            }
        }
    }

    /// The group was opened, or not.
    pub(crate) fn handle_opened(&mut self, opened: Result<Opened, Refusal>) {
        if self.state != State::Opening {
            return;
        }
        match opened {
            Ok((head, partials)) => {
                self.state = State::Open;
                self.head = head;
                let software = self.software.clone();
                self.actions.push_back(SiteAction::Send(SiteMessage::Welcome { software, head, partials }));
                self.repeat_receipt();
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// A segment is offered. Answers whether its bytes may be looked at.
    pub(crate) fn handle_offer(&mut self, segment: &SegmentDescriptor) -> bool {
        if self.state != State::Open {
            return false;
        }
        if segment.size_bytes == 0 || segment.size_bytes > self.segment_bytes_max {
            let reason = format!(
                "the segment has {} bytes; between 1 and {} are taken",
                segment.size_bytes, self.segment_bytes_max
            );
            let hint = "lower the size of segments in the source's settings, or raise the site's limit";
            let refusal = Refusal::new(RefusalKind::Invalid, reason, hint);
            self.refuse(refusal.of_segment(segment.position.sequence));
            return false;
        }
        true
    }

    /// A segment that was here already was offered again. Carries the contiguous head.
    pub(crate) fn handle_had(&mut self, head: Option<Position>) {
        self.advance(head);
        self.repeat_receipt();
    }

    /// A segment was made durable and verified. Carries the contiguous head, which other commits may have passed meanwhile.
    pub(crate) fn handle_committed(&mut self, head: Option<Position>) {
        if self.advance(head) {
            self.repeat_receipt();
        }
    }

    /// A segment was refused.
    pub(crate) fn handle_refused(&mut self, sequence: Sequence, refusal: Refusal) {
        self.refuse(refusal.of_segment(sequence));
    }

    /// The site shuts down.
    pub(crate) fn handle_shutdown(&mut self) {
        self.say_goodbye();
    }

    /// The control stream or the connection broke.
    pub(crate) fn handle_lost(&mut self) {
        self.end();
    }

    /// Answers whether the head went on.
    fn advance(&mut self, head: Option<Position>) -> bool {
        let order = |position: Position| (position.generation, position.sequence);
        let newer = head.map(order) > self.head.map(order);
        if newer {
            self.head = head;
        }
        newer
    }

    /// Receipts of commits that end while the session is being ended are still worth sending.
    fn repeat_receipt(&mut self) {
        if let Some(head) = self.head {
            self.actions.push_back(SiteAction::Receipt(head));
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        if self.state != State::Ended {
            self.actions.push_back(SiteAction::Send(SiteMessage::Refused(refusal)));
            self.end();
        }
    }

    fn say_goodbye(&mut self) {
        if self.state != State::Ended {
            self.actions.push_back(SiteAction::Send(SiteMessage::Goodbye));
            self.end();
        }
    }

    fn end(&mut self) {
        if self.state != State::Ended {
            self.state = State::Ended;
            self.actions.push_back(SiteAction::End);
        }
    }
}

#[cfg(test)]
mod tests;
