//! Asks the targets what they have, for a resync.

use std::time::Duration;

use journal::{Compared, Comparer, RegionState};
use journal_format::{Hash, VolumeName};
use tracing::debug;
use transport::{CallAnswer, CallRequest, Caller, RegionAnswer};

/// An answer has to cross the link twice and may wait for a disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// A target that can be asked.
pub(super) enum Asked {
    /// A recovery site.
    Site(Caller),
}

/// The targets of one group. All have the same chain, so that any one that answers speaks for all.
pub(super) struct TargetsComparer {
    pub(super) asked: Vec<Asked>,
}

impl Comparer for TargetsComparer {
    fn compare(
        &self,
        volume: &VolumeName,
        size_bytes: u64,
        offset: u64,
        regions: &[Hash],
    ) -> Option<Compared> {
        self.asked.iter().find_map(|asked| match asked {
            Asked::Site(caller) => ask_site(caller, volume, size_bytes, offset, regions),
        })
    }
}

fn ask_site(
    caller: &Caller,
    volume: &VolumeName,
    size_bytes: u64,
    offset: u64,
    regions: &[Hash],
) -> Option<Compared> {
    let regions = regions.iter().map(|hash| hash.0).collect();
    let request = CallRequest::Compare { volume: volume.clone(), offset, regions, size_bytes };
    match caller.call(request, PATIENCE) {
        Ok(CallAnswer::Compared { head, regions }) => {
            Some(Compared { head, regions: regions.into_iter().map(state).collect() })
        }
        Ok(answer) => {
            debug!(?answer, "the site answers something else");
            None
        }
        Err(error) => {
            debug!(%error, "the site cannot be asked");
            None
        }
    }
}

fn state(answer: RegionAnswer) -> RegionState {
    match answer {
        RegionAnswer::Equal => RegionState::Equal,
        RegionAnswer::Blocks(hashes) => RegionState::Blocks(hashes.into_iter().map(Hash).collect()),
    }
}
