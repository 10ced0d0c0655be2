//! One group's session as the source sees it, from its start on, without I/O: what to put, when to ask whether another writer has taken
//! over, and what may be called received.
//!
//! The rule: a position is received only by an answer to a question that was asked after the last put up to it was answered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use journal_format::{Generation, Hash, Position, Sequence};
use transport::{Refusal, RefusalKind, SegmentDescriptor};

use crate::documents::Claim;
use crate::error::RoadError;

/// Segments that may be put behind one that is not answered: so many may lie in the bucket behind one that is missing or another's.
pub(super) const AHEAD_MAX: usize = 256;

/// How a session behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionOptions {
    /// The generation that the start says.
    pub(super) generation: Generation,
    /// Puts of this group that may be under way at once.
    pub(super) uploads_max: usize,
    /// Time between two heartbeats.
    pub(super) heartbeat_interval: Duration,
    /// Least time between two questions whether another writer has taken over.
    pub(super) validate_interval: Duration,
    /// What makes a position received.
    pub(super) rule: ReceivedBy,
    /// Largest segment in bytes.
    pub(super) segment_bytes_max: u64,
}

/// What makes a position received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceivedBy {
    /// The server's answers.
    Answers,
    /// The recovery site's word.
    Checks,
}

/// What the shell has to do.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// Ask the outbox what is sealed; answer with `handle_pending`.
    Fetch {
        /// First sequence wanted.
        from: Sequence,
        /// Most segments wanted.
        limit: usize,
    },
    /// Put a segment; answer with `handle_put` or `handle_put_failed`.
    Put(SegmentDescriptor),
    /// Ask for the next claim and, if so wanted, what the recovery site has checked; answer with `handle_validated`.
    Validate,
    /// Put a heartbeat; answer with `handle_beaten`.
    Heartbeat,
    /// Tell the outbox that everything up to here is received.
    Deliver(Position),
    /// Tell the outbox of a refusal.
    Report(Refusal),
    /// The session is over; nothing follows.
    End(End),
}

/// Why a session is over.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// Begin anew at once: the journal writes another generation.
    Anew,
    /// Begin anew soon.
    Retry,
    /// Refused: begin anew after the long pause.
    Refused,
    /// The bucket, or the journal, failed.
    Failed(Arc<RoadError>),
    /// Another writer has the group.
    Fenced(Box<Claim>),
    /// This side ends in good order.
    Goodbye,
}

/// Why a segment was not put.
#[derive(Clone, Debug)]
pub(super) enum PutFailure {
    /// It was trimmed after it was named.
    Gone,
    /// The journal's copy is of no use.
    Local(Refusal),
    /// The bucket failed.
    Bucket(Arc<RoadError>),
}

/// What the bucket says of the writer.
#[derive(Clone, Debug)]
pub(super) enum Validated {
    /// No newer claim; what the recovery site has checked, if it was asked for.
    Alone(Option<Position>),
    /// A claim of a session of this process arrived late.
    Late,
    /// Another writer has the group.
    Fenced(Box<Claim>),
    /// The bucket failed.
    Failed(Arc<RoadError>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Puts that are under way are waited for.
    Leaving,
    /// The last heartbeat is under way.
    Goodbye,
    Ended,
}

/// The machine.
#[derive(Debug)]
pub(super) struct BucketSession {
    options: SessionOptions,
    state: State,
    actions: VecDeque<Action>,
    /// Sequence and parent of the segment to fetch next.
    next: Sequence,
    parent: Hash,
    more: bool,
    fetching: bool,
    putting: BTreeMap<Sequence, Position>,
    /// Put, with a hole before them.
    ahead: BTreeMap<Sequence, Position>,
    /// Everything up to here is in the bucket.
    head: Option<Position>,
    /// Up to the head, not received.
    unreceived: BTreeMap<Sequence, Position>,
    /// What the head was when the question under way was asked.
    validating: Option<Option<Position>>,
    validated_at: Option<Instant>,
    /// Whether the last question before leaving was asked.
    asked_last: bool,
    begun_at: Instant,
    heartbeat_at: Instant,
    beating: bool,
}

impl BucketSession {
    /// Behind `behind`, of which everything up to `received` was told to be received before.
    pub(super) fn new(
        options: SessionOptions,
        behind: Option<Position>,
        received: Option<Position>,
        now: Instant,
    ) -> Self {
        let unreceived = behind.filter(|_| behind != received);
        let mut session = Self {
            options,
            state: State::Open,
            actions: VecDeque::new(),
            next: behind.map_or(Sequence(1), |behind| behind.sequence.next()),
            parent: behind.map_or(Hash::ZERO, |behind| behind.hash),
            more: true,
            fetching: false,
            putting: BTreeMap::new(),
            ahead: BTreeMap::new(),
            head: behind,
            unreceived: unreceived.map(|behind| (behind.sequence, behind)).into_iter().collect(),
            validating: None,
            validated_at: None,
            asked_last: false,
            begun_at: now,
            heartbeat_at: now,
            beating: false,
        };
        session.handle_timeout(now);
        session.fetch();
        session
    }

