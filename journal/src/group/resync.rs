//! resync(D): makes the recovery site equal to the legs for the dirty regions, while the VM goes on writing. Regions are read and
//! compared with the site by their hashes, so that only what differs travels.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use journal_format::segment::VolumeRecord;
use journal_format::{BLOCK_BYTES, Epoch, Hash, Timestamp};
use tracing::{info, warn};

use super::Group;
use crate::capture::{Outcome, Readiness, WatchTicket, pieces};
use crate::compare::{Comparer, RegionState};
use crate::faults;

/// Regions that are read and compared at once.
const BATCH_REGIONS: usize = 64;
/// Regions that are written all the time never hold still for a comparison; after so long without progress they are sent whole, in
/// nanoseconds.
const STALL_NS: i64 = 5_000_000_000;

/// How the resync stands.
pub(super) struct Progress {
    volume: usize,
    offset: u64,
    /// What it began with, in bytes; 0 if none is under way.
    total_bytes: u64,
    began: Timestamp,
    /// Nothing was settled since.
    stalled_since: Option<Timestamp>,
    /// The rate allows the next step from then on.
    next_step: Timestamp,
    /// Send everything without comparing.
    full: bool,
}

impl Progress {
    pub(super) fn new(total_bytes: u64, now: Timestamp) -> Self {
        let next_step = Timestamp(i64::MIN);
        Progress {
            volume: 0,
            offset: 0,
            total_bytes,
            began: now,
            stalled_since: None,
            next_step,
            full: false,
        }
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

    /// Makes everything dirty, because somebody asks for it. With `full`, everything is sent without comparing.
    pub fn request_resync(&self, full: bool) {
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
        let covered = self.lock(&self.chain).covered_epoch();
        let (ticket, full) = {
            let mut progress = self.lock(&self.resync);
            progress.note_dirty(dirty_bytes, now);
            if now < progress.next_step {
                return SweepStep::Wait;
            }
            let Some((ticket, whole)) = self.next_watch(&mut progress, covered, now) else {
                return SweepStep::Wait;
            };
            let bytes: u64 = ticket.ranges.iter().map(|range| range.end - range.start).sum();
            if let Some(rate) = self.resync_rate_bytes {
                let pause = bytes.saturating_mul(1_000_000_000) / rate.max(1);
                progress.next_step = Timestamp(now.0.saturating_add(pause as i64));
            }
            (ticket, progress.full || whole)
        };
        let outcomes = self.look_at(&ticket, full);
        faults::step("sweep.compared");
        let clean = self.capture.settle(&ticket, outcomes);
        faults::step("sweep.settled");
        if clean == 0 {
            return SweepStep::Wait;
        }
        self.lock(&self.resync).stalled_since = None;
        if self.capture.dirty_bytes() == 0 {
            info!(group = %self.name, "resync has looked at everything; the next cut is a point");
        }
        SweepStep::Progress
    }

    /// The next dirty regions behind the cursor, round and round over all volumes, and whether they are to be sent whole.
    fn next_watch(
        &self,
        progress: &mut Progress,
        covered: Epoch,
        now: Timestamp,
    ) -> Option<(WatchTicket, bool)> {
        let stalled = *progress.stalled_since.get_or_insert(now);
        let modes: &[Readiness] = match (progress.full, now.0 - stalled.0 > STALL_NS) {
            (true, _) => &[Readiness::Any],
            (false, true) => &[Readiness::Covered, Readiness::Uncovered],
            (false, false) => &[Readiness::Covered],
        };
        for &mode in modes {
            for _ in 0..=self.volumes.len() {
                let (volume, offset) = (progress.volume, progress.offset);
                let from = offset / crate::regions::REGION_BYTES;
                if let Some(ticket) = self.capture.watch(volume, from, BATCH_REGIONS, covered, mode) {
                    progress.offset = ticket
                        .ranges
                        .last()
                        .map_or(0, |range| range.end.next_multiple_of(crate::regions::REGION_BYTES));
                    return Some((ticket, mode == Readiness::Uncovered));
                }
                (progress.volume, progress.offset) = ((volume + 1) % self.volumes.len(), 0);
            }
        }
        None
    }

    fn look_at(&self, ticket: &WatchTicket, full: bool) -> Vec<Outcome> {
        let unknown = || ticket.ranges.iter().map(|_| Outcome::Unknown).collect();
        let leg = &*self.legs[ticket.volume];
        let mut read: Vec<Vec<u8>> = Vec::new();
        for range in &ticket.ranges {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            if !leg.reads_as_zero(range.start, range.end - range.start)
                && let Err(error) = leg.read(range.start, &mut bytes)
            {
                let volume = self.volume_name(ticket.volume);
                warn!(group = %self.name, %volume, offset = range.start, %error, "the resync cannot read the leg");
                return unknown();
            }
            read.push(bytes);
        }
        if full {
            let whole = |bytes: &Vec<u8>| {
                Outcome::Send(
                    pieces(bytes, |_, _| true).into_iter().filter_map(|(_, change)| change).collect(),
                )
            };
            return read.iter().map(whole).collect();
        }
        let Some(comparer) = self.lock(&self.comparer).clone() else { return unknown() };
        let hashes: Vec<Hash> = read.iter().map(|bytes| Hash::of(bytes)).collect();
        let compared = {
            let VolumeRecord { name, size_bytes, .. } = &self.volumes[ticket.volume];
            comparer.compare(name, *size_bytes, ticket.ranges[0].start, &hashes)
        };
        let Some(compared) = compared else { return unknown() };
        let Some(epoch) = self.lock(&self.chain).answered_epoch(compared.head) else { return unknown() };
        let mut answers = compared.regions.into_iter();
        let outcome = |bytes: &Vec<u8>| match answers.next() {
            None => Outcome::Unknown,
            Some(RegionState::Equal) => Outcome::Equal(epoch),
            Some(RegionState::Blocks(hashes))
                if hashes.len() == bytes.len().div_ceil(BLOCK_BYTES as usize) =>
            {
                Outcome::Differs(epoch, pieces(bytes, |number, block| Hash::of(block) != hashes[number]))
            }
            Some(RegionState::Blocks(_)) => Outcome::Unknown,
        };
        read.iter().map(outcome).collect()
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
        (self.total_bytes, self.full, self.stalled_since) = (0, false, None);
    }
}
