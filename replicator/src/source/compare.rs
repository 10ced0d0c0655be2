//! Asks the recovery site what it has, for a resync.

use std::time::Duration;

use journal::{Compared, Comparer, RegionState};
use journal_format::{Hash, VolumeName};
use tracing::debug;
use transport::{CallAnswer, CallRequest, Caller, RegionAnswer};

/// An answer has to cross the link twice and may wait for a disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// The recovery site, for one group.
pub(super) struct SiteComparer(pub(super) Caller);

impl Comparer for SiteComparer {
    fn compare(
        &self,
        volume: &VolumeName,
        size_bytes: u64,
        offset: u64,
        regions: &[Hash],
    ) -> Option<Compared> {
        let regions = regions.iter().map(|hash| hash.0).collect();
        let request = CallRequest::Compare { volume: volume.clone(), offset, regions, size_bytes };
        match self.0.call(request, PATIENCE) {
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
}

fn state(answer: RegionAnswer) -> RegionState {
    match answer {
        RegionAnswer::Equal => RegionState::Equal,
        RegionAnswer::Blocks(hashes) => RegionState::Blocks(hashes.into_iter().map(Hash).collect()),
    }
}
