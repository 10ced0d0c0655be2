//! The active host's side of the pair: takes marks to the standby before writes go on, and goes on alone when it must.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use journal::{Group, MarkReplica, MarkedPage};
use journal_format::{GroupName, Position, Sequence};
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use tokio::sync::Notify;
use tracing::{info, warn};
use transport::{
    CallAnswer, CallError, CallRequest, Caller, Heartbeat, LinkState, Outbox, PendingCall, Refusal,
    RefusalKind, SegmentDescriptor,
};

use super::{Begin, PairAnswer, PairMessage, VERSION, settings_hash};
use crate::failure::with_causes;
use crate::source::member::Member;

/// Pages in one call.
const PAGES_MAX: usize = 100;
const LEASE_INTERVAL: Duration = Duration::from_millis(300);
/// An answer that takes longer is taken for lost.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// How this host stands with the other.
struct State {
    caller: Option<Caller>,
    connected: bool,
    /// Marks are sent; they were all sent once if `complete`.
    in_step: bool,
    complete: bool,
    /// Counts the times that sending all pages was finished.
    joins: u64,
    alone: bool,
    number: u64,
    heard: u64,
    last_answer: Instant,
    reason: Option<String>,
}

/// How long to wait for a standby.
pub(crate) struct ReplicaOptions {
    /// After its last answer.
    pub(crate) patience: Duration,
    /// After the start, if it does not answer at all.
    pub(crate) waits_for: Duration,
}

/// The way to the standby for one group.
pub(crate) struct PairReplica {
    group: Arc<Group>,
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
    fenced: Arc<Notify>,
}

impl PairReplica {
    /// Begins to send marks of a group; `fenced` is told when the other host has taken over.
    pub(crate) fn start(
        group: Arc<Group>,
        options: ReplicaOptions,
        fenced: Arc<Notify>,
    ) -> io::Result<(Arc<PairReplica>, JoinHandle<()>)> {
        let ReplicaOptions { patience, waits_for } = options;
        let now = Instant::now();
        let state = State {
            caller: None,
            connected: false,
            in_step: false,
            complete: false,
            joins: 0,
            alone: false,
            number: 0,
            heard: 0,
            last_answer: now.checked_sub(patience.saturating_sub(waits_for)).unwrap_or(now),
            reason: None,
        };
        let replica = Arc::new(PairReplica {
            group,
            patience,
            state: Mutex::new(state),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            fenced,
        });
        replica.group.set_mark_replica(Some(replica.clone() as Arc<dyn MarkReplica>));
        let running = replica.clone();
        let name = format!("pair {}", replica.group.name());
        Ok((replica, Builder::new().name(name).spawn(move || running.run())?))
    }

