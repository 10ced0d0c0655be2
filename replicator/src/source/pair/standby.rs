//! The standby host: keeps what the active one sends, and says whether it is enough to take over without comparing everything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use journal::{Clock, Standby, StandbySegment, StoredSegment};
use journal_format::{Generation, GroupName, Position, Timestamp};
use serde_json::{Value, json};
use tracing::{info, warn};
use transport::{
    Begin, CallAnswer, CallRequest, Heartbeat, Inbox, PeerName, Refusal, RefusalKind, SegmentDescriptor,
    SegmentSink,
};

use super::{PairAnswer, PairMessage, VERSION, settings_hash};
use crate::failure::with_causes;

/// Answers remembered until the active host has heard a newer one.
const ANSWERS_MAX: usize = 4096;

/// What is known of the active host's promise.
#[derive(Default)]
struct Lease {
    in_step: bool,
    patience: Duration,
    /// Numbers of calls and when they were answered.
    answered: VecDeque<(u64, Timestamp)>,
    end: Option<Timestamp>,
    connected: bool,
}

impl Lease {
    /// The active host has heard an answer: from when it left, its patience counts.
    fn heard(&mut self, heard: u64) {
        while let Some(&(number, at)) = self.answered.front().filter(|(number, _)| *number <= heard) {
            self.answered.pop_front();
            if number == heard {
                self.end = Some(Timestamp(at.0.saturating_add(self.patience.as_nanos() as i64)));
            }
        }
    }

    fn answered(&mut self, number: u64, now: Timestamp) {
        if self.answered.len() == ANSWERS_MAX {
            self.answered.pop_front();
        }
        self.answered.push_back((number, now));
    }
}

/// One group of the standby.
struct Kept {
    standby: Arc<Standby>,
    lease: Mutex<Lease>,
}

/// All groups of the standby.
pub(in crate::source) struct StandbyInbox {
    groups: BTreeMap<GroupName, Kept>,
    clock: Arc<dyn Clock>,
}

impl StandbyInbox {
    pub(in crate::source) fn new(groups: Vec<Arc<Standby>>, clock: Arc<dyn Clock>) -> Self {
        let kept =
            |standby: Arc<Standby>| (standby.name().clone(), Kept { standby, lease: Mutex::default() });
        StandbyInbox { groups: groups.into_iter().map(kept).collect(), clock }
    }

    /// Takes away marks that are not needed any more.
    pub(in crate::source) fn clear_marks(&self) {
        self.groups.values().for_each(|kept| kept.standby.clear_marks());
    }

    /// Makes this host's journals the ones that write. Everything that cannot be vouched for is marked.
    pub(in crate::source) fn take_over(&self) -> anyhow::Result<()> {
        for (group, kept) in &self.groups {
            let lease = kept.lock();
            let fresh = lease.in_step && kept.standby.is_fresh(self.clock.now(), lease.end);
            let generation = kept.standby.take_over(fresh)?;
            if fresh {
                info!(%group, %generation, "this host has taken over; its intent map is up to date");
            } else {
                warn!(%group, %generation, "this host has taken over; its intent map may be old, so everything is compared with the recovery site");
            }
        }
        Ok(())
    }

    /// For `status`.
    pub(in crate::source) fn report(&self) -> Vec<Value> {
        let group = |(name, kept): (&GroupName, &Kept)| {
            let lease = kept.lock();
            let detail = match (lease.in_step, lease.connected) {
                (true, true) => "in step with the active host",
                (true, false) => "the active host is not connected; this host has what it had then",
                (false, true) => "the active host sends what this host lacks",
                (false, false) => "the active host has not connected yet",
            };
            json!({
                "name": name,
                "state": "standby",
                "detail": detail,
                "connected": lease.connected,
                "in_step": lease.in_step,
                "generation": kept.standby.generation(),
                "head": kept.standby.head().map(|position| position.to_string()),
            })
        };
        self.groups.iter().map(group).collect()
    }

    fn kept(&self, group: &GroupName) -> Result<&Kept, Refusal> {
        self.groups.get(group).ok_or_else(|| {
            let hint = "both hosts of a pair need the same groups in their settings";
            Refusal::new(RefusalKind::Invalid, format!("this host has no group '{group}'"), hint)
        })
    }

    fn perform(&self, kept: &Kept, message: PairMessage) -> Result<(), String> {
        let failed = |error: journal::JournalError| with_causes(&error);
        match message {
            PairMessage::Begin(begin) => {
                if begin.version != VERSION {
                    return Err(format!(
                        "the other host speaks version {} of the pair's link",
                        begin.version
                    ));
                }
                if begin.settings != settings_hash(kept.standby.volumes()) {
                    return Err(
                        "the volumes or their sizes differ between the settings of the two hosts".to_owned()
                    );
                }
                let patience = Duration::from_millis(begin.patience_ms);
                *kept.lock() = Lease { patience, connected: true, ..Lease::default() };
                kept.standby.forget_told();
                kept.standby.begin(begin.next, begin.parent).map_err(failed)?;
                begin.covered.map_or(Ok(()), |position| kept.standby.covered(position)).map_err(failed)
            }
            PairMessage::Marks { number, heard, pages } => {
                kept.standby.mark(pages.into_iter().map(Into::into).collect());
                kept.answer(number, heard, self.clock.now());
                Ok(())
            }
            PairMessage::Complete { number, heard } => {
                kept.lock().in_step = true;
                kept.answer(number, heard, self.clock.now());
                info!(group = %kept.standby.name(), "in step with the active host");
                Ok(())
            }
            PairMessage::Lease { number, heard, covered } => {
                kept.answer(number, heard, self.clock.now());
                covered.map_or(Ok(()), |position| kept.standby.covered(position)).map_err(failed)
            }
        }
    }
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, number: u64, heard: u64, now: Timestamp) {
        let mut lease = self.lock();
        lease.heard(heard);
        lease.answered(number, now);
    }
}

