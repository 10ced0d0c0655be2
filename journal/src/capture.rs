//! The open epoch of a group, and the rules that make every cut crash-consistent.
//!
//! Three rules, all kept under one lock for each volume:
//!
//! 1. **The epoch is taken on arrival.** [`Capture::begin`] puts a write's bytes into the epoch that is open at that moment.
//!    `Capture::cut` holds the locks of all volumes at once while it ends the epoch. If write B was issued after write A
//!    was acknowledged, B arrives after A, hence epoch(A) ≤ epoch(B), whichever volumes they go to: a cut never holds B
//!    without A.
//! 2. **The journal's order is the leg's order.** A write that overlaps writes in flight waits for them, in the order of
//!    arrival, before it may touch the leg.
//! 3. **What is not captured is dirty.** If the payload is dropped (budget) or the leg fails, the epoch forgets the range and its
//!    regions are marked dirty before the write is acknowledged. A cut taken while anything is dirty completes no point.
//!
//! And before all of them: a write touches the leg only when its regions are marked in the intent map, durably.
//!
//! A resync *watches* dirty regions while it reads them and compares them with the recovery site, which may take long: writes go on. Those that
//! are equal are clean: what was written to them since is captured. One that differs is read *again*, within one epoch, and what the site lacks
//! goes *under* everything that this epoch captured. No write ever waits for a resync.

mod resync;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use journal_format::Epoch;
use journal_nbd::Payload;

use self::resync::Watch;
pub(crate) use self::resync::{WatchTicket, pieces};
use crate::extent_map::{ExtentMap, Source};
use crate::faults::{self, Bug};
use crate::intent::IntentMaps;
use crate::previous::{Previous, PreviousBlocks, PreviousBudget};
use crate::regions::{REGION_BYTES, RegionSet, regions_of};

/// Previous content of blocks may take this part of the budget, as long as half of it is free.
const PREVIOUS_SHARE: u64 = 4;

/// What a request does to a range.
#[derive(Clone, Debug)]
pub enum Change {
    /// Writes these bytes.
    Data(Payload),
    /// Makes so many bytes zero.
    Zero(u64),
}

impl Change {
    fn length(&self) -> u64 {
        match self {
            Change::Data(payload) => payload.len() as u64,
            Change::Zero(length) => *length,
        }
    }
}

/// A write between arrival and the leg's answer.
#[must_use = "a write that is not ended blocks all that overlap it"]
#[derive(Debug)]
pub struct WriteTicket {
    volume: usize,
    number: u64,
}

#[derive(Debug)]
struct InFlight {
    number: u64,
    range: Range<u64>,
    /// The epoch that has its bytes; `None` if they were dropped.
    captured_in: Option<Epoch>,
}

#[derive(Debug)]
struct VolumeState {
    /// It was added to a group that has points: they do without it until nothing of it is dirty.
    joining: bool,
    epoch: Epoch,
    map: ExtentMap,
    dirty: RegionSet,
    /// What writes may take for marked in the intent map.
    marked: RegionSet,
    /// An answer of the site has to hold everything up to this epoch: something was lost behind it.
    lost_behind: Epoch,
    /// Counts the times that marks were taken away.
    clears: u64,
    /// For each region the epoch of its newest captured or swept change, 0 if there was none since the start.
    changed_in: Vec<u32>,
    watches: Vec<Watch>,
    in_flight: Vec<InFlight>,
    next_number: u64,
    waiting: usize,
    written_bytes: u64,
}

impl VolumeState {
    /// Whether a cut now could be a point, as far as this volume goes.
    fn is_whole(&self) -> bool {
        self.joining || self.dirty.is_empty()
    }

    fn mark_dirty(&mut self, range: Range<u64>) {
        self.watches.iter_mut().for_each(|watch| watch.spoil(&range));
        self.lost_behind = Epoch(self.epoch.0.saturating_sub(1));
        self.dirty.mark(range);
    }

    /// What the open epoch captured in dirty regions counts as lost.
    fn give_up_dirty(&mut self) {
        if faults::planted(Bug::GiveUpQuietly) {
            return;
        }
        self.watches.iter_mut().for_each(Watch::spoil_all);
        self.lost_behind = Epoch(self.epoch.0.saturating_sub(1));
    }

    fn note_change(&mut self, range: &Range<u64>) {
        let epoch = u32::try_from(self.epoch.0).unwrap_or(u32::MAX);
        let regions = regions_of(range);
        self.changed_in[regions.start as usize..regions.end as usize].fill(epoch);
    }

