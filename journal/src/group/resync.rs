//! resync(D): makes the recovery site equal to the legs for the dirty regions, while the VM goes on writing. Regions are read and
//! compared with the site by their hashes, so that only what differs travels.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use journal_format::segment::VolumeRecord;
use journal_format::{BLOCK_BYTES, Epoch, Hash, Timestamp};
use tracing::{info, warn};

use super::{CutRequest, Group};
use crate::capture::{WatchTicket, pieces};
use crate::compare::{Compared, Comparer, RegionState};
use crate::faults::{self, Bug};
use crate::regions::REGION_BYTES;

/// Regions that are read and compared at once.
const BATCH_REGIONS: usize = 64;

/// How the resync stands.
pub(super) struct Progress {
    volume: usize,
    /// Number of the region to go on at.
    region: u64,
    /// What it began with, in bytes; 0 if none is under way.
    total_bytes: u64,
    began: Timestamp,
    /// The rate allows the next step from then on.
    next_step: Timestamp,
    /// Send everything without comparing.
    full: bool,
}

impl Progress {
    pub(super) fn new(total_bytes: u64, now: Timestamp) -> Self {
        let next_step = Timestamp(i64::MIN);
        Progress { volume: 0, region: 0, total_bytes, began: now, next_step, full: false }
    }
}

/// What a step of the resync did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepStep {
    /// Regions became clean.
    Progress,
    /// There is something to read, but not now: no room, no way to the site, or the rate is used up.
    Wait,
    /// Nothing is dirty.
    Idle,
}

/// A resync that is under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResyncStatus {
    /// Regions still to be looked at, in bytes.
    pub left_bytes: u64,
    /// What it began with, and what became dirty since, in bytes.
    pub total_bytes: u64,
    /// Estimate of the time that it still takes, from its speed so far.
    pub left_seconds: Option<f64>,
}

impl Group {
    /// Compares with this site from now on; with `None`, a resync waits.
    pub fn set_comparer(&self, comparer: Option<Arc<dyn Comparer>>) {
        *self.lock(&self.comparer) = comparer;
        self.signal.raise();
    }

    /// Makes everything dirty, because somebody asks for it, perhaps because a leg was changed behind our back. With `full`, everything is
    /// sent without comparing.
    pub fn request_resync(&self, full: bool) {
        // What is captured so far may be older than what the leg holds: what is read from now on goes into a later epoch.
        if !faults::planted(Bug::ResyncUnderOlderCapture) {
            drop(self.cut(CutRequest::default()));
        }
        (0..self.volumes.len()).for_each(|volume| self.capture.mark_all_dirty(volume));
        self.owes_point.store(true, Ordering::Release);
        let mut progress = self.lock(&self.resync);
        progress.full |= full;
        drop(progress);
        info!(group = %self.name, full, "resync of everything, as requested");
        self.signal.raise();
    }

    /// The resync under way; `None` if nothing is dirty.
    pub fn resync_status(&self) -> Option<ResyncStatus> {
        let left_bytes = self.capture.dirty_bytes();
        let mut progress = self.lock(&self.resync);
        if left_bytes == 0 {
            return None;
        }
        progress.note_dirty(left_bytes, self.clock.now());
        let done = progress.total_bytes - left_bytes;
        let elapsed = self.clock.now().seconds_since(progress.began);
        let left_seconds = (done > 0).then(|| elapsed * left_bytes as f64 / done as f64);
        Some(ResyncStatus { left_bytes, total_bytes: progress.total_bytes, left_seconds })
    }

    /// Reads and compares the next dirty regions; what differs goes into the open epoch. May be called by several threads.
    pub fn sweep_step(&self) -> SweepStep {
        let dirty_bytes = self.capture.dirty_bytes();
        if dirty_bytes == 0 {
            self.lock(&self.resync).finish();
            return SweepStep::Idle;
        }
        if self.capture.sweep_must_wait() || self.journal_is_filling() {
            return SweepStep::Wait;
        }
        let now = self.clock.now();
        let (ticket, full) = {
            let mut progress = self.lock(&self.resync);
            progress.note_dirty(dirty_bytes, now);
            if now < progress.next_step {
                return SweepStep::Wait;
            }
            let Some(ticket) = self.next_watch(&mut progress) else { return SweepStep::Wait };
            let bytes: u64 = ticket.ranges.iter().map(|range| range.end - range.start).sum();
            if let Some(rate) = self.resync_rate_bytes {
                let pause = bytes.saturating_mul(1_000_000_000) / rate.max(1);
                progress.next_step = Timestamp(now.0.saturating_add(pause as i64));
            }
            (ticket, progress.full)
        };
        let compared = if full { None } else { self.compare(&ticket) };
        faults::step("sweep.compared");
        let clean = self.settle(&ticket, full, compared);
        faults::step("sweep.settled");
        if clean == 0 {
            return SweepStep::Wait;
        }
        if self.capture.dirty_bytes() == 0 {
            info!(group = %self.name, "resync has looked at everything; the next cut is a point");
        }
        SweepStep::Progress
    }

