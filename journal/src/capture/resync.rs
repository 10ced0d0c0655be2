//! The capture's side of a resync: watching regions while they are read and compared, and taking marks away.

use std::ops::Range;
use std::sync::atomic::Ordering;

use journal_format::Epoch;
use journal_nbd::Payload;

use super::{Capture, Change, InFlight, VolumeState, overlap};
use crate::extent_map::Source;
use crate::faults::{self, Bug};
use crate::regions::{REGION_BYTES, regions_of};

/// Regions that are being read.
#[derive(Debug)]
pub(super) struct Watch {
    number: u64,
    /// The regions with whether something changed them since.
    regions: Vec<(u64, bool)>,
}

impl Watch {
    pub(super) fn spoil_all(&mut self) {
        self.regions.iter_mut().for_each(|(_, spoiled)| *spoiled = true);
    }

    pub(super) fn spoil(&mut self, range: &Range<u64>) {
        let touched = regions_of(range);
        for (_, spoiled) in self.regions.iter_mut().filter(|(region, _)| touched.contains(region)) {
            *spoiled = true;
        }
    }
}

/// Dirty regions that were handed out to be read and compared.
#[derive(Debug)]
pub(crate) struct WatchTicket {
    pub(crate) volume: usize,
    number: u64,
    /// Ranges in bytes, in order, of at most one region each.
    pub(crate) ranges: Vec<Range<u64>>,
}

/// A dirty region that is read to be sent.
#[derive(Debug)]
pub(crate) struct RereadTicket {
    volume: usize,
    number: u64,
    region: u64,
    /// The open epoch, which what is read goes under.
    epoch: Epoch,
}

impl Capture {
    /// Hands out the next dirty regions at or behind number `from`, at most `limit` of them, that follow each other. Writes go on.
    pub(crate) fn watch(&self, volume: usize, from: u64, limit: usize) -> Option<WatchTicket> {
        let mut state = self.lock(volume);
        let mut dirty = state.dirty.iter_from(from);
        let first = dirty.next()?;
        // Consecutive ones only, so that they are one request.
        let further =
            dirty.zip(first + 1..).take_while(|(region, next)| region == next).map(|(region, _)| region);
        let regions: Vec<u64> = std::iter::once(first).chain(further).take(limit).collect();
        let ranges: Vec<Range<u64>> = regions.iter().map(|&region| state.dirty.range_of(region)).collect();
        let number = state.next_number;
        state.next_number += 1;
        // A write in flight that is not captured may change the leg behind the reading.
        let lost = |range: &Range<u64>| state.is_written(range, |write| write.captured_in.is_none());
        let regions = regions.iter().zip(&ranges).map(|(&region, range)| (region, lost(range))).collect();
        state.watches.push(Watch { number, regions });
        Some(WatchTicket { volume, number, ranges })
    }

    /// Ends a watch. Regions that the site has as they were read, as of `epoch`, are clean: all writes to them behind that epoch are
    /// captured. Returns how many bytes became clean.
    pub(crate) fn settle_equal(&self, ticket: &WatchTicket, equal: &[bool], epoch: Epoch) -> u64 {
        let mut state = self.lock(ticket.volume);
        let at = state.watches.iter().position(|watch| watch.number == ticket.number);
        let watch = state.watches.swap_remove(at.expect("a watch is settled once"));
        if !state.is_usable(epoch) {
            return 0;
        }
        let mut clean = 0;
        for ((region, spoiled), &equal) in watch.regions.into_iter().zip(equal) {
            let spoiled = spoiled && !faults::planted(Bug::IgnoreSpoiledSweep);
            if equal && !spoiled && state.dirty.contains(region) {
                state.dirty.remove(region);
                clean += REGION_BYTES;
            }
        }
        clean
    }

    /// Begins to read a region again, to send it: the caller reads it and settles it at once. Writes go on: what arrives from now on is captured in the
    /// open epoch, and what is read goes under it. `None` while a write is in flight that is not captured there: it may reach
    /// the leg behind the reading, and nothing would cover it.
    pub(crate) fn begin_reread(&self, volume: usize, range: &Range<u64>) -> Option<RereadTicket> {
        let mut state = self.lock(volume);
        let epoch = state.epoch;
        if state.is_written(range, |write| write.captured_in != Some(epoch)) {
            return None;
        }
        let number = state.next_number;
        state.next_number += 1;
        let region = range.start / REGION_BYTES;
        state.watches.push(Watch { number, regions: vec![(region, false)] });
        Some(RereadTicket { volume, number, region, epoch })
    }

    /// Puts what has to be sent of a region that was read again under what the open epoch captured: adjoining pieces from the region's start on, `None`
    /// for what the site has as of `compared`. Without pieces, or if a cut or a lost write came in between, the region stays
    /// dirty. Returns how many bytes became clean.
    pub(crate) fn settle_reread(
        &self,
        ticket: &RereadTicket,
        compared: Option<Epoch>,
        pieces: Option<Vec<(u64, Option<Change>)>>,
    ) -> u64 {
        let mut state = self.lock(ticket.volume);
        let at = state.watches.iter().position(|watch| watch.number == ticket.number);
        let watch = state.watches.swap_remove(at.expect("a region is settled once"));
        let spoiled = watch.regions[0].1 && !faults::planted(Bug::IgnoreSpoiledSweep);
        let usable = compared.is_none_or(|epoch| state.is_usable(epoch));
        let same_epoch = state.epoch == ticket.epoch || faults::planted(Bug::SweepAcrossCut);
        let settled = usable && same_epoch && !spoiled && state.dirty.contains(ticket.region);
        let Some(pieces) = pieces.filter(|_| settled) else { return 0 };
        let range = state.dirty.range_of(ticket.region);
        let mut offset = range.start;
        for (length, change) in pieces {
            let source = change.map(|change| match change {
                Change::Data(payload) => Source::Data { payload, start: 0 },
                Change::Zero(_) => Source::Zero,
            });
            if let Some(source) = source {
                self.record(&mut state, |map| map.fill_gaps(offset, length, &source));
            }
            offset += length;
        }
        state.note_change(&range);
        state.dirty.remove(ticket.region);
        REGION_BYTES
    }

