//! What opening a group takes from what is found: the decision tables of `FORMAT.md`.

use std::sync::Arc;

use journal_format::VolumeName;
use journal_format::segment::VolumeRecord;
use tracing::{error, info, warn};

use super::VolumeSettings;
use crate::capture::Capture;
use crate::chain::{KnownVolume, Opened};
use crate::error::JournalError;
use crate::faults::{self, Bug};
use crate::intent::Found;
use crate::leg::Leg;

pub(super) fn known_volumes(volumes: impl Iterator<Item = VolumeRecord>) -> Vec<KnownVolume> {
    let known = |volume: VolumeRecord| {
        let VolumeRecord { name, size_bytes, joining, .. } = volume;
        KnownVolume { name, size_bytes, joining }
    };
    volumes.map(known).collect()
}

pub(super) fn count(joining: &[bool]) -> usize {
    joining.iter().filter(|joining| **joining).count()
}

/// The volumes with whether points do not hold them yet.
pub(super) fn with_joining(volumes: &[VolumeRecord], joining: &[bool]) -> impl Iterator<Item = VolumeRecord> {
    volumes.iter().zip(joining).map(|(volume, &joining)| VolumeRecord { joining, ..volume.clone() })
}

pub(super) fn check_sizes(volumes: &[VolumeSettings], known: &[KnownVolume]) -> Result<(), JournalError> {
    for volume in volumes.iter().filter(|volume| !volume.accept_resize) {
        let actual = volume.leg.size_bytes();
        let before = known.iter().find(|known| known.name == volume.name);
        if let Some(before) = before.filter(|before| before.size_bytes != actual) {
            let expected = before.size_bytes;
            return Err(JournalError::LegSize { volume: volume.name.clone(), expected, actual });
        }
    }
    Ok(())
}

pub(super) fn volume_record(volume: &VolumeSettings) -> VolumeRecord {
    let size_bytes = volume.leg.size_bytes();
    VolumeRecord { name: volume.name.clone(), kind: volume.kind, size_bytes, joining: false }
}

/// What opening found, and what it is compared with.
pub(super) struct Opening<'a> {
    pub(super) volumes: &'a [VolumeRecord],
    pub(super) legs: &'a [Arc<dyn Leg>],
    pub(super) opened: &'a Opened,
    pub(super) found: &'a [Found],
}

impl Opening<'_> {
    /// Makes dirty what nobody can vouch for: the decision table of `FORMAT.md`.
    pub(super) fn mark_untracked(&self, capture: &Capture, session: Option<u64>) {
        let group = self.opened.chain.group();
        let clean =
            self.opened.clean.as_ref().filter(|_| session.is_some() && session == self.opened.session);
        for (volume, record) in self.volumes.iter().enumerate() {
            let (name, found) = (&record.name, self.found[volume]);
            // The clean record has the legs in the order in which the journal knew the volumes.
            let before = self.opened.known.iter().position(|known| known.name == *name);
            let noted = clean.zip(before).and_then(|(clean, before)| clean.legs.get(before)?.as_ref());
            let stamp = self.legs[volume].stamp();
            if noted.is_some() && noted == stamp.as_ref() && found == Found::Whole {
                continue;
            }
            if noted.is_some() && stamp.is_some() {
                warn!(%group, volume = %name, "the leg was changed while the agent was not running; all of it is compared with the recovery site");
                capture.mark_all_dirty(volume);
            } else {
                info!(%group, volume = %name, intent_map = ?found, "what the intent map names is compared with the recovery site");
                if !faults::planted(Bug::ForgetAfterCrash) {
                    capture.mark_marked_dirty(volume);
                }
            }
        }
        for name in &self.opened.damaged {
            error!(%group, segment = %name, "damaged segment set aside; a resync replaces it");
        }
    }

    /// A volume that is new in a group with points joins it: the points go on without it until it is whole.
    pub(super) fn begin_joining(&self, capture: &Capture) {
        let known = &self.opened.known;
        let member = |name: &VolumeName| known.iter().any(|known| known.name == *name && !known.joining);
        if !self.volumes.iter().any(|volume| member(&volume.name)) {
            return;
        }
        for (number, volume) in self.volumes.iter().enumerate().filter(|(_, volume)| !member(&volume.name)) {
            info!(group = %self.opened.chain.group(), volume = %volume.name, "the volume joins the group: points hold it when all of it is at the recovery site");
            capture.begin_joining(number);
        }
    }

    /// Takes in what the waiting segments change.
    pub(super) fn note_waiting(&self, capture: &Capture) {
        for change in &self.opened.changes {
            let volume = self.volumes.iter().position(|volume| volume.name == change.volume);
            let Some(volume) = volume else { continue };
            let size_bytes = self.volumes[volume].size_bytes;
            let range = change.range.start.min(size_bytes)..change.range.end.min(size_bytes);
            capture.note_sealed(volume, &range, change.epoch);
        }
    }
}