    /// The next dirty regions behind the cursor, round and round over all volumes.
    fn next_watch(&self, progress: &mut Progress) -> Option<WatchTicket> {
        for _ in 0..=self.volumes.len() {
            let (volume, from) = (progress.volume, progress.region);
            if let Some(ticket) = self.capture.watch(volume, from, BATCH_REGIONS) {
                progress.region = ticket.ranges.last().map_or(0, |range| range.start / REGION_BYTES + 1);
                return Some(ticket);
            }
            (progress.volume, progress.region) = ((volume + 1) % self.volumes.len(), 0);
        }
        None
    }

    /// Reads watched regions and asks the site what it has; `None` if either cannot be done now.
    fn compare(&self, ticket: &WatchTicket) -> Option<(Epoch, Vec<RegionState>)> {
        let comparer = self.lock(&self.comparer).clone()?;
        let hash = |range: &Range<u64>| self.read(ticket.volume, range).map(|bytes| Hash::of(&bytes));
        let hashes = ticket.ranges.iter().map(hash).collect::<Option<Vec<Hash>>>()?;
        let VolumeRecord { name, size_bytes, .. } = &self.volumes[ticket.volume];
        let Compared { head, regions } =
            comparer.compare(name, *size_bytes, ticket.ranges[0].start, &hashes)?;
        let epoch = self.lock(&self.chain).answered_epoch(head)?;
        Some((epoch, regions))
    }

    fn settle(&self, ticket: &WatchTicket, full: bool, compared: Option<(Epoch, Vec<RegionState>)>) -> u64 {
        let (epoch, states) = compared.unwrap_or_default();
        let equal: Vec<bool> = states.iter().map(|state| *state == RegionState::Equal).collect();
        let mut clean = self.capture.settle_equal(ticket, &equal, epoch);
        if full {
            let ranges = ticket.ranges.iter();
            return clean + ranges.map(|range| self.send(ticket.volume, range, None)).sum::<u64>();
        }
        for (range, state) in ticket.ranges.iter().zip(&states) {
            if let RegionState::Blocks(hashes) = state {
                clean += self.send(ticket.volume, range, Some((epoch, hashes)));
            }
        }
        clean
    }

    /// Puts the blocks of a region that the site lacks into the open epoch; without an answer of the site, all of them.
    fn send(&self, volume: usize, range: &Range<u64>, site: Option<(Epoch, &[Hash])>) -> u64 {
        let blocks = (range.end - range.start).div_ceil(BLOCK_BYTES) as usize;
        if site.is_some_and(|(_, hashes)| hashes.len() != blocks) {
            return 0;
        }
        let Some(ticket) = self.capture.begin_reread(volume, range) else { return 0 };
        let pieces = self.read(volume, range).map(|bytes| {
            pieces(&bytes, |number, block| site.is_none_or(|(_, hashes)| Hash::of(block) != hashes[number]))
        });
        self.capture.settle_reread(&ticket, site.map(|(epoch, _)| epoch), pieces)
    }

    fn read(&self, volume: usize, range: &Range<u64>) -> Option<Vec<u8>> {
        let leg = &*self.legs[volume];
        let mut bytes = vec![0; (range.end - range.start) as usize];
        if !leg.reads_as_zero(range.start, range.end - range.start)
            && let Err(error) = leg.read(range.start, &mut bytes)
        {
            let volume = self.volume_name(volume);
            warn!(group = %self.name, %volume, offset = range.start, %error, "the resync cannot read the leg");
            return None;
        }
        Some(bytes)
    }

    /// A resync leaves half of the journal to the guest's own writes.
    fn journal_is_filling(&self) -> bool {
        let chain = self.lock(&self.chain);
        chain.backlog().1 > chain.limit_bytes() / 2
    }
}

impl Progress {
    fn note_dirty(&mut self, dirty_bytes: u64, now: Timestamp) {
        if self.total_bytes == 0 {
            self.began = now;
        }
        self.total_bytes = self.total_bytes.max(dirty_bytes);
    }

    fn finish(&mut self) {
        (self.total_bytes, self.full) = (0, false);
    }
}
