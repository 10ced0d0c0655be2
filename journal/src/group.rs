//! A consistency group on the protected site: its capture, its journal, and the way from a cut to a sealed segment.

mod opening;
mod resync;
mod sealing;
mod shipping;
mod status;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use journal_format::definition::GroupDefinition;
use journal_format::segment::{BuildOptions, VolumeKind, VolumeRecord};
use journal_format::{BookmarkName, GroupName, PointId, Position, Timestamp, VolumeName, with_causes};
use journal_nbd::Arena;
use tracing::{info, warn};

pub use self::resync::{ResyncStatus, SweepStep};
pub use self::shipping::SiteHead;
pub use self::status::GroupStatus;
pub use crate::chain::StoredSegment;

use self::opening::{Opening, check_sizes, count, known_volumes, volume_record, with_joining};
use self::sealing::SealState;
use crate::capture::{Capture, Change, EpochChanges};
use crate::chain::{Chain, CleanRecord};
use crate::clock::Clock;
use crate::compare::Comparer;
use crate::error::JournalError;
use crate::faults::{self, Bug};
use crate::intent::{IntentMaps, MarkReplica, MarkedPage};
use crate::known::KnownBlocks;
use crate::leg::{Leg, LegGuard};
use crate::seal::SealCounters;
use crate::storage::Storage;

/// Payload pinned beyond what is held, at which small payloads are copied, in bytes.
pub const PINNED_SLACK_BYTES: u64 = 64 << 20;
/// Payloads up to this size are cheap to copy, in bytes.
const SMALL_PAYLOAD_BYTES: usize = 64 << 10;

/// A volume of a group.
pub struct VolumeSettings {
    /// Its name.
    pub name: VolumeName,
    /// What it holds.
    pub kind: VolumeKind,
    /// Its leg on this host.
    pub leg: Arc<dyn Leg>,
    /// Whether a leg of another size than the journal knows is accepted.
    pub accept_resize: bool,
}

/// How a group is protected.
pub struct GroupSettings {
    /// Its name.
    pub name: GroupName,
    /// Its volumes.
    pub volumes: Vec<VolumeSettings>,
    /// The VMs that use the volumes, if they are known.
    pub definition: Option<GroupDefinition>,
    /// Limit of the payload held in memory, in bytes.
    pub memory_budget_bytes: u64,
    /// Limit of the sealed segments on disk, in bytes.
    pub journal_limit_bytes: u64,
    /// How segments are made.
    pub build: BuildOptions,
    /// What the recovery site has; without it every block is carried whole.
    pub known: Option<Arc<KnownBlocks>>,
    /// How long a write waits for its mark in the intent map at most.
    pub mark_patience: Duration,
    /// Bytes that a resync reads in a second at most; `None` for no limit.
    pub resync_rate_bytes: Option<u64>,
}

/// What a cut is for.
#[derive(Clone, Debug, Default)]
pub struct CutRequest {
    /// Name for the point.
    pub bookmark: Option<BookmarkName>,
}

/// What became of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedCut {
    /// Id that the point has, if it is one.
    pub point: PointId,
    /// Position of the segment that carries it.
    pub position: Position,
    /// When it was cut.
    pub time: Timestamp,
    /// Whether the cut is a point: false while a resync is under way.
    pub is_point: bool,
}

/// Answered when a cut is sealed and durable in the journal.
pub type CutTicket = mpsc::Receiver<Result<SealedCut, JournalError>>;

struct QueuedCut {
    changes: EpochChanges,
    time: Timestamp,
    bookmark: Option<BookmarkName>,
    answer: mpsc::Sender<Result<SealedCut, JournalError>>,
}

/// Wakes the group's threads. A raise between `seen` and `wait` is not missed.
#[derive(Default)]
pub(crate) struct Signal {
    count: Mutex<u64>,
    raised: Condvar,
}

impl Signal {
    pub(crate) fn raise(&self) {
        *self.lock() += 1;
        self.raised.notify_all();
    }

