//! Ships sealed segments from a protected site to a recovery site over QUIC, and brings signed receipts back.
//!
//! `PROTOCOL.md` is the definition; begin there. [`Outbox`] and [`Inbox`] are what the two sides implement, [`SourceLink`]
//! and [`SiteServer`] are what they start. Who may speak to whom is decided by [`identity`] and [`enrolment`].
//!
//! This crate does not know what a segment is: it moves opaque bytes with a [`SegmentDescriptor`]. It does not know the
//! journal, the store or the catalog either. State changes are made by two machines without I/O (`session`); what is
//! around them only fetches events and performs actions.

pub mod asking;
mod causes;
pub mod clock;
mod congestion;
pub mod enrolment;

mod frames;
pub mod identity;
mod link;
mod measure;
mod meter;
pub mod names;
pub mod network;
mod quic;
mod ranges;
mod schedule;
mod session;
mod site;
mod tls;
mod traits;
pub mod wire;

pub use enrolment::{EnrolledPeer, Enrolment, EnrolmentError};
pub use identity::{Fingerprint, Identity, IdentityError, PublicKey, Signature};
pub use link::{
    CallError, Caller, LinkError, LinkHandle, LinkLimits, LinkOptions, LinkStats, PendingCall, SourceLink,
};
pub use measure::{LinkMeasurement, MEASURE_BYTES_MAX, MeasureOptions, measure_link};
pub use names::PeerName;
pub use network::{Network, SystemNetwork};
pub use session::Backoff;
pub use site::{PartialLimits, PeerStatus, RefusedIdentity, SiteError, SiteOptions, SiteServer, SiteStatus};
pub use traits::{Begin, Inbox, LinkState, Outbox, SegmentSink};
pub use wire::{
    AttachedSegment, COMPARED_REGIONS_MAX, CallAnswer, CallRequest, Heartbeat, LISTED_BLOCKS_MAX,
    LISTED_SEGMENTS_MAX, ListedBlock, NewestCut, PROTOCOL_VERSION, Receipt, Refusal, RefusalKind,
    RegionAnswer, SEGMENT_BYTES_MAX, SegmentDescriptor,
};

#[cfg(test)]
mod testing;

#[cfg(test)]
mod wan;
