//! resync(D): makes the recovery site equal to the legs for the dirty regions, while the VM goes on writing.

use std::sync::atomic::Ordering;

use journal_format::is_zero;
use journal_nbd::Payload;
use tracing::{info, warn};

use super::Group;
use crate::capture::{Change, SweepTicket};
use crate::leg::Leg;

/// Bytes read at once. Writes that overlap them wait for so long.
const SWEEP_BYTES: u64 = 1 << 20;
/// Unit in which a sweep tells zeroes from data, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Where the sweep goes on.
#[derive(Default)]
pub(super) struct Cursor {
    volume: usize,
    offset: u64,
}

/// What a step of the resync did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepStep {
    /// A range was read.
    Progress,
    /// There is something to read, but no room for it now.
    Wait,
    /// Nothing is dirty.
    Idle,
}

impl Group {
    /// Reads the next dirty range into the open epoch.
    pub fn sweep_step(&self) -> SweepStep {
        if self.capture.dirty_bytes() == 0 {
            return SweepStep::Idle;
        }
        if self.capture.sweep_must_wait() || self.journal_is_filling() {
            return SweepStep::Wait;
        }
        let Some(ticket) = self.next_sweep() else { return SweepStep::Idle };
        let read = read_range(&*self.legs[ticket.volume], &ticket);
        let failed = read.is_none();
        if failed {
            let volume = self.volume_name(ticket.volume);
            warn!(group = %self.name, %volume, offset = ticket.range.start, "the resync cannot read the leg");
        }
        let swept = self.capture.end_sweep(ticket, read);
        if swept && self.capture.dirty_bytes() == 0 {
            self.resync_total_bytes.store(0, Ordering::Relaxed);
            info!(group = %self.name, "resync has read everything; the next cut is a point");
        }
        if failed { SweepStep::Wait } else { SweepStep::Progress }
    }

    /// The first dirty range behind the cursor, round and round over all volumes.
    fn next_sweep(&self) -> Option<SweepTicket> {
        let mut cursor = self.lock(&self.sweep_cursor);
        for _ in 0..=self.volumes.len() {
            if let Some(ticket) = self.capture.begin_sweep(cursor.volume, cursor.offset, SWEEP_BYTES) {
                cursor.offset = ticket.range.end;
                return Some(ticket);
            }
            *cursor = Cursor { volume: (cursor.volume + 1) % self.volumes.len(), offset: 0 };
        }
        None
    }

    /// A resync leaves half of the journal to the guest's own writes.
    fn journal_is_filling(&self) -> bool {
        let chain = self.lock(&self.chain);
        chain.backlog().1 > chain.limit_bytes() / 2
    }
}

fn read_range(leg: &dyn Leg, ticket: &SweepTicket) -> Option<Vec<Change>> {
    let (start, length) = (ticket.range.start, ticket.range.end - ticket.range.start);
    if leg.reads_as_zero(start, length) {
        return Some(vec![Change::Zero(length)]);
    }
    let mut bytes = vec![0; length as usize];
    leg.read(start, &mut bytes).ok()?;
    let mut pieces: Vec<Change> = Vec::new();
    for piece in bytes.chunks(PIECE_BYTES) {
        match pieces.last_mut() {
            _ if !is_zero(piece) => {
                pieces.push(Change::Data(Payload::from_vec(piece.to_vec())));
            }
            Some(Change::Zero(length)) => *length += piece.len() as u64,
            _ => pieces.push(Change::Zero(piece.len() as u64)),
        }
    }
    Some(pieces)
}
