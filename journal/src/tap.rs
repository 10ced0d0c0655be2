//! The tap: the NBD export in front of a leg.

use std::path::Path;
use std::sync::Arc;

use journal_nbd::{Errno, Export, Payload, StatusExtent, ZeroMode};

use crate::capture::Change;
use crate::faults::{self, Bug};
use crate::group::Group;
use crate::leg::Leg;

/// Between the words of a tap's description and the path of its leg.
const ON_LEG: &str = ", leg ";

/// The leg behind a tap, by the description that its export has; `None` if it is not a tap's.
pub fn leg_in_description(description: &str) -> Option<&Path> {
    description.strip_prefix("tap of volume ")?.split_once(ON_LEG).map(|(_, path)| Path::new(path))
}

/// One volume of a group, as the VM opens it.
pub struct TapVolume {
    group: Arc<Group>,
    volume: usize,
    leg: Arc<dyn Leg>,
}

impl TapVolume {
    /// The tap of the group's volume number `volume`.
    pub fn new(group: Arc<Group>, volume: usize) -> Self {
        let leg = group.leg(volume);
        TapVolume { group, volume, leg }
    }

    fn apply(
        &self,
        offset: u64,
        change: Change,
        action: impl FnOnce(&dyn Leg) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if !faults::planted(Bug::TrustTheLeg) {
            self.group.guard(self.volume).check(&*self.leg, || self.group.leg_changed(self.volume));
        }
        let dear = self.group.payload_is_dear(&change);
        let ticket = self.group.capture().begin(self.volume, offset, change, dear);
        let result = action(&*self.leg);
        faults::step("tap.leg-written");
        self.group.capture().end(ticket, result.is_ok());
        result
    }
}

impl Export for TapVolume {
    fn opened(&self) {
        self.group.guard(self.volume).opened();
    }

    fn closed(&self) {
        self.group.guard(self.volume).closed(&*self.leg);
    }

    fn size_bytes(&self) -> u64 {
        self.leg.size_bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn description(&self) -> String {
        let tap =
            format!("tap of volume {} of group {}", self.group.volume_name(self.volume), self.group.name());
        match self.leg.path() {
            Some(path) => format!("{tap}{ON_LEG}{}", path.display()),
            None => tap,
        }
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
        self.leg.try_read(offset, buffer)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.leg.read(offset, buffer)
    }

    fn write(&self, offset: u64, payload: Payload) -> Result<(), Errno> {
        // Without an index nothing is known that a difference could be taken from.
        if self.group.knows_blocks() {
            let at_hand = |offset, buffer: &mut [u8]| self.leg.try_read(offset, buffer) == Ok(true);
            self.group.capture().look_before(self.volume, offset, &payload, at_hand);
        }
        self.apply(offset, Change::Data(payload.clone()), |leg| leg.write(offset, &payload))
    }

    fn flush(&self) -> Result<(), Errno> {
        if faults::planted(Bug::AcknowledgeFlushEarly) {
            return Ok(());
        }
        self.leg.flush()
    }

    /// The protocol leaves open what a trimmed range reads as; here it is zero, so that both sites hold the same.
    fn trim(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.write_zeroes(offset, length, ZeroMode::MayPunch)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), Errno> {
        self.apply(offset, Change::Zero(length), |leg| leg.write_zeroes(offset, length, mode))
    }

    fn block_status(&self, offset: u64, length: u64, extents: &mut Vec<StatusExtent>) -> Result<(), Errno> {
        self.leg.block_status(offset, length, extents)
    }
    fn zeroes_fast(&self, mode: ZeroMode) -> bool {
        self.leg.zeroes_fast(mode)
    }

    fn reads_as_zero(&self, offset: u64, length: u64) -> bool {
        self.leg.reads_as_zero(offset, length)
    }
}
