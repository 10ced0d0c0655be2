//! One group of the agent: its journal, its taps, its threads, and where it is shipped to.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use journal::{
    Clock, CutRequest, DirStorage, FileLeg, Group, GroupSettings, JournalError, KnownBlocks, Leg, SealedCut,
    StoredSegment, TapVolume, VolumeSettings, Workers,
};
use journal_format::segment::BuildOptions;
use journal_format::{GroupName, Sequence};
use journal_nbd::{Arena, Exports};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{error, warn};
use transport::SegmentDescriptor;

use super::confirmed::Waited;
use super::cutter::Cutter;
use super::pair::replica::PairReplica;
use super::targets::Targets;
use crate::failure::{Failure, exit, with_causes};
use crate::settings::{GroupTable, SourceSettings, VolumeTable};

/// A cut that could not be kept is made again when a receipt comes, or after this time.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What opening a group needs besides its table.
pub(super) struct Opening<'a> {
    pub(super) settings: &'a SourceSettings,
    pub(super) accept_resize: &'a [String],
    pub(super) fenced: Arc<Notify>,
    pub(super) arena: Arena,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) known: Option<Arc<KnownBlocks>>,
}

/// One group.
pub(super) struct Member {
    pub(super) group: Arc<Group>,
    pub(super) folder: PathBuf,
    /// Where it is shipped to.
    pub(super) targets: Arc<Targets>,
    pub(super) clock: Arc<dyn Clock>,
    /// Told when another host has taken over.
    pub(super) fenced: Arc<Notify>,
    /// Told of what is new for the standby.
    pub(super) wake_pair: Arc<Notify>,
    pub(super) pair: Mutex<Option<Arc<PairReplica>>>,
    /// How old the newest point at a target may become.
    pub(super) rpo: Duration,
    cut_interval: Duration,
    clear_interval: Duration,
    memory_budget: u64,
}

/// A group's threads.
pub(super) struct Running {
    workers: Workers,
    cutter: Cutter,
}

impl Running {
    /// Ends the threads when everything that was cut is sealed.
    pub(super) fn stop(self) {
        drop(self.cutter);
        self.workers.stop();
    }
}

impl Member {
    pub(super) fn open(opening: &Opening<'_>, table: &GroupTable) -> Result<Member, Failure> {
        let failed = |error: JournalError| Failure::of(&error, error.kind(), error.hint());
        let volumes = table.volumes.iter().map(|volume| {
            let full_name = format!("{}/{}", table.name, volume.name);
            let accept_resize = opening.accept_resize.contains(&full_name);
            let leg = open_leg(volume)?;
            Ok(VolumeSettings { name: volume.name.clone(), kind: volume.kind(), leg, accept_resize })
        });
        let volumes = volumes.collect::<Result<_, JournalError>>().map_err(failed)?;
        let folder = opening.settings.journal.join(table.name.as_str());
        let storage = open_storage(table, &folder).map_err(failed)?;
        let settings = GroupSettings {
            name: table.name.clone(),
            volumes,
            definition: table.definition(),
            memory_budget_bytes: table.memory_budget,
            journal_limit_bytes: table.journal_limit,
            mark_patience: table.mark_patience.max(opening.settings.mark_patience_min()),
            resync_rate_bytes: table.resync_rate,
            known: opening.known.clone(),
            build: BuildOptions { level: table.compression_level, ..BuildOptions::default() },
        };
        let places = opening.settings.targets.iter().map(|target| (target.name.clone(), target.kind()));
        let targets = Arc::new(Targets::new(places, opening.clock.clone()));
        let wake_pair = Arc::new(Notify::new());
        let (told, pair_woken) = (targets.clone(), wake_pair.clone());
        let observer = Box::new(move |group: &Group, point: Option<SealedCut>| {
            told.sealed(group, point);
            pair_woken.notify_one();
        });
        let group = Group::open(settings, storage, opening.clock.clone(), opening.arena.clone(), observer);
        Ok(Member {
            group: group.map_err(failed)?,
            folder,
            targets,
            clock: opening.clock.clone(),
            fenced: opening.fenced.clone(),
            wake_pair,
            pair: Mutex::default(),
            rpo: table.rpo,
            cut_interval: table.cut_interval,
            clear_interval: table.clear_interval,
            memory_budget: table.memory_budget,
        })
    }

    pub(super) fn name(&self) -> &GroupName {
        self.group.name()
    }

    /// Adds the group's taps, each under `GROUP/VOLUME`.
    pub(super) fn serve(&self, exports: &Exports) -> anyhow::Result<()> {
        for (number, volume) in self.group.volumes().iter().enumerate() {
            let tap = TapVolume::new(self.group.clone(), number);
            exports.add(&format!("{}/{}", self.name(), volume.name), Arc::new(tap))?;
        }
        Ok(())
    }

