//! What can go wrong with a copy, and what to do about it.

use journal_format::{ErrorKind, GroupName, Position};
use thiserror::Error;
use transport::Refusal;

use crate::error::StoreError;

/// Why a group was not copied, or not all of it.
#[derive(Debug, Error)]
pub enum CopyError {
    /// One of the stores.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The target took a segment not in.
    #[error("the target refuses group '{group}': {refusal}")]
    Refused {
        /// The group.
        group: GroupName,
        /// Why.
        refusal: Refusal,
    },
    /// The target has another chain.
    #[error("the target has {head} of group '{group}', which is not in the chain that is to be copied")]
    Diverged {
        /// The group.
        group: GroupName,
        /// What the target has.
        head: Position,
    },
    /// Another writer has the group in the bucket.
    #[error("'{by}' has claimed group '{group}' in the bucket (claim {claim})")]
    Fenced {
        /// The group.
        group: GroupName,
        /// The number of its claim.
        claim: u64,
        /// The other writer.
        by: String,
    },
    /// It is not known whose group it is.
    #[error("the store does not say who writes group '{group}'")]
    NoWriter {
        /// The group.
        group: GroupName,
    },
    /// A claim needs a fingerprint.
    #[error(
        "the store does not say the fingerprint of source '{source_name}', which a claim in a bucket bears"
    )]
    NoFingerprint {
        /// Name of the source.
        source_name: String,
    },
    /// The program ends.
    #[error("the program ends")]
    Ended,
}

impl CopyError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CopyError::Store(error) => error.kind(),
            CopyError::Refused { refusal, .. } => refusal.kind(),
            CopyError::Diverged { .. } => ErrorKind::Diverged,
            CopyError::Fenced { .. } => ErrorKind::Fenced,
            CopyError::NoWriter { .. } | CopyError::NoFingerprint { .. } => ErrorKind::Invalid,
            CopyError::Ended => ErrorKind::Retry,
        }
    }

    /// What an operator should do now.
    pub fn hint(&self) -> &'static str {
        match self {
            CopyError::Store(error) => error.hint(),
            CopyError::Refused { .. } if self.lacks_another_group() => {
                "copy the groups that it refers to first: its seed, and groups that the same source writes"
            }
            CopyError::Refused { .. } => "see the reason; what was copied stays",
            CopyError::Diverged { .. } => "copy to another store: nothing that a store has is replaced",
            CopyError::Fenced { .. } => {
                "while a source writes to the bucket nothing has to be copied there; if it should not write, stop it first"
            }
            CopyError::NoWriter { .. } => {
                "the store lacks the record of the group's writer; copy from another one"
            }
            CopyError::NoFingerprint { .. } => {
                "give it with --fingerprint: 'thirdsite identity show' prints it at the protected site"
            }
            CopyError::Ended => "run it again: it goes on where it was",
        }
    }
}
