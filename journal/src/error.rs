//! What can go wrong on the protected site.

use std::io;

use journal_format::{ErrorKind, GroupName, Position, VolumeName};
use thiserror::Error;

/// Errors of the journal and of the legs.
#[derive(Debug, Error)]
pub enum JournalError {
    /// A leg cannot be used.
    #[error("leg '{path}' of volume '{volume}' cannot be opened")]
    Leg {
        /// The volume.
        volume: VolumeName,
        /// The leg.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A leg has another size than the journal knows.
    #[error("the leg of volume '{volume}' has {actual} bytes; the journal knows it with {expected}")]
    LegSize {
        /// The volume.
        volume: VolumeName,
        /// Size in the journal in bytes.
        expected: u64,
        /// Size now in bytes.
        actual: u64,
    },
    /// The journal's files cannot be read or written.
    #[error("journal of group '{group}': {action} failed")]
    Storage {
        /// The group.
        group: GroupName,
        /// What was tried.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `journal.json` is not what it should be.
    #[error("journal of group '{group}': journal.json {reason}")]
    State {
        /// The group.
        group: GroupName,
        /// What is wrong with it.
        reason: String,
    },
    /// A segment of the journal is damaged.
    #[error("journal of group '{group}': a segment is damaged; it is kept as {name}")]
    Damaged {
        /// The group.
        group: GroupName,
        /// File name that it has now.
        name: String,
    },
    /// Sealed segments fill the journal.
    #[error("journal of group '{group}' holds {bytes} bytes; its limit is {limit}")]
    Limit {
        /// The group.
        group: GroupName,
        /// Bytes that it would hold.
        bytes: u64,
        /// Its limit.
        limit: u64,
    },
    /// The site's timeline does not continue ours.
    #[error("group '{group}': the recovery site is at {site}, which this journal has never sealed")]
    Diverged {
        /// The group.
        group: GroupName,
        /// The site's head.
        site: Position,
    },
    /// The site has a newer generation.
    #[error("group '{group}': generation {site} has taken over; this journal writes generation {own}")]
    Fenced {
        /// The group.
        group: GroupName,
        /// The site's generation.
        site: u64,
        /// Our generation.
        own: u64,
    },
    /// The cut could not be kept; its changes will be found by a resync.
    #[error("group '{group}': the cut was not kept: {reason}")]
    CutLost {
        /// The group.
        group: GroupName,
        /// Why.
        reason: String,
    },
}

impl JournalError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            JournalError::Leg { .. } | JournalError::LegSize { .. } | JournalError::State { .. } => {
                ErrorKind::Invalid
            }
            JournalError::Storage { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
                _ => ErrorKind::Retry,
            },
            JournalError::Damaged { .. } => ErrorKind::Corrupt,
            JournalError::Limit { .. } => ErrorKind::Full,
            JournalError::Diverged { .. } => ErrorKind::Diverged,
            JournalError::Fenced { .. } => ErrorKind::Fenced,
            JournalError::CutLost { .. } => ErrorKind::Retry,
        }
    }

    /// What an operator should do now.
    pub fn hint(&self) -> &'static str {
        match self {
            JournalError::Leg { .. } => {
                "check 'leg' in the settings and the file's permissions; the VM's disk is served only from a leg that opens"
            }
            JournalError::LegSize { .. } => {
                "if the volume was resized on purpose, start once with --accept-resize; otherwise the settings name the wrong file"
            }
            JournalError::Storage { .. } => {
                "check space and permissions of the journal's folder; writes of the VM go on, a resync follows"
            }
            JournalError::State { .. } => {
                "give the group a journal folder of its own, or move this one away: a new journal begins with a full resync"
            }
            JournalError::Damaged { .. } => {
                "nothing to do: the segment is set aside and a resync replaces it; check the disk under the journal"
            }
            JournalError::Limit { .. } => {
                "the recovery site has not confirmed for too long: check the link, or raise 'journal_limit'"
            }
            JournalError::Diverged { .. } => "a resync makes both sites equal again; nothing has to be done",
            JournalError::Fenced { .. } => {
                "another host writes this group now; stop this agent, or make it the standby"
            }
            JournalError::CutLost { .. } => "the changes are tracked and follow in a resync; cut again later",
        }
    }
}
