//! Why a seed cannot be exported.

use std::io;
use std::path::PathBuf;

use journal_format::{ErrorKind, FormatError, GroupName, VolumeName};
use journal_index::IndexError;
use journal_nbd::Errno;
use thiserror::Error;

use crate::error::JournalError;

/// Errors of an export. What was written before stays whole.
#[derive(Debug, Error)]
pub enum SeedError {
    /// The group's name leaves no room for that of its seed.
    #[error("group '{group}' has too long a name to have a seed")]
    NoName {
        /// The group.
        group: GroupName,
    },
    /// The folder holds other things.
    #[error("'{path}' is not empty and no seed")]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is the seed of another group.
    #[error("'{path}' is the seed of group '{found}', not of '{wanted}'")]
    OtherGroup {
        /// The folder.
        path: PathBuf,
        /// The group that it is of.
        found: GroupName,
        /// The group that was asked for.
        wanted: GroupName,
    },
    /// A segment in the folder does not belong to its chain.
    #[error("'{path}' does not continue the segment before it: it is of another seed")]
    OtherSegment {
        /// The segment's file.
        path: PathBuf,
    },
    /// A segment between others is missing.
    #[error("'{path}' is missing, yet there are segments behind it")]
    Missing {
        /// The segment's file.
        path: PathBuf,
    },
    /// A file in the folder is not what was written.
    #[error("'{path}' is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// The index of the folder's blocks cannot be used.
    #[error("the index of the seed's blocks cannot be used")]
    Index(#[from] IndexError),
    /// The system refuses.
    #[error("cannot {action} '{path}'")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A leg cannot be read.
    #[error("volume '{volume}' cannot be read at byte {offset}")]
    Read {
        /// The volume.
        volume: VolumeName,
        /// Where, in bytes.
        offset: u64,
        /// What the medium said.
        #[source]
        source: Errno,
    },
    /// A segment cannot be made.
    #[error("a segment of the seed cannot be made")]
    Seal(#[source] JournalError),
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl SeedError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SeedError::NoName { .. } | SeedError::NotEmpty { .. } | SeedError::OtherGroup { .. } => {
                ErrorKind::Invalid
            }
            SeedError::OtherSegment { .. } | SeedError::Missing { .. } => ErrorKind::Corrupt,
            SeedError::Damaged { source, .. } => source.kind(),
            SeedError::Index(error) => error.kind(),
            SeedError::Io { source, .. } if is_full(source) => ErrorKind::Full,
            SeedError::Io { .. } | SeedError::Read { .. } => ErrorKind::Retry,
            SeedError::Seal(error) => error.kind(),
        }
    }

    /// What an operator should do now.
    pub fn hint(&self) -> &'static str {
        match self {
            SeedError::NoName { .. } => "a group that is seeded has a name of at most 58 characters",
            SeedError::NotEmpty { .. } => {
                "name an empty folder, or one that does not exist, to begin a seed; or that of an earlier export to go on with it"
            }
            SeedError::OtherGroup { .. } => "each group has a seed of its own: name another folder",
            SeedError::OtherSegment { .. } | SeedError::Missing { .. } | SeedError::Damaged { .. } => {
                "what has not travelled yet can be made again: remove this file and all segments behind it, and export again; or begin a seed in an empty folder"
            }
            SeedError::Index(IndexError::Locked { .. }) => {
                "another export writes to this folder: wait for it, or end it"
            }
            SeedError::Index(_) => {
                "remove 'known.blocks' in the seed's folder: it is made again from the segments"
            }
            SeedError::Io { source, .. } if is_full(source) => {
                "make room and export again: it goes on behind the last whole segment. Or import what is here, and carry the rest later"
            }
            SeedError::Io { .. } => "look at the path, its owner and the system's log, then export again",
            SeedError::Read { .. } => "look at the disk under the leg; the VM is not touched by an export",
            SeedError::Seal(error) => error.hint(),
        }
    }
}