    pub(crate) fn seen(&self) -> u64 {
        *self.lock()
    }

    pub(crate) fn wait(&self, seen: u64) {
        let count = self.lock();
        drop(self.raised.wait_while(count, |count| *count == seen).unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn wait_at_most(&self, seen: u64, patience: Duration) {
        let count = self.lock();
        let waited = self.raised.wait_timeout_while(count, patience, |count| *count == seen);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Called when something new may be shipped, with the point if it is one; no lock is held meanwhile.
pub type Observer = Box<dyn Fn(&Group, Option<SealedCut>) + Send + Sync>;

/// A consistency group. Shared by its taps, its threads and whoever ships its segments.
pub struct Group {
    name: GroupName,
    volumes: Vec<VolumeRecord>,
    legs: Vec<Arc<dyn Leg>>,
    guards: Vec<LegGuard>,
    capture: Capture,
    intents: Arc<IntentMaps>,
    chain: Mutex<Chain>,
    /// Held while a cut is sealed, which may take seconds: nothing that must be quick waits for it.
    sealing: Mutex<SealState>,
    last_point: Mutex<Option<SealedCut>>,
    lost_cuts: AtomicU64,
    queue: Mutex<VecDeque<QueuedCut>>,
    last_cut_ns: Mutex<Timestamp>,
    resync: Mutex<resync::Progress>,
    comparer: Mutex<Option<Arc<dyn Comparer>>>,
    resync_rate_bytes: Option<u64>,
    definition: Option<GroupDefinition>,
    build: BuildOptions,
    known: Option<Arc<KnownBlocks>>,
    sealed: Mutex<SealCounters>,
    clock: Arc<dyn Clock>,
    arena: Arena,
    signal: Signal,
    observer: Observer,
    /// A cut that is no point was sealed, or something became dirty, since the last point.
    owes_point: AtomicBool,
    distrusted: AtomicBool,
}

impl Group {
    /// Opens a group with its journal in `storage`. `arena` is the memory of the payloads that its taps are given. `observer` is
    /// called when something new may be shipped, with the point if it is one.
    ///
    /// # Errors
    /// [`JournalError`] if a leg has changed its size, or the journal is not this group's or cannot be used.
    pub fn open(
        settings: GroupSettings,
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        arena: Arena,
        observer: Observer,
    ) -> Result<Arc<Group>, JournalError> {
        let opened = Chain::open(settings.name.clone(), storage.clone(), settings.journal_limit_bytes)?;
        check_sizes(&settings.volumes, &opened.known)?;
        let volumes: Vec<VolumeRecord> = settings.volumes.iter().map(volume_record).collect();
        let names: Vec<(VolumeName, u64)> =
            volumes.iter().map(|volume| (volume.name.clone(), volume.size_bytes)).collect();
        let patience = settings.mark_patience;
        let maps = IntentMaps::open(&settings.name, storage, clock.clone(), &names, opened.session, patience);
        faults::step("open.session");
        let intents = Arc::new(maps.maps);
        let sizes: Vec<u64> = volumes.iter().map(|volume| volume.size_bytes).collect();
        let next_epoch = opened.chain.next_epoch();
        let capture = Capture::new(&sizes, next_epoch, settings.memory_budget_bytes, intents.clone());
        let legs: Vec<Arc<dyn Leg>> = settings.volumes.into_iter().map(|volume| volume.leg).collect();
        let opening = Opening { volumes: &volumes, legs: &legs, opened: &opened, found: &maps.found };
        opening.mark_untracked(&capture, maps.session);
        opening.note_waiting(&capture);
        opening.begin_joining(&capture);
        let joining = capture.joining();
        let is_new = opened.session.is_none();
        let chain = opened.chain;
        let known = known_volumes(with_joining(&volumes, &joining));
        if let Err(error) = chain.save_state(intents.session(), known, None) {
            if is_new {
                return Err(error);
            }
            warn!(group = %settings.name, error = with_causes(&error), "journal.json could not be replaced; the session in the intent maps stands for it");
        }
        faults::step("open.state");
        let dirty_bytes = capture.dirty_bytes();
        info!(group = %settings.name, dirty_bytes, head = chain.head().map(tracing::field::display), "group opened");
        Ok(Arc::new(Group {
            name: settings.name,
            volumes,
            guards: legs.iter().map(|leg| LegGuard::new(&**leg)).collect(),
            legs,
            capture,
            intents,
            chain: Mutex::new(chain),
            sealing: Mutex::new(SealState { joining: count(&joining), ..SealState::default() }),
            last_point: Mutex::default(),
            lost_cuts: AtomicU64::new(0),
            queue: Mutex::default(),
            last_cut_ns: Mutex::default(),
            resync: Mutex::new(resync::Progress::new(dirty_bytes, clock.now())),
            comparer: Mutex::default(),
            resync_rate_bytes: settings.resync_rate_bytes,
            definition: settings.definition,
            build: settings.build,
            known: settings.known,
            sealed: Mutex::default(),
            clock,
            arena,
            signal: Signal::default(),
            observer,
            owes_point: AtomicBool::new(true),
            distrusted: AtomicBool::new(false),
        }))
    }

    /// The group's name.
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// Names, kinds and sizes of the volumes.
    pub fn volumes(&self) -> &[VolumeRecord] {
        &self.volumes
    }

    pub(crate) fn volume_name(&self, volume: usize) -> &VolumeName {
        &self.volumes[volume].name
    }

    pub(crate) fn leg(&self, volume: usize) -> Arc<dyn Leg> {
        self.legs[volume].clone()
    }

    pub(crate) fn guard(&self, volume: usize) -> &LegGuard {
        &self.guards[volume]
    }

    /// Takes in that somebody changed a leg past its tap: all of it is compared with the recovery site.
    pub(crate) fn leg_changed(&self, volume: usize) {
        warn!(group = %self.name, volume = %self.volume_name(volume), "the leg was changed past the tap; all of it is compared with the recovery site");
        // What is captured so far is older than what the leg holds, and belongs into an epoch before.
        drop(self.cut(CutRequest::default()));
        self.capture.mark_all_dirty(volume);
        self.owes_point.store(true, Ordering::Release);
        self.signal.raise();
    }

    /// Whether there is an index of what the recovery site has.
    pub(crate) fn knows_blocks(&self) -> bool {
        self.known.is_some()
    }

    pub(crate) fn capture(&self) -> &Capture {
        &self.capture
    }

    pub(crate) fn signal(&self) -> &Signal {
        &self.signal
    }

    /// Whether to keep a copy of a payload instead of the buffer that it lies in. Small payloads pin the chunk that they were
    /// received into; a block that is rewritten all the time would pin one chunk after the other.
    pub(crate) fn payload_is_dear(&self, change: &Change) -> bool {
        let Change::Data(payload) = change else { return false };
        let pinned_bytes = || self.arena.stats().chunk_bytes as u64;
        payload.len() <= SMALL_PAYLOAD_BYTES
            && pinned_bytes() > PINNED_SLACK_BYTES + self.capture.held_bytes()
    }

    /// Whether a cut now would carry anything that the last one did not.
    pub fn wants_cut(&self) -> bool {
        self.capture.has_changes() || self.owes_point() || self.owes_epoch() || self.capture.can_join()
    }

    /// Payload in the open epoch, in bytes.
    pub fn open_bytes(&self) -> u64 {
        self.capture.open_bytes()
    }

    /// Whether the state is complete now and no point says so yet: after a resync of which nothing was left to send.
    fn owes_point(&self) -> bool {
        let queue_empty = self.lock(&self.queue).is_empty();
        queue_empty && self.owes_point.load(Ordering::Acquire) && self.capture.is_whole()
    }

    /// Whether an epoch before the open one is in no segment, because it was given up: a resync waits until the site has come so far.
    fn owes_epoch(&self) -> bool {
        self.capture.dirty_bytes() > 0
            && self.lock(&self.queue).is_empty()
            && self.lock(&self.chain).next_epoch() < self.capture.open_epoch()
    }

    /// Ends the open epoch in all volumes at one instant. The answer comes when the epoch is sealed and durable.
    pub fn cut(&self, request: CutRequest) -> CutTicket {
        let (answer, ticket) = mpsc::channel();
        // The queue is locked before the epoch ends, so that epochs are queued in their order.
        let mut queue = self.lock(&self.queue);
        let changes = self.capture.cut();
        let time = self.next_cut_time();
        queue.push_back(QueuedCut { changes, time, bookmark: request.bookmark, answer });
        drop(queue);
        self.signal.raise();
        ticket
    }

    /// Cut times never go back, whatever the clock does.
    fn next_cut_time(&self) -> Timestamp {
        let mut last = self.lock(&self.last_cut_ns);
        *last = self.clock.now().max(Timestamp(last.0 + 1));
        *last
    }

    /// Seals and flushes while the taps go on, so that there is little left to do for [`Group::close`].
    pub fn prepare_close(&self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        if self.wants_cut() {
            // Whatever comes of it: closing does what is left.
            let _ = self.cut(CutRequest::default()).recv_timeout(PATIENCE);
        }
        for (volume, leg) in self.volumes.iter().zip(&self.legs) {
            if let Err(error) = leg.flush() {
                warn!(group = %self.name, volume = %volume.name, %error, "the leg cannot be flushed");
            }
        }
    }

    /// Ends in order: seals what is captured and, if nothing is dirty, notes that the next start needs no resync. The taps are
    /// closed and the workers stopped before.
    ///
    /// # Errors
    /// [`JournalError`]; the next start then begins with a resync.
    pub fn close(&self) -> Result<(), JournalError> {
        if self.wants_cut() {
            drop(self.cut(CutRequest::default()));
        }
        while self.seal_next() {}
        if self.capture.dirty_bytes() > 0 {
            return Ok(());
        }
        for (leg, volume) in self.legs.iter().zip(&self.volumes) {
            leg.flush().map_err(|errno| JournalError::Leg {
                volume: volume.name.clone(),
                path: "the leg".to_owned(),
                source: std::io::Error::other(errno.to_string()),
            })?;
        }
        self.intents.commit();
        let chain = self.lock(&self.chain);
        let legs = self.legs.iter().map(|leg| leg.stamp()).collect();
        let clean = CleanRecord { head: chain.head(), legs };
        let known = known_volumes(with_joining(&self.volumes, &self.capture.joining()));
        chain.save_state(self.intents.session(), known, Some(clean))
    }

    /// Takes marks out of the intent maps whose regions hold nothing that the recovery site may lack. Flushes the legs that have
    /// such marks. Returns how many regions were cleared.
    pub fn clear_marks(&self) -> usize {
        let covered = self.lock(&self.chain).covered_epoch();
        let mut cleared = 0;
        for (volume, leg) in self.legs.iter().enumerate() {
            let regions = self.capture.clearable(volume, covered);
            if regions.is_empty() {
                continue;
            }
            if !faults::planted(Bug::ClearWithoutLegFlush)
                && let Err(error) = leg.flush()
            {
                warn!(group = %self.name, volume = %self.volume_name(volume), %error, "the leg cannot be flushed; its marks stay");
                continue;
            }
            faults::step("clear.flushed");
            cleared += self.capture.clear_marks(volume, &regions, covered);
            faults::step("clear.cleared");
        }
        cleared
    }

    /// Sends marks to the pair's other host from now on, or no longer.
    pub fn set_mark_replica(&self, replica: Option<Arc<dyn MarkReplica>>) {
        self.intents.set_replica(replica);
    }

    /// Every page of the intent maps as it is now, for a host of the pair that joins.
    pub fn marked_pages(&self) -> Vec<MarkedPage> {
        self.intents.all_pages()
    }

    pub(crate) fn intents(&self) -> &IntentMaps {
        &self.intents
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
