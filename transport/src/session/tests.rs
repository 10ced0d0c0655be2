//! Both machines against each other in virtual time: random schedules of segments, messages and faults.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use journal_format::{Generation, Hash, Position, Sequence, Timestamp};

use super::*;
use crate::identity::Signature;
use crate::testing::{group, segment};
use crate::wire::{
    Heartbeat, Hello, PROTOCOL_VERSION, Receipt, Refusal, RefusalKind, SegmentDescriptor, SiteMessage,
    SourceMessage,
};

const WRITING_MAX: usize = 4;
const UNCONFIRMED_MAX: usize = 9;
const STEPS_WITH_FAULTS: usize = 1500;
/// Far more than what is left takes without faults, so that a session that is stuck fails the test.
const STEPS_TO_FINISH: usize = 20_000;

/// Xorshift (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// A segment on its way.
struct Stream {
    segment: SegmentDescriptor,
    /// All its bytes were handed to the connection.
    written: bool,
    /// The source knows that the site's endpoint has them.
    delivered: bool,
    /// The site's store has it.
    taken: bool,
}

enum Outcome {
    Had(Option<Position>),
    Committed(Option<Position>),
    Refused(Sequence, Refusal),
}

enum Event {
    Seal,
    MessageToSite,
    MessageToSource,
    Stream(usize),
    Outcome(usize),
    Receipt,
    Time,
    Loss,
    SiteStops,
    SourceStops,
}

/// What happened over all seeds, to see that the schedules reach what they are for.
#[derive(Default)]
struct Totals {
    sealed: usize,
    shipped: usize,
    sessions: usize,
    refusals: usize,
    receipts: usize,
}

struct Simulation {
    random: Random,
    now: Instant,
    faults: bool,
    /// What the source's journal has sealed, and how much of it has a receipt.
    chain: Vec<SegmentDescriptor>,
    confirmed: u64,
    /// What the site has made durable.
    stored: BTreeSet<u64>,
    source: SourceSession,
    site: SiteSession,
    ended: Option<SourceEnd>,
    site_ended: bool,
    to_site: VecDeque<SourceMessage>,
    to_source: VecDeque<SiteMessage>,
    streams: Vec<Stream>,
    /// What the store has done and the site's session has not heard of.
    outcomes: Vec<Outcome>,
    /// The newest receipt on its way. It belongs to the connection, not to the session.
    receipt: Option<Position>,
    /// Sequence that this session began with, and the one that it ships next.
    first: u64,
    next: u64,
    /// Newest receipt of this session.
    session_confirmed: u64,
    totals: Totals,
}