    fn enter(&mut self, range: Range<u64>, captured_in: Option<Epoch>) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.in_flight.push(InFlight { number, range, captured_in });
        number
    }

    fn is_blocked(&self, number: u64, range: &Range<u64>) -> bool {
        !faults::planted(Bug::IgnoreOverlap)
            && self.in_flight.iter().any(|other| other.number < number && overlap(&other.range, range))
    }

    fn leave(&mut self, number: u64) -> InFlight {
        let at = self.in_flight.iter().position(|other| other.number == number);
        self.in_flight.swap_remove(at.expect("a ticket is ended once"))
    }
}

struct Volume {
    size_bytes: u64,
    previous: Previous,
    state: Mutex<VolumeState>,
    released: Condvar,
}

/// What one epoch changed in all volumes.
#[derive(Debug)]
pub(crate) struct EpochChanges {
    pub(crate) epoch: Epoch,
    pub(crate) volumes: Vec<ExtentMap>,
    /// For each volume what blocks held before.
    pub(crate) previous: Vec<PreviousBlocks>,
    /// Bytes that the guest wrote, those written twice counted twice.
    pub(crate) written_bytes: u64,
    /// Whether nothing was dirty in the volumes that points hold: their state at the end of the epoch is known in full.
    pub(crate) complete: bool,
    /// For each volume whether points do not hold it yet.
    pub(crate) joining: Vec<bool>,
    /// For each volume what was dirty at the end of the epoch, if payload was dropped in it. No point needs what the epoch holds there.
    given_up: Vec<RegionSet>,
}

impl EpochChanges {
    /// What was read from legs, to be sealed like an epoch.
    pub(crate) fn of(volumes: Vec<ExtentMap>) -> EpochChanges {
        EpochChanges {
            epoch: Epoch(0),
            joining: vec![false; volumes.len()],
            volumes,
            previous: Vec::new(),
            written_bytes: 0,
            complete: false,
            given_up: Vec::new(),
        }
    }

    /// Forgets what lies in regions that were given up: a resync reads them again, and sealing what it will read anyway would only let more
    /// be dropped. Returns how many bytes of payload that was.
    pub(crate) fn forget_given_up(&mut self) -> u64 {
        let before = self.payload_bytes();
        for (map, given_up) in self.volumes.iter_mut().zip(&self.given_up) {
            map.retain(|range| !given_up.covers(&range));
        }
        before - self.payload_bytes()
    }

    pub(crate) fn payload_bytes(&self) -> u64 {
        self.volumes.iter().map(ExtentMap::payload_bytes).sum()
    }
}

/// The open epoch of a group. Shared by all of its taps.
pub struct Capture {
    volumes: Vec<Volume>,
    intents: Arc<IntentMaps>,
    budget_bytes: u64,
    previous_budget: PreviousBudget,
    held_bytes: AtomicU64,
    dropped_bytes: AtomicU64,
    /// Payload of the open epoch was dropped.
    overloaded: AtomicBool,
}

impl Capture {
    /// Begins with `epoch` open and nothing dirty, for volumes of these sizes in bytes with their intent maps. `budget_bytes` limits
    /// the payload held by the open epoch and by epochs that are not sealed yet.
    pub(crate) fn new(
        sizes_bytes: &[u64],
        epoch: Epoch,
        budget_bytes: u64,
        intents: Arc<IntentMaps>,
    ) -> Self {
        let volume = |(number, &size_bytes): (usize, &u64)| Volume {
            size_bytes,
            previous: Previous::new(),
            state: Mutex::new(VolumeState {
                joining: false,
                epoch,
                map: ExtentMap::default(),
                dirty: RegionSet::new(size_bytes),
                marked: intents.marked(number),
                lost_behind: Epoch(epoch.0.saturating_sub(1)),
                clears: 0,
                changed_in: vec![0; size_bytes.div_ceil(REGION_BYTES) as usize],
                watches: Vec::new(),
                in_flight: Vec::new(),
                next_number: 0,
                waiting: 0,
                written_bytes: 0,
            }),
            released: Condvar::new(),
        };
        Capture {
            volumes: sizes_bytes.iter().enumerate().map(volume).collect(),
            intents,
            budget_bytes,
            previous_budget: PreviousBudget::new(budget_bytes / PREVIOUS_SHARE),
            held_bytes: AtomicU64::new(0),
            dropped_bytes: AtomicU64::new(0),
            overloaded: AtomicBool::new(false),
        }
    }

