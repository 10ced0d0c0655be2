//! Why a link cannot be started, or is down.

use std::io;
use std::net::SocketAddr;

use journal_format::{ErrorKind, GroupName};
use quinn::{ConnectError, ConnectionError};
use thiserror::Error;

use crate::identity::Fingerprint;

/// Why a link cannot be started, or is down.
#[derive(Debug, Error)]
pub enum LinkError {
    /// Two outboxes are for one group, or there are none or too many.
    #[error("a link needs 1 to {limit} groups, each once; '{group}' is too much")]
    Groups {
        /// The group that does not fit.
        group: String,
        /// Most groups of a link.
        limit: usize,
    },
    /// The site is pinned by no fingerprint, or by too many.
    #[error(
        "a link needs the fingerprint of its site, or two while the site changes its key; it has {actual}"
    )]
    Sites {
        /// Number of fingerprints.
        actual: usize,
    },
    /// The local UDP socket cannot be opened.
    #[error("cannot open a UDP socket on {address}; check the 'bind' address in the source's settings")]
    Bind {
        /// Local address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The site's address cannot be found.
    #[error(
        "cannot find the site's address '{address}'; check the name and the port in the source's settings"
    )]
    Resolve {
        /// Address as in the settings.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// Nobody answers at the site's address.
    #[error("no answer from the site at {address}; check that 'thirdsite site run' runs there and that UDP port {} is open on the way", .address.port())]
    Unreachable {
        /// The site's address.
        address: SocketAddr,
    },
    /// Another identity answered than the pinned one.
    #[error(
        "the site at {address} has fingerprint {actual}, expected {expected}; if the site's identity was made anew, put the new fingerprint into the source's settings after checking it there with 'thirdsite identity show', otherwise somebody else answers at this address"
    )]
    WrongSite {
        /// The site's address.
        address: SocketAddr,
        /// Fingerprint in the settings.
        expected: Fingerprint,
        /// Fingerprint of whoever answered.
        actual: Fingerprint,
    },
    /// Whoever answered has no identity of this product.
    #[error(
        "what answers at {address} shows no identity of thirdsite, expected fingerprint {expected}; check the address"
    )]
    NoIdentity {
        /// The site's address.
        address: SocketAddr,
        /// Fingerprint in the settings.
        expected: Fingerprint,
    },
    /// The site does not know this source.
    #[error(
        "the site at {address} does not know this source, fingerprint {own}; enrol it there with 'thirdsite site enroll --name NAME --group GROUP --fingerprint {own}'"
    )]
    NotEnrolled {
        /// The site's address.
        address: SocketAddr,
        /// Fingerprint of this source's identity.
        own: Fingerprint,
    },
    /// The site speaks another protocol.
    #[error(
        "the site at {address} does not speak version 1 of the protocol; install the same release of thirdsite at both sites"
    )]
    OtherProtocol {
        /// The site's address.
        address: SocketAddr,
    },
    /// A newer connection of the same identity took over.
    #[error(
        "another source with this identity connected to the site; make sure that only one daemon uses it"
    )]
    Replaced,
    /// This source's entry in the site's list was removed or changed.
    #[error(
        "the site removed or changed the enrolment of this source; nothing is sent until it is enrolled again"
    )]
    EnrolmentRemoved,
    /// The site is shutting down.
    #[error("the site is shutting down")]
    SiteStopped,
    /// The site has no room for another connection.
    #[error("the site at {address} refuses connections because of a limit; see its log")]
    Limit {
        /// The site's address.
        address: SocketAddr,
    },
    /// The site says that this side broke the protocol.
    #[error(
        "the site closed the connection: {reason:?}; install the same release of thirdsite at both sites"
    )]
    Protocol {
        /// What the site says.
        reason: String,
    },
    /// The connection was lost.
    #[error("the connection to the site at {address} was lost")]
    Lost {
        /// The site's address.
        address: SocketAddr,
        /// How.
        source: ConnectionError,
    },
    /// QUIC does not take the settings.
    #[error("a connection to {address} cannot be begun")]
    Connect {
        /// The site's address.
        address: SocketAddr,
        /// Why not.
        source: ConnectError,
    },
    /// TLS does not take this source's identity.
    #[error(
        "TLS cannot be set up with this source's identity; restore its folder from a backup or make it anew"
    )]
    Tls(#[from] rustls::Error),
    /// The bucket that the groups are kept in cannot be used.
    #[error("the bucket cannot be used{}{hint}", if hint.is_empty() { "" } else { "; " })]
    Bucket {
        /// What to do now; may be empty.
        hint: String,
        /// What the caller can do about it.
        kind: ErrorKind,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The journal's side failed while it was asked.
    #[error("shipping group '{group}' failed inside this process; it is tried again")]
    Failed {
        /// The group.
        group: GroupName,
    },
}

impl LinkError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            LinkError::Groups { .. }
            | LinkError::Sites { .. }
            | LinkError::WrongSite { .. }
            | LinkError::NoIdentity { .. }
            | LinkError::NotEnrolled { .. }
            | LinkError::OtherProtocol { .. }
            | LinkError::EnrolmentRemoved
            | LinkError::Protocol { .. }
            | LinkError::Connect { .. }
            | LinkError::Tls(_) => ErrorKind::Invalid,
            LinkError::Limit { .. } => ErrorKind::Full,
            LinkError::Bucket { kind, .. } => *kind,
            _ => ErrorKind::Retry,
        }
    }

    /// Whether trying again at once is of no use.
    pub(super) fn wants_long_pause(&self) -> bool {
        matches!(self, LinkError::Replaced) || self.kind() != ErrorKind::Retry
    }
}