    pub(super) fn start(&self) -> io::Result<Running> {
        let workers = Workers::start(self.group.clone(), self.clear_interval)?;
        let cutter = Cutter::start(self.group.clone(), self.cut_interval, self.memory_budget)?;
        Ok(Running { workers, cutter })
    }

    /// Segments from `from` on, as the link announces them.
    pub(super) fn descriptors(&self, from: Sequence, limit: usize) -> Vec<SegmentDescriptor> {
        let describe = |stored: StoredSegment| SegmentDescriptor {
            position: stored.position,
            parent: stored.parent,
            size_bytes: stored.size_bytes,
        };
        self.group.pending(from, limit).into_iter().map(describe).collect()
    }

    /// Opens a segment for sending, if it still is what was sealed.
    pub(super) fn open_segment(&self, sequence: Sequence) -> io::Result<File> {
        self.group.check_segment(sequence).map_err(|error| {
            warn!(group = %self.name(), error = %with_causes(&error), hint = error.hint(), "a segment is not sent");
            io::Error::other(error)
        })?;
        File::open(self.folder.join(Group::segment_name(sequence)))
    }

    /// How this host stands with the pair's other one; `None` without a pair.
    pub(super) fn pair_report(&self) -> Option<Value> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|pair| pair.report())
    }

    /// Does what can be done before the taps end.
    pub(super) fn prepare_close(&self) {
        self.group.prepare_close();
    }

    /// Ends in order, after the taps.
    pub(super) fn close(&self) {
        if let Err(error) = self.group.close() {
            error!(group = %self.name(), error = %with_causes(&error), "the next start begins with a resync");
        }
    }

    /// Cuts now. With `wait`, answers when the site's receipt covers a point at or behind this cut: if a resync is under way, the
    /// first point after it; if the chain goes back to what the site has, a point of the new timeline.
    pub(super) fn cut(&self, request: &CutRequest, wait: Option<Duration>) -> Result<Value, Failure> {
        let deadline = wait.map(|wait| Instant::now() + wait);
        loop {
            let timeline = self.targets.confirmed.timeline();
            let sealed = self.sealed(request);
            let Some(deadline) = deadline else { return Ok(self.cut_answer(sealed?, false)) };
            let left = deadline.saturating_duration_since(Instant::now());
            let sealed = match sealed {
                // A journal that is full has room again when receipts come.
                Err(failure) if !left.is_zero() && matches!(failure.code, exit::FULL | exit::FAILED) => {
                    self.targets.confirmed.wait_for_news(left.min(RETRY_PAUSE));
                    continue;
                }
                sealed => sealed?,
            };
            match self.targets.confirmed.wait(timeline, sealed.position.sequence, left) {
                Waited::Covered if sealed.is_point => return Ok(self.cut_answer(sealed, true)),
                Waited::Covered | Waited::Rebased => {}
                Waited::TimedOut => return Err(self.overdue(&sealed)),
            }
        }
    }

    /// Compares everything with the recovery site, or sends it without asking.
    pub(super) fn resync(&self, full: bool) -> Value {
        self.group.request_resync(full);
        let bytes: u64 = self.group.volumes().iter().map(|volume| volume.size_bytes).sum();
        json!({"group": self.name(), "full": full, "total_bytes": bytes})
    }

    fn overdue(&self, sealed: &SealedCut) -> Failure {
        let state = self.targets.link();
        let hint = "the link is slow or the backlog long; see 'thirdsite status'".to_owned();
        let hint = state.reason.unwrap_or(hint);
        let message = format!(
            "the cut is sealed as {}, but the recovery site has not confirmed it in time",
            sealed.point
        );
        Failure::new(exit::TIMEOUT, message, &hint)
    }

    fn sealed(&self, request: &CutRequest) -> Result<SealedCut, Failure> {
        let answer = self.group.cut(request.clone()).recv();
        let sealed =
            answer.map_err(|_| Failure::unreachable("the agent is ending", "cut again when it is back"))?;
        sealed.map_err(|error| Failure::of(&error, error.kind(), error.hint()))
    }

    fn cut_answer(&self, sealed: SealedCut, confirmed: bool) -> Value {
        json!({
            "group": self.name(),
            "point": sealed.point,
            "position": sealed.position.to_string(),
            "time": super::time_text(sealed.time),
            "is_point": sealed.is_point,
            "confirmed": confirmed,
        })
    }
}

pub(super) fn open_leg(volume: &VolumeTable) -> Result<Arc<dyn Leg>, JournalError> {
    let leg = FileLeg::open(&volume.leg).map_err(|source| JournalError::Leg {
        volume: volume.name.clone(),
        path: volume.leg.display().to_string(),
        source,
    })?;
    Ok(Arc::new(leg))
}

pub(super) fn open_storage(table: &GroupTable, folder: &Path) -> Result<Arc<DirStorage>, JournalError> {
    DirStorage::open(folder).map(Arc::new).map_err(|source| JournalError::Storage {
        group: table.name.clone(),
        action: format!("opening its folder '{}'", folder.display()),
        source,
    })
}
