//! The way from a cut to a sealed segment.

use std::sync::atomic::Ordering;

use journal_format::definition::GroupDefinition;
use journal_format::segment::{BuildOptions, PointKind, PointRecord, VolumeRecord};
use journal_format::{Epoch, Hash, PointId, VolumeName, with_causes};
use tracing::{error, info, warn};

use super::opening::{count, known_volumes, with_joining};
use super::{Group, QueuedCut, SealedCut};
use crate::capture::EpochChanges;
use crate::chain::{StoredSegment, segment_name};
use crate::error::JournalError;
use crate::faults;
use crate::seal::{Pressure, SealRequest, level_for, seal};

/// What the sealing of one cut hands to the next.
#[derive(Default)]
pub(super) struct SealState {
    /// Cuts of earlier epochs may lack changes that were lost after they were taken.
    pub(super) tainted_before: Epoch,
    /// Hash of the definition that the chain carries.
    pub(super) definition_sent: Option<Hash>,
    pub(super) written_since_point: u64,
    /// Volumes that points do not hold, as `journal.json` says.
    pub(super) joining: usize,
}

impl Group {
    /// Seals the oldest cut that waits. Returns whether there was one.
    pub fn seal_next(&self) -> bool {
        let mut state = self.lock(&self.sealing);
        let Some(mut cut) = self.lock(&self.queue).pop_front() else { return false };
        let payload_bytes = cut.changes.payload_bytes();
        self.capture.note_dropped(cut.changes.forget_given_up());
        let result = self.seal_cut(&mut state, &cut);
        if let Err(lost) = &result {
            self.abandon(&mut state, &cut.changes, lost);
        }
        drop(state);
        let answer = cut.answer.clone();
        let previous = std::mem::take(&mut cut.changes.previous);
        drop(cut);
        self.capture.release_memory(payload_bytes, &previous);
        drop(previous);
        self.signal.raise();
        (self.observer)(self, result.as_ref().ok().filter(|sealed| sealed.is_point).copied());
        // Nobody waits for the cuts that the schedule makes.
        let _ = answer.send(result);
        true
    }

    fn seal_cut(&self, state: &mut SealState, cut: &QueuedCut) -> Result<SealedCut, JournalError> {
        let epoch = cut.changes.epoch;
        let (next, generation, first_epoch, storage, (_, backlog_bytes)) = {
            let chain = self.lock(&self.chain);
            (chain.next(), chain.generation(), chain.next_epoch(), chain.storage(), chain.backlog())
        };
        if epoch < first_epoch {
            return Err(self.cut_lost("the recovery site is ahead of it"));
        }
        let volumes: Vec<VolumeRecord> = with_joining(&self.volumes, &cut.changes.joining).collect();
        let held = |name: &VolumeName| volumes.iter().any(|volume| volume.name == *name && !volume.joining);
        let definition = self.definition.as_ref().and_then(|definition| definition.restricted_to(held));
        let definition_hash = definition.as_ref().map(GroupDefinition::hash);
        let is_point = cut.changes.complete && epoch >= state.tainted_before;
        state.written_since_point += cut.changes.written_bytes;
        let point = is_point.then(|| PointRecord {
            epoch,
            time: cut.time,
            kind: PointKind::Crash,
            bookmark: cut.bookmark.clone(),
            definition: definition_hash.unwrap_or(Hash::ZERO),
            written_bytes: state.written_since_point,
        });
        let pressure = Pressure {
            held_bytes: self.capture.held_bytes(),
            budget_bytes: self.capture.budget_bytes(),
            backlog_bytes,
            resyncing: self.capture.dirty_bytes() > 0,
        };
        let level = level_for(self.build.level, &pressure);
        let request = SealRequest {
            group: &self.name,
            generation,
            first_epoch,
            last_epoch: epoch,
            sealed_at: self.clock.now(),
            volumes: &volumes,
            point,
            definition: definition.as_ref().filter(|_| state.definition_sent != definition_hash),
            options: BuildOptions { level, ..self.build },
            known: self.known.as_deref(),
        };
        let mut position = None;
        let keep = |stored: StoredSegment| {
            self.register(stored)?;
            position = Some(stored.position);
            Ok(())
        };
        let check_room = |size_bytes: u64| self.lock(&self.chain).check_room(size_bytes);
        let counters = seal(&request, &cut.changes, next, &*storage, keep, &check_room)?;
        *self.lock(&self.sealed) += counters;
        state.definition_sent = definition_hash;
        self.note_joined(state, &cut.changes.joining);
        let position = position.expect("an epoch is sealed into at least one segment");
        let sealed = SealedCut { point: PointId { generation, epoch }, position, time: cut.time, is_point };
        self.owes_point.store(!is_point, Ordering::Release);
        if is_point {
            state.written_since_point = 0;
            *self.lock(&self.last_point) = Some(sealed);
        }
        Ok(sealed)
    }

    /// Notes durably which volumes points hold, when that has changed.
    fn note_joined(&self, state: &mut SealState, joining: &[bool]) {
        let waiting = count(joining);
        if waiting == state.joining {
            return;
        }
        state.joining = waiting;
        let known = known_volumes(with_joining(&self.volumes, joining));
        match self.lock(&self.chain).save_state(self.intents.session(), known, None) {
            Ok(()) => info!(group = %self.name, waiting, "points hold a volume that was added"),
            Err(error) => {
                warn!(group = %self.name, error = with_causes(&error), "journal.json could not be replaced; after a restart the volume joins anew");
            }
        }
    }

    /// Takes a written segment into the chain, unless the chain was rebased while it was being written.
    fn register(&self, stored: StoredSegment) -> Result<(), JournalError> {
        let mut chain = self.lock(&self.chain);
        if chain.next() == (stored.position.sequence, stored.parent) {
            chain.register(stored);
            faults::step("seal.registered");
            return Ok(());
        }
        if let Err(error) = chain.storage().remove(&segment_name(stored.position.sequence)) {
            warn!(group = %self.name, %error, "a segment of the old timeline could not be removed");
        }
        Err(self.cut_lost("the timeline was changed by the recovery site"))
    }

    /// Gives up the changes of an epoch: their regions are dirty, and no cut taken so far is a point.
    fn abandon(&self, state: &mut SealState, changes: &EpochChanges, lost: &JournalError) {
        for (volume, map) in changes.volumes.iter().enumerate() {
            let ranges = map.ranges().map(|range| range.offset..range.offset + range.length);
            self.capture.mark_dirty(volume, ranges);
        }
        self.taint(state);
        self.lost_cuts.fetch_add(1, Ordering::Relaxed);
        error!(group = %self.name, epoch = %changes.epoch, error = with_causes(lost), "epoch dropped from the journal; a resync follows");
    }

    /// Says that no cut taken so far is a point. Called after regions were marked dirty.
    pub(super) fn taint(&self, state: &mut SealState) {
        state.tainted_before = self.capture.open_epoch();
        self.owes_point.store(true, Ordering::Release);
        *self.lock(&self.last_point) = None;
    }

    fn cut_lost(&self, reason: &str) -> JournalError {
        JournalError::CutLost { group: self.name.clone(), reason: reason.to_owned() }
    }
}