    /// Whether a sweep would take memory that writes may need, or be in vain: while payload is dropped, regions become dirty
    /// faster than they can be read. The next cut asks again.
    pub(crate) fn sweep_must_wait(&self) -> bool {
        self.overloaded.load(Ordering::Relaxed) || self.held_bytes() > self.budget_bytes / 2
    }

    /// Regions that were changed behind an epoch become dirty; used when what was sealed behind it is given up.
    pub(crate) fn mark_changed_dirty(&self, behind: Epoch) {
        for volume in 0..self.volumes.len() {
            let mut state = self.lock(volume);
            for region in 0..state.changed_in.len() as u64 {
                if !state.changed_by(region, behind) {
                    let range = state.dirty.range_of(region);
                    state.mark_dirty(range);
                }
            }
        }
    }

    /// Everything that is marked becomes dirty; used when nobody knows what was captured.
    pub(crate) fn mark_marked_dirty(&self, volume: usize) {
        let mut state = self.lock(volume);
        let ranges: Vec<Range<u64>> =
            state.marked.iter_from(0).map(|region| state.marked.range_of(region)).collect();
        ranges.into_iter().for_each(|range| state.mark_dirty(range));
    }

    /// Takes in that a sealed segment, which waits in the journal, changed a range.
    pub(crate) fn note_sealed(&self, volume: usize, range: &Range<u64>, epoch: Epoch) {
        let mut state = self.lock(volume);
        let regions = regions_of(range);
        let epoch = u32::try_from(epoch.0).unwrap_or(u32::MAX);
        for known in &mut state.changed_in[regions.start as usize..regions.end as usize] {
            *known = epoch.max(*known);
        }
    }

    /// Marked regions that can be cleared when the leg is flushed: clean, not being written, and changed last in an epoch
    /// that receipts cover.
    pub(crate) fn clearable(&self, volume: usize, covered: Epoch) -> Vec<u64> {
        let state = self.lock(volume);
        state.marked.iter_from(0).filter(|&region| state.is_clearable(region, covered)).collect()
    }

    /// Clears those of `regions` that still can be; the leg was flushed since they were found. Returns how many.
    pub(crate) fn clear_marks(&self, volume: usize, regions: &[u64], covered: Epoch) -> usize {
        let mut state = self.lock(volume);
        let regions: Vec<u64> =
            regions.iter().copied().filter(|&region| state.is_clearable(region, covered)).collect();
        regions.iter().for_each(|&region| state.marked.remove(region));
        state.clears += 1;
        // Under the volume's lock, so that no write takes the marks for set while they are taken away.
        self.intents.clear(volume, &regions);
        regions.len()
    }
}

#[cfg(test)]
impl Capture {
    pub(crate) fn is_dirty(&self, volume: usize, region: u64) -> bool {
        self.lock(volume).dirty.contains(region)
    }
}

impl VolumeState {
    /// Whether an answer of the site as of `epoch` holds everything that was captured before something was lost: what was captured behind
    /// that is in the chain, and what was lost is on the leg.
    fn is_usable(&self, epoch: Epoch) -> bool {
        epoch >= self.lost_behind || faults::planted(Bug::TrustOldComparison)
    }

    /// Whether the newest change of a region is in an epoch up to `epoch`.
    fn changed_by(&self, region: u64, epoch: Epoch) -> bool {
        let newest = self.changed_in[region as usize];
        newest != u32::MAX && u64::from(newest) <= epoch.0
    }

    fn is_clearable(&self, region: u64, covered: Epoch) -> bool {
        let range = self.marked.range_of(region);
        let covered = self.changed_by(region, covered) || faults::planted(Bug::ClearWithoutReceipt);
        covered
            && !self.dirty.contains(region)
            && self.marked.contains(region)
            && !self.is_written(&range, |_| true)
    }

    /// Whether a write of this kind is in flight to a range.
    fn is_written(&self, range: &Range<u64>, kind: impl Fn(&InFlight) -> bool) -> bool {
        self.in_flight.iter().any(|write| overlap(&write.range, range) && kind(write))
    }
}

/// Adjoining pieces that have to be sent, from blocks that were read and the hashes of what the site has.
pub(crate) fn pieces(bytes: &[u8], differs: impl Fn(usize, &[u8]) -> bool) -> Vec<(u64, Option<Change>)> {
    let mut pieces: Vec<(u64, Option<Change>)> = Vec::new();
    let mut run: Vec<u8> = Vec::new();
    let block_bytes = journal_format::BLOCK_BYTES as usize;
    let flush = |run: &mut Vec<u8>, pieces: &mut Vec<(u64, Option<Change>)>| {
        if !run.is_empty() {
            let payload = Payload::from_vec(std::mem::take(run));
            pieces.push((payload.len() as u64, Some(Change::Data(payload))));
        }
    };
    for (number, block) in bytes.chunks(block_bytes).enumerate() {
        let length = block.len() as u64;
        if !differs(number, block) {
            flush(&mut run, &mut pieces);
            pieces.push((length, None));
        } else if journal_format::is_zero(block) {
            flush(&mut run, &mut pieces);
            pieces.push((length, Some(Change::Zero(length))));
        } else {
            run.extend_from_slice(block);
        }
    }
    flush(&mut run, &mut pieces);
    pieces
}