    /// The next thing to do.
    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When `handle_timeout` is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let heartbeat = (self.state == State::Open && !self.beating).then_some(self.heartbeat_at);
        [heartbeat, self.validate_at()].into_iter().flatten().min()
    }

    /// Everything up to here is in the bucket.
    pub(super) fn head(&self) -> Option<Position> {
        self.head
    }

    /// Puts under way, or waiting for their turn.
    pub(super) fn putting(&self) -> usize {
        self.putting.len()
    }

    /// Something was sealed.
    pub(super) fn handle_sealed(&mut self) {
        self.more = true;
        self.fetch();
    }

    /// The outbox answered what is sealed, and which generation it writes.
    pub(super) fn handle_pending(
        &mut self,
        generation: Generation,
        segments: Vec<SegmentDescriptor>,
        limit: usize,
    ) {
        self.fetching = false;
        if self.state != State::Open {
            return;
        }
        if generation != self.options.generation {
            return self.end(End::Anew);
        }
        self.more |= segments.len() >= limit;
        for segment in segments.into_iter().take(limit) {
            let sequence = segment.position.sequence;
            if sequence < self.next {
                continue;
            }
            if let Err(refusal) = self.check(&segment) {
                return self.refuse(refusal.of_segment(sequence));
            }
            (self.next, self.parent) = (sequence.next(), segment.position.hash);
            self.putting.insert(sequence, segment.position);
            self.actions.push_back(Action::Put(segment));
        }
        self.fetch();
    }

    /// The chain's rules, before a segment's name is used up.
    fn check(&self, segment: &SegmentDescriptor) -> Result<(), Refusal> {
        let limit = self.options.segment_bytes_max;
        let diverged = |reason: &str| {
            let hint = "the chain goes on from what the bucket has, and a resync follows";
            Err(Refusal::new(RefusalKind::Diverged, reason, hint))
        };
        if segment.size_bytes == 0 || segment.size_bytes > limit {
            let reason =
                format!("the segment has {} bytes; between 1 and {limit} can be sent", segment.size_bytes);
            let hint = "lower the size of segments in the source's settings";
            return Err(Refusal::new(RefusalKind::Invalid, reason, hint));
        }
        if segment.position.sequence != self.next {
            return diverged("a segment before it is missing");
        }
        if segment.parent != self.parent {
            return diverged("it does not continue the segment before it");
        }
        if segment.position.generation > self.options.generation {
            return diverged("its generation is newer than its writer's");
        }
        Ok(())
    }

    /// The server answered that a segment is in the bucket.
    pub(super) fn handle_put(&mut self, sequence: Sequence, now: Instant) {
        let Some(position) = self.putting.remove(&sequence) else { return };
        self.ahead.insert(sequence, position);
        let mut next = self.head.map_or(Sequence(1), |head| head.sequence.next());
        while let Some(position) = self.ahead.remove(&next) {
            self.head = Some(position);
            self.unreceived.insert(next, position);
            next = next.next();
        }
        self.fetch();
        self.validate(now);
        self.leave();
    }

