//! The protected site: sees every write of a group's volumes, cuts them into epochs and seals these into segments.
//!
//! The crate does not know the network, nor who receives the segments: it offers what is sealed ([`Group::pending`]) and
//! takes receipts ([`Group::receipt`]). It reads no settings and decides no schedule. Disk, clock and sealing are passed
//! in or driven from outside ([`Group::seal_next`], [`Group::sweep_step`]), so that the same code runs on real parts and
//! in a seeded simulation.
//!
//! Begin reading with [`capture`], which holds the rule that everything rests on; then [`group`].

pub mod capture;
mod chain;
mod clock;
mod compare;
mod error;
mod extent_map;
pub mod faults;
pub mod group;
mod intent;
mod known;
mod leg;
mod previous;
mod regions;
mod seal;
pub mod seed;
#[cfg(test)]
mod simulated;
pub mod standby;
mod storage;
mod tap;
mod workers;

pub use clock::{Clock, ManualClock, SystemClock};
pub use compare::{Compared, Comparer, RegionState};
pub use error::JournalError;
pub use group::{
    CutRequest, CutTicket, Group, GroupSettings, GroupStatus, PINNED_SLACK_BYTES, ResyncStatus, SealedCut,
    SiteHead, StoredSegment, SweepStep, VolumeSettings,
};
pub use intent::{MARK_PATIENCE, MarkCounters, MarkReplica, MarkedPage, Tracking};
pub use known::{KnownBlocks, LearntBlock};
pub use leg::{FileLeg, Leg, LegStamp};
pub use regions::REGION_BYTES;
pub use seal::SealCounters;
pub use seed::{ExportedSeed, SeedError, SeedLeg, SeedSettings, export_seed};
pub use standby::{Standby, StandbySegment, StandbySettings};
pub use storage::{DirStorage, NewFile, Storage, UpdateFile};
pub use tap::{TapVolume, leg_in_description};
pub use workers::Workers;
