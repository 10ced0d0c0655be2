//! Asks the targets what they have, for a resync.

use std::sync::Arc;
use std::time::Duration;

use journal::{Compared, Comparer, REGION_BYTES, RegionState};
use journal_format::{BLOCK_BYTES, Hash, VolumeName};
use tracing::debug;
use transport::{CallAnswer, CallRequest, Caller, RegionAnswer};

use super::targets::Targets;

/// An answer has to cross the link twice and may wait for a disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// A target that can be asked.
pub(super) enum Asked {
    /// A recovery site.
    Site(Caller),
    /// A bucket, which cannot say what it holds: by its number among the targets.
    Bucket(usize),
}

/// The targets of one group. All have the same chain, so that any one that answers speaks for all.
pub(super) struct TargetsComparer {
    pub(super) asked: Vec<Asked>,
    pub(super) targets: Arc<Targets>,
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
            Asked::Bucket(number) => self.unknown(*number, size_bytes, offset, regions.len() as u64),
        })
    }
}

impl TargetsComparer {
    /// As if nothing were the same: what the bucket has of it then travels as references, if this host knows that.
    fn unknown(&self, number: usize, size_bytes: u64, offset: u64, regions: u64) -> Option<Compared> {
        let head = self.targets.has(number)?;
        let region = |number: u64| {
            let begin = offset + number * REGION_BYTES;
            let blocks = size_bytes.saturating_sub(begin).min(REGION_BYTES).div_ceil(BLOCK_BYTES);
            RegionState::Blocks(vec![Hash::ZERO; blocks as usize])
        };
        Some(Compared { head, regions: (0..regions).map(region).collect() })
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