impl Inbox for StandbyInbox {
    fn claim(&self, _peer: &PeerName, group: &GroupName, generation: Generation) -> Result<(), Refusal> {
        let kept = self.kept(group)?;
        let known = kept.standby.generation();
        if generation < known {
            let reason = format!("generation {known} exists; the other host writes generation {generation}");
            let hint = "the host that was active before becomes the standby";
            return Err(Refusal::new(RefusalKind::Fenced, reason, hint));
        }
        kept.standby.note_generation(generation).map_err(|error| retry(&error))
    }

    fn open_group(&self, _peer: &PeerName, group: &GroupName) -> Result<Option<Position>, Refusal> {
        let kept = self.kept(group)?;
        kept.lock().connected = true;
        Ok(kept.standby.head())
    }

    fn begin(&self, group: &GroupName, segment: &SegmentDescriptor) -> Result<Begin, Refusal> {
        let kept = self.kept(group)?;
        let SegmentDescriptor { position, parent, size_bytes } = *segment;
        let stored = StoredSegment { position, parent, size_bytes, more_parts: false };
        match kept.standby.receive(stored).map_err(|error| retry(&error))? {
            Some(segment) => {
                Ok(Begin::Receive(Box::new(Sink { segment: Some(segment), next: 0, ahead: BTreeMap::new() })))
            }
            None => Ok(Begin::Have(kept.standby.head())),
        }
    }

    fn heartbeat(&self, _group: &GroupName, _heartbeat: &Heartbeat, _received_at: Timestamp) {}

    fn call(&self, group: &GroupName, request: CallRequest) -> Result<CallAnswer, Refusal> {
        let CallRequest::Pair(bytes) = request else {
            return Err(Refusal::new(RefusalKind::Invalid, "a standby compares nothing", ""));
        };
        let Some(message) = PairMessage::decode(&bytes) else {
            return Err(Refusal::new(RefusalKind::Invalid, "the message is not understood", ""));
        };
        let answer = match self.perform(self.kept(group)?, message) {
            Ok(()) => PairAnswer::Done,
            Err(reason) => PairAnswer::Refused(reason),
        };
        Ok(CallAnswer::Pair(answer.encode()))
    }

    fn closed(&self, _peer: &PeerName, group: &GroupName) {
        if let Ok(kept) = self.kept(group) {
            kept.lock().connected = false;
        }
    }
}

/// A standby's segment is only added to, so that what comes ahead of its turn waits in memory: on a pair's network that is
/// little, and never more than the connection's window.
struct Sink {
    segment: Option<StandbySegment>,
    next: u64,
    ahead: BTreeMap<u64, Vec<u8>>,
}

impl SegmentSink for Sink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let segment = self.segment.as_mut().expect("a sink is committed once");
        let mut append = |next: &mut u64, offset: u64, bytes: &[u8]| {
            let new = bytes.get(usize::try_from(*next - offset).unwrap_or(usize::MAX)..).unwrap_or_default();
            *next += new.len() as u64;
            segment.append(new).map_err(|error| retry(&error))
        };
        if offset > self.next {
            self.ahead.insert(offset, bytes.to_vec());
            return Ok(());
        }
        append(&mut self.next, offset, bytes)?;
        while let Some(first) = self.ahead.first_entry().filter(|first| *first.key() <= self.next) {
            let (offset, bytes) = first.remove_entry();
            append(&mut self.next, offset, &bytes)?;
        }
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<Option<Position>, Refusal> {
        let segment = self.segment.take().expect("a sink is committed once");
        segment.commit().map_err(|error| retry(&error))
    }
}

fn retry(error: &(dyn std::error::Error + 'static)) -> Refusal {
    Refusal::new(RefusalKind::Retry, with_causes(error), "check the journal's disk of the standby host")
}

/// Refuses everybody: this host is active.
pub(in crate::source) struct ActiveInbox {
    pub(in crate::source) groups: BTreeMap<GroupName, Generation>,
    /// Told when the other host writes a newer generation.
    pub(in crate::source) fenced: Arc<tokio::sync::Notify>,
}

impl Inbox for ActiveInbox {
    fn claim(&self, peer: &PeerName, group: &GroupName, generation: Generation) -> Result<(), Refusal> {
        let own = self.groups.get(group).copied().unwrap_or(Generation(0));
        if generation > own {
            self.fenced.notify_one();
            return Err(Refusal::new(RefusalKind::Retry, "this host steps down", ""));
        }
        let reason = format!("this host is active with generation {own}; '{peer}' writes {generation}");
        // Of two with the same generation the recovery site decides.
        let kind = if generation == own { RefusalKind::Busy } else { RefusalKind::Fenced };
        Err(Refusal::new(kind, reason, "one host of a pair is active at a time"))
    }

    fn open_group(&self, _peer: &PeerName, _group: &GroupName) -> Result<Option<Position>, Refusal> {
        Err(Refusal::new(RefusalKind::Fenced, "this host is active", ""))
    }

    fn begin(&self, _group: &GroupName, _segment: &SegmentDescriptor) -> Result<Begin, Refusal> {
        Err(Refusal::new(RefusalKind::Fenced, "this host is active", ""))
    }

    fn heartbeat(&self, _group: &GroupName, _heartbeat: &Heartbeat, _received_at: Timestamp) {}

    fn closed(&self, _peer: &PeerName, _group: &GroupName) {}
}
