//! Why a seed cannot be taken in.

use std::path::PathBuf;

use journal_format::{ErrorKind, FormatError, GroupName};
use thiserror::Error;
use transport::{Refusal, RefusalKind};

use crate::error::StoreError;

/// Errors of an import. What was taken in before stays.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The folder is no seed.
    #[error("'{path}' is no seed: it has no seed.json")]
    NoSeed {
        /// The folder.
        path: PathBuf,
    },
    /// What the folder says of itself cannot be read.
    #[error("'{path}' is no seed that can be read")]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// A segment between others is missing.
    #[error("'{path}' is missing, yet there are segments behind it")]
    Missing {
        /// The segment's file.
        path: PathBuf,
    },
    /// A segment is damaged.
    #[error("'{path}' is damaged")]
    Damaged {
        /// The segment's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// The folder continues something that the store does not have yet.
    #[error("'{path}' is segment {first} of the seed; the store has it up to segment {has}")]
    TooEarly {
        /// The first segment's file.
        path: PathBuf,
        /// Sequence of the store's newest segment, 0 if it has none.
        has: u64,
        /// Sequence of the folder's first.
        first: u64,
    },
    /// A segment is of another seed than those before it.
    #[error("'{path}' is of another seed than the segments before it")]
    OtherSeed {
        /// The segment's file.
        path: PathBuf,
    },
    /// The store's group with the name of the seed is something else.
    #[error("group '{group}' of the store is written by a source: it is no seed")]
    NotASeed {
        /// The group.
        group: GroupName,
    },
    /// The store does not take a segment.
    #[error("'{path}' is not taken: {}", .refusal.reason)]
    Refused {
        /// The segment's file, or the folder.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// The store or the folder cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImportError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ImportError::NoSeed { .. } | ImportError::TooEarly { .. } | ImportError::NotASeed { .. } => {
                ErrorKind::Invalid
            }
            ImportError::Unreadable { source, .. } | ImportError::Damaged { source, .. } => source.kind(),
            ImportError::Missing { .. } => ErrorKind::Corrupt,
            ImportError::OtherSeed { .. } => ErrorKind::Diverged,
            ImportError::Refused { refusal, .. } => refusal.kind(),
            ImportError::Store(error) => error.kind(),
        }
    }

    /// What an operator should do now.
    pub fn hint(&self) -> &'static str {
        match self {
            ImportError::NoSeed { .. } | ImportError::Unreadable { .. } => {
                "name the folder that 'thirdsite seed export' has written, with its seed.json"
            }
            ImportError::Missing { .. } | ImportError::Damaged { .. } => DAMAGED,
            ImportError::TooEarly { .. } => "import the earlier disk of this seed first",
            ImportError::OtherSeed { .. } => {
                "a group has one seed: go on with the folder that was imported first. What the store has stays as it is"
            }
            ImportError::NotASeed { .. } => {
                "groups that are seeded and groups that are sent must not meet in a name: rename the group at the protected site"
            }
            ImportError::Refused { refusal, .. } => match refusal.kind {
                RefusalKind::Corrupt | RefusalKind::Lacking => DAMAGED,
                RefusalKind::Full => {
                    "make room on the recovery site's file system and import again: it goes on where it was"
                }
                _ => {
                    "look at the log above and at the store's disk, then import again: it goes on where it was"
                }
            },
            ImportError::Store(error) => error.hint(),
        }
    }
}

const DAMAGED: &str = "copy this file once more from where it is whole and import again: it goes on here. Without it the first sync \
sends what is missing over the link";