    /// A segment could not be put.
    pub(super) fn handle_put_failed(&mut self, failure: PutFailure) {
        match failure {
            PutFailure::Gone => self.end(End::Retry),
            PutFailure::Local(refusal) => self.refuse(refusal),
            PutFailure::Bucket(error) => self.end(End::Failed(error)),
        }
    }

    /// The bucket answered whether this writer is alone.
    pub(super) fn handle_validated(&mut self, answer: Validated, now: Instant) {
        let Some(asked) = self.validating.take() else { return };
        self.validated_at = Some(now);
        match answer {
            Validated::Alone(checked) => {
                let received = match self.options.rule {
                    ReceivedBy::Answers => asked,
                    ReceivedBy::Checks => checked,
                };
                self.receive(received);
            }
            Validated::Late => return self.end(End::Anew),
            Validated::Fenced(by) => return self.end(End::Fenced(by)),
            Validated::Failed(error) => return self.end(End::Failed(error)),
        }
        self.validate(now);
        self.leave();
    }

    fn receive(&mut self, position: Option<Position>) {
        let ours = |position: &Position| self.unreceived.get(&position.sequence) == Some(position);
        let Some(position) = position.filter(ours) else { return };
        self.unreceived = self.unreceived.split_off(&position.sequence.next());
        self.actions.push_back(Action::Deliver(position));
    }

    /// A heartbeat was put, or could not be put.
    pub(super) fn handle_beaten(&mut self) {
        self.beating = false;
        if self.state == State::Goodbye {
            self.end(End::Goodbye);
        }
        self.leave();
    }

    /// This side wants to leave in good order.
    pub(super) fn handle_shutdown(&mut self, now: Instant) {
        if self.state == State::Open {
            self.state = State::Leaving;
            self.validate(now);
            self.leave();
        }
    }

    /// What is under way takes too long to be waited for.
    pub(super) fn handle_given_up(&mut self) {
        self.end(End::Goodbye);
    }

    /// Time has come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Open && !self.beating && self.heartbeat_at <= now {
            self.heartbeat_at = now + self.options.heartbeat_interval;
            self.beating = true;
            self.actions.push_back(Action::Heartbeat);
        }
        self.validate(now);
    }

    /// When the next question is due; none while there is nothing to ask for.
    fn validate_at(&self) -> Option<Instant> {
        if self.validating.is_some() || self.unreceived.is_empty() {
            return None;
        }
        let later = self.validated_at.map(|at| at + self.options.validate_interval);
        match self.state {
            State::Open => Some(later.unwrap_or(self.begun_at)),
            State::Leaving => (self.putting.is_empty() && !self.asked_last).then_some(self.begun_at),
            State::Goodbye | State::Ended => None,
        }
    }

    fn validate(&mut self, now: Instant) {
        if self.validate_at().is_some_and(|at| at <= now) {
            self.validating = Some(self.head);
            self.asked_last = self.state == State::Leaving;
            self.actions.push_back(Action::Validate);
        }
    }

    /// While leaving: says the last heartbeat once nothing is under way and what was put was asked about.
    fn leave(&mut self) {
        let asked = self.unreceived.is_empty() || self.asked_last;
        if self.state == State::Leaving
            && self.putting.is_empty()
            && self.validating.is_none()
            && !self.beating
            && asked
        {
            self.state = State::Goodbye;
            self.beating = true;
            self.actions.push_back(Action::Heartbeat);
        }
    }

    fn fetch(&mut self) {
        let ahead = self.putting.len() + self.ahead.len();
        let free = self.options.uploads_max.saturating_sub(self.putting.len());
        let room = free.min(AHEAD_MAX.saturating_sub(ahead));
        if self.state == State::Open && self.more && !self.fetching && room > 0 {
            self.more = false;
            self.fetching = true;
            self.actions.push_back(Action::Fetch { from: self.next, limit: room });
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        if self.state != State::Ended {
            self.actions.push_back(Action::Report(refusal));
            self.end(End::Refused);
        }
    }

    fn end(&mut self, end: End) {
        if self.state != State::Ended {
            self.state = State::Ended;
            self.actions.push_back(Action::End(end));
        }
    }
}

#[cfg(test)]
mod tests;
