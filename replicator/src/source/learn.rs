//! Learns from the recovery site which blocks it keeps, where this host does not know: after a takeover, after its index was lost, and of a seed.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use journal::{KnownBlocks, LearntBlock};
use journal_format::segment::SegmentSource;
use journal_format::{BLOCK_BYTES, GroupName, Hash};
use tracing::{debug, info};
use transport::{
    AttachedSegment, CallAnswer, CallError, CallRequest, Caller, LISTED_BLOCKS_MAX, LISTED_SEGMENTS_MAX,
};

/// An answer has to cross the link twice and may wait for a disk.
const PATIENCE: Duration = Duration::from_secs(60);
/// While the site is not connected it is tried again after this time.
const PAUSE: Duration = Duration::from_secs(1);

/// Learns in the background until it knows everything, or is dropped.
pub(super) struct Learner {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Learner {
    /// Starts the thread.
    pub(super) fn start(
        group: GroupName,
        caller: Caller,
        known: Arc<KnownBlocks>,
    ) -> std::io::Result<Learner> {
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = Builder::new().name(format!("learn {group}")).spawn(move || {
            let learning = Learning { group, caller, known, stopped };
            // Without the seed first, nothing of a first copy that was carried would be known in time.
            for seed in [true, false] {
                while let Err(why) = learning.all(seed) {
                    match why {
                        Stop::Ending => return,
                        Stop::Unanswered(error) => {
                            debug!(group = %learning.group, %error, "the site cannot be asked for its blocks")
                        }
                    }
                    if learning.pause(PAUSE) {
                        return;
                    }
                }
            }
        })?;
        Ok(Learner { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Learner {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been reported by its hook.
            let _ = thread.join();
        }
    }
}

/// Why learning did not come to its end.
enum Stop {
    Ending,
    Unanswered(String),
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        Stop::Unanswered(error.to_string())
    }
}

struct Learning {
    group: GroupName,
    caller: Caller,
    known: Arc<KnownBlocks>,
    stopped: mpsc::Receiver<()>,
}

impl Learning {
    /// Waits; tells whether it is time to end.
    fn pause(&self, pause: Duration) -> bool {
        self.stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout)
    }

    /// Learns all segments of the group, or of its seed, that are not known; newest first.
    fn all(&self, seed: bool) -> Result<(), Stop> {
        let (mut before, mut learnt) = (None, 0);
        loop {
            let segments = match self.ask(CallRequest::Attached { seed, before })? {
                CallAnswer::Attached(segments) => segments,
                other => return Err(unexpected(&other)),
            };
            for segment in &segments {
                if !self.known.knows(&Hash(segment.hash)) {
                    self.one(seed, segment)?;
                    learnt += 1;
                }
            }
            before = segments.last().map(|segment| segment.sequence);
            if segments.len() < LISTED_SEGMENTS_MAX {
                break;
            }
        }
        if learnt > 0 {
            info!(group = %self.group, segments = learnt, seed, "learnt from the site which blocks it keeps");
        }
        Ok(())
    }

    fn one(&self, seed: bool, segment: &AttachedSegment) -> Result<(), Stop> {
        let mut blocks = Vec::new();
        loop {
            let (sequence, skip) = (segment.sequence, blocks.len() as u32);
            let listed = match self.ask(CallRequest::Blocks { seed, sequence, skip })? {
                CallAnswer::Blocks(listed) => listed,
                other => return Err(unexpected(&other)),
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
        let group = if seed { self.group.seed() } else { Some(self.group.clone()) };
        let Some(group) = group else { return Ok(()) };
        let (generation, sequence, hash) = (segment.generation, segment.sequence, Hash(segment.hash));
        self.known.learn(&SegmentSource { group: group.clone(), generation, sequence, hash }, blocks);
        if seed {
            self.known.note_received(&group, sequence);
        }
        Ok(())
    }

    fn ask(&self, request: CallRequest) -> Result<CallAnswer, Stop> {
        if self.pause(Duration::ZERO) {
            return Err(Stop::Ending);
        }
        Ok(self.caller.call(request, PATIENCE)?)
    }
}

fn unexpected(answer: &CallAnswer) -> Stop {
    Stop::Unanswered(format!("it answers something else: {answer:?}"))
}
