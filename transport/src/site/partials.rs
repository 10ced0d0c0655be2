//! Segments that are not complete: what is here of them outlives the session, within limits, so that it is not sent again.
//!
//! A partial is used by one session of its source at a time, and lies idle between sessions. Only idle ones are evicted. The locks of
//! partials are held while the store works, on blocking threads; that of the table never is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use journal_format::{Generation, GroupName, Position};

use crate::names::PeerName;
use crate::ranges::Ranges;
use crate::traits::{Begin, Inbox, SegmentSink};
use crate::wire::{PARTIAL_RANGES_MAX, PARTIALS_MAX, Partial, Refusal, RefusalKind, SegmentDescriptor};

/// Segments that one session may receive at once.
const ACTIVE_MAX: usize = 128;
/// Ranges of a partial.
const RANGES_MAX: usize = 16 << 10;

/// What is kept of segments whose session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialLimits {
    /// Segments of one source.
    pub peer_segments: usize,
    /// Bytes received of one source's segments.
    pub peer_bytes: u64,
    /// Segments in all.
    pub segments: usize,
    /// Bytes received in all.
    pub bytes: u64,
    /// Time after the end of the session.
    pub age: Duration,
}

impl Default for PartialLimits {
    fn default() -> Self {
        Self {
            peer_segments: 64,
            peer_bytes: 2 << 30,
            segments: 256,
            bytes: 8 << 30,
            age: Duration::from_secs(24 * 3600),
        }
    }
}

/// What became of some bytes.
pub(super) enum Taken {
    /// They were written; more are to come.
    Written,
    /// The segment is complete, durable and verified; carries the contiguous head.
    Committed(Option<Position>),
    /// The segment was here already.
    Had(Option<Position>),
}

/// Bytes and where they belong in their segment.
pub(super) type Chunk = (u64, bytes::Bytes);

enum State {
    /// The inbox was not asked yet.
    New,
    Open(Box<dyn SegmentSink>),
    /// Committed, refused or discarded.
    Over,
}

/// What is here of one segment.
pub(super) struct Incomplete {
    segment: SegmentDescriptor,
    state: Mutex<(State, Ranges)>,
}

impl Incomplete {
    fn lock(&self) -> MutexGuard<'_, (State, Ranges)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the inbox for the segment, unless that was done. Answers the head if it is here already.
    pub(super) fn begin(&self, inbox: &dyn Inbox, group: &GroupName) -> Result<Option<Taken>, Refusal> {
        let (state, _) = &mut *self.lock();
        if matches!(state, State::Open(_)) {
            return Ok(None);
        }
        match inbox.begin(group, &self.segment) {
            Ok(Begin::Have(head)) => {
                *state = State::Over;
                Ok(Some(Taken::Had(head)))
            }
            Ok(Begin::Receive(_)) if matches!(state, State::Over) => {
                // It was refused, or discarded, while this piece was on its way.
                Err(Refusal::new(
                    RefusalKind::Retry,
                    "the segment was discarded meanwhile",
                    "it is sent again",
                ))
            }
            Ok(Begin::Receive(sink)) => {
                *state = State::Open(sink);
                Ok(None)
            }
            Err(refusal) => {
                *state = State::Over;
                Err(refusal)
            }
        }
    }

    /// Takes bytes, and commits the segment with the last of them.
    pub(super) fn take(&self, chunks: &[Chunk]) -> Result<Taken, Refusal> {
        let (state, ranges) = &mut *self.lock();
        let State::Open(sink) = state else {
            return Err(Refusal::new(
                RefusalKind::Retry,
                "the segment was discarded meanwhile",
                "it is sent again",
            ));
        };
        for (offset, bytes) in chunks {
            if let Err(refusal) = sink.write_at(*offset, bytes) {
                *state = State::Over;
                return Err(refusal);
            }
            ranges.insert(*offset..*offset + bytes.len() as u64);
        }
        if ranges.len() > RANGES_MAX {
            *state = State::Over;
            let reason = format!("the segment arrives in more than {RANGES_MAX} fragments");
            return Err(Refusal::new(RefusalKind::Retry, reason, "it is sent again"));
        }
        if ranges.bytes() < self.segment.size_bytes {
            return Ok(Taken::Written);
        }
        match std::mem::replace(state, State::Over) {
            State::Open(sink) => sink.commit().map(Taken::Committed),
            State::New | State::Over => unreachable!("it was looked at under the same lock"),
        }
    }

    /// Discards what is here.
    pub(super) fn discard(&self) {
        *self.lock() = (State::Over, Ranges::default());
    }

    /// Bytes that are here; none if the segment is over.
    fn received(&self) -> Option<u64> {
        let (state, ranges) = &*self.lock();
        matches!(state, State::Open(_)).then(|| ranges.bytes())
    }

    fn ranges(&self) -> Vec<(u64, u64)> {
        let (state, ranges) = &*self.lock();
        let open = matches!(state, State::Open(_));
        ranges.iter().filter(|_| open).map(|range| (range.start, range.end - range.start)).collect()
    }
}

struct Entry {
    incomplete: Arc<Incomplete>,
    /// Who sends it, in which session's generation.
    owner: Owner,
    /// No session uses it.
    idle: bool,
    /// When a session last ended that had added to it, and what it holds since.
    kept: (Instant, u64),
}

/// Who may go on with a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) peer: PeerName,
    pub(super) generation: Generation,
}