fn new_source(chain: &[SegmentDescriptor], now: Instant) -> SourceSession {
    let options = SourceSessionOptions {
        heartbeat_interval: Duration::from_secs(2),
        writing_max: WRITING_MAX,
        unconfirmed_max: UNCONFIRMED_MAX,
        receipt_timeout: Duration::from_secs(60),
        silence_timeout: Duration::from_secs(120),
        segment_bytes_max: 1000,
    };
    let head = chain.last().map(|segment| segment.position);
    let hello = Hello {
        software: String::new(),
        group: group("a"),
        generation: Generation(1),
        head,
        oldest: Sequence(1),
    };
    SourceSession::new(options, hello, now)
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let mut simulation = Self {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now,
            faults: true,
            chain: Vec::new(),
            confirmed: 0,
            stored: BTreeSet::new(),
            source: new_source(&[], now),
            site: SiteSession::new(String::new(), 1000),
            ended: None,
            site_ended: false,
            to_site: VecDeque::new(),
            to_source: VecDeque::new(),
            streams: Vec::new(),
            outcomes: Vec::new(),
            receipt: None,
            first: 1,
            next: 1,
            session_confirmed: 0,
            totals: Totals::default(),
        };
        simulation.settle();
        simulation
    }

    fn run(mut self) -> Totals {
        for _ in 0..STEPS_WITH_FAULTS {
            self.step();
        }
        self.faults = false;
        let mut steps = 0;
        while self.confirmed < self.chain.len() as u64 {
            self.step();
            steps += 1;
            assert!(steps < STEPS_TO_FINISH, "stuck at {} of {}", self.confirmed, self.chain.len());
        }
        assert_eq!(self.head().map(|head| head.sequence.0).unwrap_or_default(), self.confirmed);
        Totals { sealed: self.chain.len(), ..self.totals }
    }

    /// The site's contiguous head.
    fn head(&self) -> Option<Position> {
        let count = (1..).take_while(|sequence| self.stored.contains(sequence)).count();
        count.checked_sub(1).map(|last| self.chain[last].position)
    }

    fn step(&mut self) {
        let event = self.choose();
        self.apply(event);
        self.settle();
        assert!(self.streams.iter().filter(|stream| !stream.written).count() <= WRITING_MAX);
        let unconfirmed = self.next - self.first.max(self.session_confirmed + 1).min(self.next);
        assert!(unconfirmed <= UNCONFIRMED_MAX as u64, "{unconfirmed} are without receipt");
    }

    fn choose(&mut self) -> Event {
        if self.faults {
            match self.random.below(400) {
                0 => return Event::Loss,
                1 => return Event::SiteStops,
                2 => return Event::SourceStops,
                3..6 => return Event::Time,
                6..70 => return Event::Seal,
                _ => {}
            }
        }
        let mut events: Vec<Event> = (0..self.streams.len())
            .map(Event::Stream)
            .chain((0..self.outcomes.len()).map(Event::Outcome))
            .collect();
        if !self.to_site.is_empty() {
            events.push(Event::MessageToSite);
        }
        if !self.to_source.is_empty() || self.site_ended {
            events.push(Event::MessageToSource);
        }
        if self.receipt.is_some() {
            events.push(Event::Receipt);
        }
        // Time passes when nothing else happens.
        if events.is_empty() { Event::Time } else { events.swap_remove(self.random.below(events.len())) }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Seal => {
                let parent = self.chain.last().map_or(Hash::ZERO, |last| last.position.hash);
                self.chain.push(segment(self.chain.len() as u64 + 1, 10, parent).0);
                self.source.handle_sealed();
            }
            Event::MessageToSite => {
                let message = self.to_site.pop_front().expect("it was chosen");
                self.site.handle_message(message, Timestamp(0));
            }
            Event::MessageToSource => match self.to_source.pop_front() {
                Some(message) => self.source.handle_message(message, self.now),
                None => self.source.handle_lost(),
            },
            Event::Stream(index) => self.advance_stream(index),
            Event::Outcome(index) => {
                let outcome = self.outcomes.swap_remove(index);
                self.report(outcome);
            }
            Event::Receipt => {
                let position = self.receipt.take().expect("it was chosen");
                self.source.handle_receipt(receipt(position), self.now);
            }
            Event::Time => {
                self.now = self.source.poll_timeout().expect("a session waits for something").max(self.now);
                self.source.handle_timeout(self.now);
            }
            Event::Loss => {
                self.streams.clear();
                self.source.handle_lost();
                self.site.handle_lost();
            }
            Event::SiteStops => self.site.handle_shutdown(),
            Event::SourceStops => self.source.handle_shutdown(),
        }
    }

    /// Bytes are handed over; then the site takes them and the source hears of it, in either order.
    fn advance_stream(&mut self, index: usize) {
        let sequence = self.streams[index].segment.position.sequence;
        if !self.streams[index].written {
            self.streams[index].written = true;
            self.source.handle_written(sequence, self.now);
        } else if !self.streams[index].delivered && (self.streams[index].taken || self.random.one_in(2)) {
            self.streams[index].delivered = true;
            self.source.handle_delivered(sequence, self.now);
        } else {
            self.take(index);
        }
        self.streams.retain(|stream| !(stream.delivered && stream.taken));
    }

    fn take(&mut self, index: usize) {
        let Stream { segment, delivered, .. } = self.streams[index];
        let sequence = segment.position.sequence;
        let stopped = if !self.site.handle_offer(&segment) {
            Some(WriteFailure::Stopped)
        } else if self.faults && self.random.one_in(40) {
            let kinds = [RefusalKind::Full, RefusalKind::Retry, RefusalKind::Corrupt, RefusalKind::Diverged];
            let refusal = Refusal::new(kinds[self.random.below(kinds.len())], "no", "");
            self.outcomes.push(Outcome::Refused(sequence, refusal));
            Some(WriteFailure::Stopped)
        } else if self.stored.contains(&sequence.0) {
            self.outcomes.push(Outcome::Had(self.head()));
            None
        } else {
            self.stored.insert(sequence.0);
            self.outcomes.push(Outcome::Committed(self.head()));
            self.streams[index].taken = true;
            return;
        };
        // The site stopped the stream, which the source sees unless it knew that everything had arrived.
        self.streams.swap_remove(index);
        match stopped {
            _ if delivered => {}
            Some(failure) => self.source.handle_write_failed(failure, self.now),
            None => self.source.handle_delivered(sequence, self.now),
        }
    }

    fn report(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Had(head) => self.site.handle_had(head),
            Outcome::Committed(head) => self.site.handle_committed(head),
            Outcome::Refused(sequence, refusal) => self.site.handle_refused(sequence, refusal),
        }
    }

    /// Performs what the machines ask for, and begins the next session when the source's is over.
    fn settle(&mut self) {
        loop {
            if let Some(action) = self.source.poll_action() {
                self.perform_source(action);
            } else if let Some(action) = self.site.poll_action() {
                self.perform_site(action);
            } else if let Some(end) = self.ended.take() {
                self.begin_anew(end);
            } else {
                return;
            }
        }
    }

    fn perform_source(&mut self, action: SourceAction) {
        assert_eq!(self.ended, None, "{action:?} after the end");
        match action {
            SourceAction::Send(message) => self.to_site.push_back(message),
            SourceAction::Opened(_) => {}
            SourceAction::Resume(head) => {
                let head = head.map_or(0, |head| head.sequence.0);
                assert!(head >= self.confirmed, "the site lost what has a receipt");
                (self.first, self.next) = (head + 1, head + 1);
                self.source.handle_resumed(Ok(Sequence(self.next)), self.now);
            }
            SourceAction::Heartbeat => {
                let heartbeat = Heartbeat {
                    now: Timestamp(0),
                    newest_cut: None,
                    backlog_bytes: 0,
                    backlog_segments: 0,
                    state: String::new(),
                };
                self.source.handle_heartbeat(heartbeat);
            }
            SourceAction::Fetch { from, limit } => {
                let pending = self.chain.iter().skip(from.0 as usize - 1).take(limit).copied().collect();
                self.source.handle_pending(pending, limit, self.now);
            }
            SourceAction::Ship(segment) => {
                let sequence = segment.position.sequence.0;
                // In order and once in a session; what it leaves out, and nothing else, has a receipt.
                assert!(sequence > self.confirmed, "{sequence} has a receipt");
                let wanted = self.next.max(self.session_confirmed + 1);
                assert_eq!(sequence, wanted, "after {} with receipts", self.session_confirmed);
                self.next = sequence + 1;
                self.totals.shipped += 1;
                self.streams.push(Stream { segment, written: false, delivered: false, taken: false });
            }
            SourceAction::Deliver(receipt) => {
                let sequence = receipt.position.sequence.0;
                assert!(
                    self.head().is_some_and(|head| sequence <= head.sequence.0),
                    "{sequence} is not durable"
                );
                assert!(sequence >= self.session_confirmed, "receipts go backwards to {sequence}");
                self.session_confirmed = sequence;
                self.confirmed = self.confirmed.max(sequence);
                self.totals.receipts += 1;
            }
            SourceAction::Report(_) => self.totals.refusals += 1,
            SourceAction::End(end) => self.ended = Some(end),
        }
    }

    fn perform_site(&mut self, action: SiteAction) {
        match action {
            SiteAction::Open(..) => {
                let busy = self.faults && self.random.one_in(20);
                let refusal = Refusal::new(RefusalKind::Busy, "busy", "");
                self.site.handle_opened(if busy { Err(refusal) } else { Ok((self.head(), Vec::new())) });
            }
            SiteAction::Send(message) => {
                assert!(!self.site_ended, "{message:?} after the end");
                self.to_source.push_back(message);
            }
            SiteAction::Receipt(position) => self.receipt = Some(position),
            SiteAction::Heartbeat(_) => {}
            SiteAction::End => self.site_ended = true,
            SiteAction::Violation(what) => panic!("the source broke the protocol: {what}"),
        }
    }

    fn begin_anew(&mut self, end: SourceEnd) {
        // What has arrived may still become durable and get its receipt; the rest is discarded.
        self.site.handle_lost();
        for stream in std::mem::take(&mut self.streams) {
            let sequence = stream.segment.position.sequence.0;
            if stream.written && !stream.taken && !self.site_ended && self.random.one_in(2) {
                self.stored.insert(sequence);
                self.outcomes.push(Outcome::Committed(self.head()));
            }
        }
        while let Some(outcome) = self.outcomes.pop() {
            self.report(outcome);
        }
        while let Some(action) = self.site.poll_action() {
            self.perform_site(action);
        }
        // A refusal leaves the connection as it is; the others end it, or may have.
        if end != SourceEnd::Refused {
            self.receipt = None;
        }
        self.to_site.clear();
        self.to_source.clear();
        self.source = new_source(&self.chain, self.now);
        self.site = SiteSession::new(String::new(), 1000);
        self.source.handle_version(PROTOCOL_VERSION);
        self.site.handle_version(PROTOCOL_VERSION);
        self.site_ended = false;
        (self.first, self.next, self.session_confirmed) = (1, 1, 0);
        self.totals.sessions += 1;
    }
}

fn receipt(position: Position) -> Receipt {
    Receipt { group: group("a"), position, time: Timestamp(0), signature: Signature([0; 64]) }
}

#[test]
fn everything_sealed_is_confirmed_whatever_gets_lost() {
    let mut totals = Totals::default();
    for seed in 0..300 {
        println!("seed {seed}");
        let Totals { sealed, shipped, sessions, refusals, receipts } = Simulation::new(seed).run();
        totals.sealed += sealed;
        totals.shipped += shipped;
        totals.sessions += sessions;
        totals.refusals += refusals;
        totals.receipts += receipts;
    }
    let Totals { sealed, shipped, sessions, refusals, receipts } = totals;
    println!(
        "{sealed} sealed, {shipped} shipped, {sessions} sessions, {refusals} refusals, {receipts} receipts"
    );
    assert!(shipped > sealed && refusals > 1000 && sessions > refusals && receipts > 1000);
}
