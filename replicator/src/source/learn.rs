//! Learns from the recovery site which blocks it keeps, where this host does not know: after a takeover, after its index was lost, and of a seed.
//!
//! The seed comes first, and no resync compares before it is known: otherwise the first copy would travel although it was carried. After every
//! further connection it is asked for again, because it may have been imported meanwhile.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use journal::{KnownBlocks, LearntBlock};
use journal_format::segment::SegmentSource;
use journal_format::{BLOCK_BYTES, GroupName, Hash, Sequence};
use tracing::{debug, info, warn};
use transport::{
    AttachedSegment, CallAnswer, CallError, CallRequest, Caller, LISTED_BLOCKS_MAX, LISTED_SEGMENTS_MAX,
    RefusalKind,
};

/// An answer has to cross the link twice and may wait for a disk.
const PATIENCE: Duration = Duration::from_secs(60);
/// What was not answered is asked again after this time, or when the site is connected.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells a learner of connections to the site, and to end.
#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<BellState>,
    rung: Condvar,
}

#[derive(Default)]
struct BellState {
    connections: u64,
    ending: bool,
}

impl Bell {
    /// The site is connected.
    pub(super) fn connected(&self) {
        self.lock().connections += 1;
        self.rung.notify_all();
    }

    fn end(&self) {
        self.lock().ending = true;
        self.rung.notify_all();
    }

    fn is_ending(&self) -> bool {
        self.lock().ending
    }

    fn connections(&self) -> u64 {
        self.lock().connections
    }

    /// Waits for a connection behind the first `seen` ones, at most for `patience` if that is given. Tells whether to go on.
    fn wait(&self, seen: u64, patience: Option<Duration>) -> bool {
        let waits = |state: &mut BellState| !state.ending && state.connections == seen;
        let state = self.lock();
        let state = match patience {
            Some(patience) => {
                let waited = self.rung.wait_timeout_while(state, patience, waits);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.rung.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner),
        };
        !state.ending
    }

    fn lock(&self) -> MutexGuard<'_, BellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Learns in the background until it is dropped.
pub(super) struct Learner {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Learner {
    /// Starts the thread. `seed_known` is called once, when all is known of the group's seed that can be.
    pub(super) fn start(
        group: GroupName,
        caller: Caller,
        known: Arc<KnownBlocks>,
        bell: Arc<Bell>,
        seed_known: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Learner> {
        let learning = Learning { group, caller, known, bell: bell.clone() };
        let name = format!("learn {}", learning.group);
        let thread = Builder::new().name(name).spawn(move || {
            // Whoever drops the learner is told by nobody; that is all that ends it.
            let _ = learning.run(seed_known);
        })?;
        Ok(Learner { bell, thread: Some(thread) })
    }
}

impl Drop for Learner {
    fn drop(&mut self) {
        self.bell.end();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been reported by its hook.
            let _ = thread.join();
        }
    }
}

/// Why learning did not come to its end.
enum Stop {
    Ending,
    /// Nobody answered, or not to this.
    Unanswered(String),
    /// The site cannot say it.
    Refused(String),
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        match error {
            // A group that is not open yet.
            CallError::Refused(refusal) if refusal.kind == RefusalKind::Invalid => {
                Stop::Unanswered(refusal.to_string())
            }
            CallError::Refused(refusal) => Stop::Refused(refusal.to_string()),
            error => Stop::Unanswered(error.to_string()),
        }
    }
}

struct Learning {
    group: GroupName,
    caller: Caller,
    known: Arc<KnownBlocks>,
    bell: Arc<Bell>,
}

impl Learning {
    /// Returns `None` when it is time to end.
    fn run(&self, seed_known: impl FnOnce()) -> Option<()> {
        let mut connections = self.until_all(true)?;
        seed_known();
        self.until_all(false)?;
        loop {
            self.bell.wait(connections, None).then_some(())?;
            connections = self.until_all(true)?;
        }
    }

    /// Asks until everything is answered. Answers how many connections there were before that.
    fn until_all(&self, seed: bool) -> Option<u64> {
        loop {
            let connections = self.bell.connections();
            match self.all(seed) {
                Ok(()) => return Some(connections),
                Err(Stop::Ending) => return None,
                Err(Stop::Unanswered(error) | Stop::Refused(error)) => {
                    debug!(group = %self.group, %error, "the site cannot be asked for its blocks");
                }
            }
            self.bell.wait(connections, Some(PAUSE)).then_some(())?;
        }
    }

    /// Learns all segments of the group, or of its seed, that are not known; newest first.
    fn all(&self, seed: bool) -> Result<(), Stop> {
        let group = if seed { self.group.seed() } else { Some(self.group.clone()) };
        let Some(group) = group else { return Ok(()) };
        let (mut before, mut learnt, mut newest) = (None, 0, Sequence(0));
        loop {
            let segments = match self.ask(CallRequest::Attached { seed, before })? {
                CallAnswer::Attached(segments) => segments,
                other => return Err(unexpected(&other)),
            };
            for segment in &segments {
                newest = newest.max(segment.sequence);
                if !self.known.knows(&Hash(segment.hash)) {
                    learnt += u64::from(self.one(&group, seed, segment)?);
                }
            }
            before = segments.last().map(|segment| segment.sequence);
            if segments.len() < LISTED_SEGMENTS_MAX {
                break;
            }
        }
        if seed {
            // What was known before this start, too; and nothing if the site has no seed any more.
            self.known.note_received(&group, newest);
        }
        if learnt > 0 {
            info!(group = %self.group, segments = learnt, seed, "learnt from the site which blocks it keeps");
        }
        Ok(())
    }

    /// Learns the blocks of a segment. Answers whether the site could say them.
    fn one(&self, group: &GroupName, seed: bool, segment: &AttachedSegment) -> Result<bool, Stop> {
        let (generation, sequence, hash) = (segment.generation, segment.sequence, Hash(segment.hash));
        let mut blocks = Vec::new();
        loop {
            let skip = blocks.len() as u32;
            let listed = match self.ask(CallRequest::Blocks { seed, sequence, skip }) {
                Ok(CallAnswer::Blocks(listed)) => listed,
                Ok(other) => return Err(unexpected(&other)),
                Err(Stop::Refused(refusal)) => {
                    // One that is damaged there must not hold up the others, nor a resync.
                    warn!(%group, %sequence, refusal, "the site cannot say which blocks a segment has; they are sent if they are needed");
                    return Ok(false);
                }
                Err(stop) => return Err(stop),
            };
            let more = listed.len() == LISTED_BLOCKS_MAX;
            blocks.extend(listed.into_iter().map(|block| {
                let mut hash = [0; 32];
                hash[..8].copy_from_slice(&block.fingerprint);
                let offset = u32::from(block.block) * BLOCK_BYTES as u32;
                LearntBlock { hash: Hash(hash), frame: block.frame, offset, steps: block.steps }
            }));
            if !more {
                break;
            }
        }
        self.known.learn(&SegmentSource { group: group.clone(), generation, sequence, hash }, blocks);
        Ok(true)
    }

    fn ask(&self, request: CallRequest) -> Result<CallAnswer, Stop> {
        if self.bell.is_ending() {
            return Err(Stop::Ending);
        }
        Ok(self.caller.call(request, PATIENCE)?)
    }
}

fn unexpected(answer: &CallAnswer) -> Stop {
    Stop::Unanswered(format!("it answers something else: {answer:?}"))
}