    /// Takes in a write on its arrival and returns when it may touch the leg. `payload_is_dear` says that the payload pins
    /// more memory than its length, so that a copy is kept instead.
    pub fn begin(&self, volume: usize, offset: u64, change: Change, payload_is_dear: bool) -> WriteTicket {
        let length = change.length();
        let range = offset..offset + length;
        let mut state = self.lock_marked(volume, &range);
        state.written_bytes += length;
        state.note_change(&range);
        let mut captured_in = Some(state.epoch);
        match change {
            Change::Data(_) if self.is_full(length) => {
                captured_in = None;
                self.dropped_bytes.fetch_add(length, Ordering::Relaxed);
                self.overloaded.store(true, Ordering::Relaxed);
                self.forget(&mut state, range.clone());
            }
            Change::Data(payload) => {
                let payload = if payload_is_dear { Payload::from_vec(payload.to_vec()) } else { payload };
                self.record(&mut state, |map| map.insert(offset, length, Source::Data { payload, start: 0 }));
            }
            Change::Zero(_) => self.record(&mut state, |map| map.insert(offset, length, Source::Zero)),
        }
        let number = state.enter(range.clone(), captured_in);
        drop(self.wait_for_turn(volume, state, number, &range));
        faults::step("tap.captured");
        WriteTicket { volume, number }
    }