    pub(crate) fn set_caller(&self, caller: Option<Caller>) {
        self.lock().caller = caller;
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// For `status`.
    pub(crate) fn report(&self) -> Value {
        let state = self.lock();
        let word = match (state.complete, state.alone) {
            (true, _) => "in-step",
            (false, true) => "alone",
            (false, false) => "joining",
        };
        json!({"state": word, "connected": state.connected, "reason": state.reason})
    }

    fn run(&self) {
        while !self.stopping.load(Ordering::SeqCst) {
            let connected = self.lock().connected;
            let result = if connected { self.join_and_hold() } else { Ok(()) };
            if let Err(reason) = result {
                self.left(&reason);
            }
            self.go_alone_if_due();
            let state = self.lock();
            drop(self.changed.wait_timeout(state, LEASE_INTERVAL).unwrap_or_else(PoisonError::into_inner));
        }
        self.group.set_mark_replica(None);
    }

    /// Sends everything once, and then keeps the lease until something fails.
    fn join_and_hold(&self) -> Result<(), String> {
        let (next, parent) = self.group.beginning();
        let volumes: Vec<_> =
            self.group.volumes().iter().map(|volume| (volume.name.clone(), volume.size_bytes)).collect();
        let begin = Begin {
            version: VERSION,
            settings: settings_hash(volumes.iter().map(|(name, size)| (name, *size))),
            volumes,
            next,
            parent,
            covered: self.group.acknowledged(),
            patience_ms: self.patience.as_millis() as u64,
        };
        self.say(|_, _| PairMessage::Begin(begin.clone()))?;
        // From here on new marks are sent, too; the pages are looked at after that.
        self.lock().in_step = true;
        for pages in self.group.marked_pages().chunks(PAGES_MAX) {
            let pages: Vec<_> = pages.iter().map(Into::into).collect();
            self.say(|number, heard| PairMessage::Marks { number, heard, pages: pages.clone() })?;
        }
        self.say(|number, heard| PairMessage::Complete { number, heard })?;
        let mut state = self.lock();
        (state.complete, state.alone, state.reason) = (true, false, None);
        state.joins += 1;
        drop(state);
        self.changed.notify_all();
        info!(group = %self.group.name(), "the standby is in step");
        while !self.stopping.load(Ordering::SeqCst) {
            // A mark that was not answered ended the step; a lease must not be kept up without it.
            if !self.lock().in_step {
                return Err("a mark was not answered".to_owned());
            }
            let covered = self.group.acknowledged();
            self.say(|number, heard| PairMessage::Lease { number, heard, covered })?;
            let state = self.lock();
            drop(self.changed.wait_timeout(state, LEASE_INTERVAL).unwrap_or_else(PoisonError::into_inner));
        }
        Ok(())
    }

    fn say(&self, message: impl Fn(u64, u64) -> PairMessage) -> Result<(), String> {
        let (number, call) = self.begin_call(message).ok_or_else(|| "not connected".to_owned())?;
        self.hear(number, call.wait(ANSWER_PATIENCE))
    }

    fn begin_call(&self, message: impl Fn(u64, u64) -> PairMessage) -> Option<(u64, PendingCall)> {
        let mut state = self.lock();
        state.number += 1;
        let (number, heard, caller) = (state.number, state.heard, state.caller.clone()?);
        drop(state);
        let request = CallRequest::Pair(message(number, heard).encode());
        Some((number, caller.start(request)))
    }

    fn hear(&self, number: u64, answer: Result<CallAnswer, CallError>) -> Result<(), String> {
        match answer {
            Ok(CallAnswer::Pair(bytes)) => match PairAnswer::decode(&bytes) {
                Some(PairAnswer::Done) => {
                    let mut state = self.lock();
                    state.heard = state.heard.max(number);
                    state.last_answer = Instant::now();
                    Ok(())
                }
                Some(PairAnswer::Refused(reason)) => Err(reason),
                None => Err("the standby's answer is not understood".to_owned()),
            },
            Ok(CallAnswer::Refused(refusal)) => Err(refusal.to_string()),
            Ok(_) => Err("the standby's answer is not understood".to_owned()),
            Err(error) => Err(with_causes(&error)),
        }
    }

    fn left(&self, reason: &str) {
        let mut state = self.lock();
        if state.in_step || state.reason.as_deref() != Some(reason) {
            warn!(group = %self.group.name(), reason, "the standby is not in step");
        }
        (state.in_step, state.complete, state.reason) = (false, false, Some(reason.to_owned()));
        drop(state);
        self.changed.notify_all();
    }

    fn go_alone_if_due(&self) {
        let mut state = self.lock();
        if !state.in_step && !state.alone && state.last_answer.elapsed() >= self.patience {
            state.alone = true;
            drop(state);
            warn!(group = %self.group.name(), "going on alone: until the standby is back, a takeover by it compares everything with the recovery site");
            self.changed.notify_all();
        }
    }

    /// Waits until the standby has everything again, or until this host may go on alone.
    fn wait_until_settled(&self, joins: u64) {
        let mut state = self.lock();
        while state.joins == joins && !state.alone && !self.stopping.load(Ordering::SeqCst) {
            let left = self.patience.saturating_sub(state.last_answer.elapsed());
            if left.is_zero() && !state.in_step {
                drop(state);
                return self.go_alone_if_due();
            }
            let left = left.max(Duration::from_millis(10));
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The standby's part in a mark that is under way.
struct Sent {
    joins: u64,
    calls: Vec<Option<(u64, PendingCall)>>,
}

impl MarkReplica for PairReplica {
    fn send<'a>(&'a self, pages: &[MarkedPage]) -> Box<dyn FnOnce() + Send + 'a> {
        let state = self.lock();
        let (alone, in_step, joins) = (state.alone, state.in_step, state.joins);
        drop(state);
        if alone && !in_step {
            return Box::new(|| {});
        }
        let send = |pages: &[MarkedPage]| {
            let pages: Vec<_> = pages.iter().map(Into::into).collect();
            self.begin_call(|number, heard| PairMessage::Marks { number, heard, pages: pages.clone() })
        };
        let calls = if in_step { pages.chunks(PAGES_MAX).map(send).collect() } else { vec![None] };
        let sent = Sent { joins, calls };
        Box::new(move || {
            for call in sent.calls {
                let heard = match call {
                    Some((number, call)) => self.hear(number, call.wait(self.patience)),
                    None => Err("not connected".to_owned()),
                };
                if let Err(reason) = heard {
                    self.left(&reason);
                    return self.wait_until_settled(sent.joins);
                }
            }
        })
    }
}

/// Ships a group's segments to the standby.
pub(crate) struct PairOutbox {
    pub(crate) member: Arc<Member>,
    pub(crate) replica: Arc<PairReplica>,
    pub(crate) wake: Arc<Notify>,
}

impl Outbox for PairOutbox {
    fn group(&self) -> &GroupName {
        self.member.name()
    }

    fn generation(&self) -> journal_format::Generation {
        self.member.group.generation()
    }

    fn head(&self) -> Option<Position> {
        self.member.group.head()
    }

    fn oldest(&self) -> Sequence {
        self.member.group.oldest()
    }

    fn site_head(&self, head: Option<Position>) -> Result<Sequence, Refusal> {
        Ok(self.member.group.continue_behind(head))
    }

    fn pending(&self, from: Sequence, limit: usize) -> Vec<SegmentDescriptor> {
        self.member.descriptors(from, limit)
    }

    fn open(&self, sequence: Sequence) -> io::Result<File> {
        self.member.open_segment(sequence)
    }

    fn wake(&self) -> &Notify {
        &self.wake
    }

    fn receipt(&self, _position: Position) {}

    fn heartbeat(&self) -> Heartbeat {
        let now = self.member.clock.now();
        Heartbeat { now, newest_cut: None, backlog_bytes: 0, backlog_segments: 0, state: String::new() }
    }

    fn refused(&self, refusal: &Refusal) {
        self.replica.left(&refusal.to_string());
        if refusal.kind == RefusalKind::Fenced {
            self.replica.fenced.notify_one();
        }
    }

    fn link(&self, state: LinkState) {
        let connected = matches!(state, LinkState::Connected { .. });
        if let LinkState::Disconnected(error) = &state {
            self.replica.left(&with_causes(&**error));
        }
        self.replica.lock().connected = connected;
        self.replica.changed.notify_all();
    }
}