/// All incomplete segments of a site.
pub(super) struct Partials {
    limits: PartialLimits,
    entries: Mutex<HashMap<(GroupName, Position), Entry>>,
}

/// Partials that are no longer wanted; to be dropped where blocking is allowed, because their files are removed then.
pub(super) type Discarded = Vec<Arc<Incomplete>>;

impl Partials {
    pub(super) fn new(limits: PartialLimits) -> Self {
        Self { limits, entries: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(GroupName, Position), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of the group begins: what others began is discarded, the rest is its own.
    pub(super) fn open(&self, group: &GroupName, owner: &Owner) -> Discarded {
        let mut discarded = Vec::new();
        self.lock().retain(|(of, _), entry| {
            let stays = of != group || entry.owner == *owner;
            entry.idle &= of != group;
            if !stays {
                discarded.push(entry.incomplete.clone());
            }
            stays
        });
        discarded
    }

    /// What Welcome says of a group.
    pub(super) fn list(&self, group: &GroupName) -> Vec<Partial> {
        let entries = self.lock();
        let mut of_group: Vec<_> = entries
            .iter()
            .filter(|((of, _), _)| of == group)
            .map(|((_, position), entry)| (*position, entry.incomplete.clone()))
            .collect();
        drop(entries);
        of_group.sort_by_key(|(position, _)| position.sequence);
        let mut left = PARTIAL_RANGES_MAX;
        let mut partials = Vec::new();
        for (position, incomplete) in of_group.into_iter().take(PARTIALS_MAX) {
            let mut have = incomplete.ranges();
            have.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
            have.truncate(left);
            have.sort_unstable();
            left -= have.len();
            if !have.is_empty() {
                partials.push(Partial { sequence: position.sequence, hash: position.hash.0, have });
            }
        }
        partials
    }

    /// The partial of a segment, which is made if there is none; none if the session receives too many already.
    pub(super) fn get(
        &self,
        group: &GroupName,
        owner: &Owner,
        segment: &SegmentDescriptor,
        now: Instant,
    ) -> Option<Arc<Incomplete>> {
        let mut entries = self.lock();
        let key = (group.clone(), segment.position);
        if let Some(entry) = entries.get(&key)
            && entry.incomplete.segment == *segment
        {
            return Some(entry.incomplete.clone());
        }
        if entries.iter().filter(|((of, _), _)| of == group).count() >= ACTIVE_MAX {
            return None;
        }
        let state = Mutex::new((State::New, Ranges::default()));
        let incomplete = Arc::new(Incomplete { segment: *segment, state });
        let entry =
            Entry { incomplete: incomplete.clone(), owner: owner.clone(), idle: false, kept: (now, 0) };
        entries.insert(key, entry);
        Some(incomplete)
    }

    /// The segment is complete, was refused, or was here.
    pub(super) fn remove(&self, group: &GroupName, incomplete: &Arc<Incomplete>) {
        let mut entries = self.lock();
        let key = (group.clone(), incomplete.segment.position);
        if entries.get(&key).is_some_and(|entry| Arc::ptr_eq(&entry.incomplete, incomplete)) {
            entries.remove(&key);
        }
    }

    /// A session ended: what it leaves is kept within the limits.
    pub(super) fn close(&self, group: &GroupName, now: Instant) -> Discarded {
        let mut entries = self.lock();
        let mut discarded = Vec::new();
        entries.retain(|(of, _), entry| {
            if of != group || entry.idle {
                return true;
            }
            // The session's threads have ended, so that this lock is free.
            let received = entry.incomplete.received().filter(|bytes| *bytes > 0);
            let Some(bytes) = received else {
                discarded.push(entry.incomplete.clone());
                return false;
            };
            entry.idle = true;
            if bytes > entry.kept.1 {
                entry.kept = (now, bytes);
            }
            true
        });
        self.evict(&mut entries, now, &mut discarded);
        discarded
    }

    /// Discards what is too old.
    pub(super) fn expire(&self, now: Instant) -> Discarded {
        let mut discarded = Vec::new();
        self.evict(&mut self.lock(), now, &mut discarded);
        discarded
    }

    fn evict(
        &self,
        entries: &mut HashMap<(GroupName, Position), Entry>,
        now: Instant,
        discarded: &mut Discarded,
    ) {
        let mut idle: Vec<_> = entries
            .iter()
            .filter(|(_, entry)| entry.idle)
            .map(|(key, entry)| (entry.kept, key.clone(), entry.owner.peer.clone()))
            .collect();
        // The newest are kept; of one session, those that come first in the chain.
        idle.sort_by(|a, b| b.0.0.cmp(&a.0.0).then(a.1.1.sequence.cmp(&b.1.1.sequence)));
        let mut all = (0, 0);
        let mut of_peer: HashMap<PeerName, (usize, u64)> = HashMap::new();
        for ((since, bytes), key, peer) in idle {
            let of_peer = of_peer.entry(peer).or_default();
            let fits = of_peer.0 < self.limits.peer_segments
                && of_peer.1 + bytes <= self.limits.peer_bytes
                && all.0 < self.limits.segments
                && all.1 + bytes <= self.limits.bytes
                && now.saturating_duration_since(since) < self.limits.age;
            if fits {
                *of_peer = (of_peer.0 + 1, of_peer.1 + bytes);
                all = (all.0 + 1, all.1 + bytes);
            } else if let Some(entry) = entries.remove(&key) {
                discarded.push(entry.incomplete);
            }
        }
    }
}

#[cfg(test)]
mod tests;