    /// The volume's lock, with the range marked in the intent map.
    fn lock_marked(&self, volume: usize, range: &Range<u64>) -> MutexGuard<'_, VolumeState> {
        let mut state = self.lock(volume);
        while !state.marked.covers(range) {
            let clears = state.clears;
            drop(state);
            let marked = self.intents.mark(volume, range);
            state = self.lock(volume);
            // Marks that were taken away in between have to be asked for again.
            if state.clears == clears {
                state.marked.mark(marked);
            }
        }
        state
    }

    /// Ends a write. If the leg failed, its regions are dirty: what they hold now has to be read again.
    pub fn end(&self, ticket: WriteTicket, succeeded: bool) {
        let mut state = self.lock(ticket.volume);
        let write = state.leave(ticket.number);
        if !succeeded && !faults::planted(Bug::IgnoreLegError) {
            self.forget(&mut state, write.range);
        }
        self.release(ticket.volume, &state);
    }

    /// Ends the open epoch, in all volumes at one instant.
    pub(crate) fn cut(&self) -> EpochChanges {
        faults::step("cut");
        let mut states = self.lock_all();
        let epoch = states[0].epoch;
        for state in &mut states {
            state.joining &= !state.dirty.is_empty();
        }
        let complete = states.iter().all(|state| state.is_whole()) || faults::planted(Bug::PointWhileDirty);
        let joining = states.iter().map(|state| state.joining).collect();
        let overloaded = self.overloaded.swap(false, Ordering::Relaxed);
        let mut changes = EpochChanges {
            epoch,
            volumes: Vec::new(),
            previous: self.volumes.iter().map(|volume| volume.previous.take()).collect(),
            written_bytes: 0,
            complete,
            joining,
            given_up: Vec::new(),
        };
        for state in &mut states {
            if overloaded {
                state.give_up_dirty();
                changes.given_up.push(state.dirty.clone());
            }
            changes.volumes.push(std::mem::take(&mut state.map));
            changes.written_bytes += std::mem::take(&mut state.written_bytes);
            state.epoch = epoch.next();
        }
        changes
    }

    /// Makes the open epoch at least `epoch`; used when a timeline goes on from a place that others reached.
    pub(crate) fn raise_epoch(&self, epoch: Epoch) {
        for state in &mut self.lock_all() {
            state.epoch = state.epoch.max(epoch);
        }
    }

    /// The epoch that takes in writes now.
    pub(crate) fn open_epoch(&self) -> Epoch {
        self.lock(0).epoch
    }

    /// Takes in that captured payload was given up.
    pub(crate) fn note_dropped(&self, payload_bytes: u64) {
        self.dropped_bytes.fetch_add(payload_bytes, Ordering::Relaxed);
    }

    /// Gives back the memory of changes that are sealed or dropped.
    pub(crate) fn release_memory(&self, payload_bytes: u64, previous: &[PreviousBlocks]) {
        self.held_bytes.fetch_sub(payload_bytes, Ordering::Relaxed);
        self.previous_budget.release(previous);
    }

    /// Looks at what a write is about to change, as far as `read` has it at hand: what is similar is kept for the sealing.
    pub(crate) fn look_before(
        &self,
        volume: usize,
        offset: u64,
        payload: &Payload,
        read: impl FnMut(u64, &mut [u8]) -> bool,
    ) {
        if self.held_bytes() > self.budget_bytes / 2 {
            return;
        }
        self.volumes[volume].previous.look(offset, payload, &self.previous_budget, read);
    }

    /// Marks ranges whose captured changes were lost.
    pub(crate) fn mark_dirty(&self, volume: usize, ranges: impl Iterator<Item = Range<u64>>) {
        let mut state = self.lock(volume);
        ranges.for_each(|range| state.mark_dirty(range));
    }

    /// Marks a whole volume, in the intent map too.
    pub(crate) fn mark_all_dirty(&self, volume: usize) {
        self.intents.mark_all(volume);
        let mut state = self.lock(volume);
        state.marked.mark_all();
        let size_bytes = self.volumes[volume].size_bytes;
        state.mark_dirty(0..size_bytes);
    }

    /// Whether the open epoch has changes, captured or dropped.
    pub(crate) fn has_changes(&self) -> bool {
        self.overloaded.load(Ordering::Relaxed)
            || (0..self.volumes.len()).any(|volume| !self.lock(volume).map.is_empty())
    }

    /// Payload in the open epoch, in bytes.
    pub(crate) fn open_bytes(&self) -> u64 {
        (0..self.volumes.len()).map(|volume| self.lock(volume).map.payload_bytes()).sum()
    }

    /// Makes a volume one that points do not hold until nothing of it is dirty.
    pub(crate) fn begin_joining(&self, volume: usize) {
        self.lock(volume).joining = true;
    }

    /// For each volume whether points do not hold it yet.
    pub(crate) fn joining(&self) -> Vec<bool> {
        (0..self.volumes.len()).map(|volume| self.lock(volume).joining).collect()
    }

    /// Whether a cut now would be a point.
    pub(crate) fn is_whole(&self) -> bool {
        (0..self.volumes.len()).all(|volume| self.lock(volume).is_whole())
    }

    /// Whether points could hold a volume from the next cut on that they do not hold yet.
    pub(crate) fn can_join(&self) -> bool {
        let ready = |state: &VolumeState| state.joining && state.dirty.is_empty();
        (0..self.volumes.len()).any(|volume| ready(&self.lock(volume)))
    }

    /// Size of all dirty regions, in bytes.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        (0..self.volumes.len()).map(|volume| self.lock(volume).dirty.bytes()).sum()
    }

    /// Payload and previous content held in memory, in bytes.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed) + self.previous_budget.held_bytes()
    }

    /// Limit of the payload held in memory, in bytes.
    pub(crate) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Payload dropped for want of memory since the start, in bytes.
    pub(crate) fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes.load(Ordering::Relaxed)
    }

    fn record(&self, state: &mut VolumeState, change: impl FnOnce(&mut ExtentMap)) {
        let before = state.map.payload_bytes();
        change(&mut state.map);
        let after = state.map.payload_bytes();
        if after >= before {
            self.held_bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.held_bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    /// Leaves a range to a sweep. What the epoch holds of it is older than the leg, or was never there, and must not cover what
    /// the sweep reads.
    fn forget(&self, state: &mut VolumeState, range: Range<u64>) {
        self.record(state, |map| map.remove(range.start, range.end - range.start));
        if !faults::planted(Bug::DropWithoutDirty) {
            state.mark_dirty(range);
        }
    }

    fn is_full(&self, length: u64) -> bool {
        self.held_bytes() + length > self.budget_bytes
    }

    fn wait_for_turn<'a>(
        &'a self,
        volume: usize,
        mut state: MutexGuard<'a, VolumeState>,
        number: u64,
        range: &Range<u64>,
    ) -> MutexGuard<'a, VolumeState> {
        while state.is_blocked(number, range) {
            state.waiting += 1;
            state = self.volumes[volume].released.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state
    }

    fn release(&self, volume: usize, state: &VolumeState) {
        if state.waiting > 0 {
            self.volumes[volume].released.notify_all();
        }
    }

    fn lock(&self, volume: usize) -> MutexGuard<'_, VolumeState> {
        self.volumes[volume].state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every volume's lock, taken in the order of the volumes so that two callers cannot wait for each other.
    fn lock_all(&self) -> Vec<MutexGuard<'_, VolumeState>> {
        (0..self.volumes.len()).map(|volume| self.lock(volume)).collect()
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests;
