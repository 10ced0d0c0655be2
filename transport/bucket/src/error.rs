//! What can go wrong between a group and its bucket.

use journal_format::{ErrorKind, FormatError, GroupName};
use object_store::path::Path;
use thiserror::Error;

use crate::documents::Claim;
use crate::keys::ClaimNumber;
use crate::store_error::BucketError;

/// Why something in a bucket cannot be read, put or used.
#[derive(Debug, Error)]
pub enum RoadError {
    /// The prefix is not one.
    #[error("'{prefix}' cannot be the prefix of a bucket's objects")]
    Prefix {
        /// The text.
        prefix: String,
        /// What is wrong with it.
        source: object_store::path::Error,
    },
    /// The server, or the way to it, failed.
    #[error("cannot {action} '{key}' in the bucket")]
    Store {
        /// What was tried.
        action: &'static str,
        /// The object.
        key: Path,
        /// Why not.
        source: object_store::Error,
    },
    /// A document is larger than any that is written.
    #[error("'{key}' in the bucket has {actual} bytes; the limit is {limit}")]
    TooLarge {
        /// The object.
        key: Path,
        /// Its size in bytes.
        actual: u64,
        /// Largest size in bytes.
        limit: u64,
    },
    /// A document is not what its name says.
    #[error("'{key}' in the bucket is not a {what}: {reason}")]
    Document {
        /// The object.
        key: Path,
        /// Which document it should be.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A document is of a version that this build does not read.
    #[error("'{key}' in the bucket is of version {found}; this build reads version {supported}")]
    Version {
        /// The object.
        key: Path,
        /// Version in the document.
        found: u64,
        /// Version that this build reads.
        supported: u32,
    },
    /// The claims of a group do not follow one another.
    #[error("claim {number} of group '{group}' cannot follow the one before it: {rule}")]
    Claims {
        /// The group.
        group: GroupName,
        /// The claim that does not fit.
        number: ClaimNumber,
        /// The rule that is broken.
        rule: &'static str,
    },
    /// An object is not a segment.
    #[error("'{key}' in the bucket is not a segment")]
    Segment {
        /// The object.
        key: Path,
        /// What is wrong with it.
        source: FormatError,
    },
    /// An object whose name is ours alone has other bytes.
    #[error("'{key}' exists in the bucket with other bytes than those that were put")]
    OtherBytes {
        /// The object.
        key: Path,
    },
    /// Another writer has taken over.
    #[error(
        "source '{}' took over group '{}' with generation {} (claim {})",
        .by.source.name, .by.group, .by.generation, .by.number
    )]
    Fenced {
        /// The newest claim.
        by: Box<Claim>,
    },
    /// Two outboxes are for one group, or there is none.
    #[error("a bucket link needs at least one group, each once; '{group}' is too much")]
    Groups {
        /// The group that does not fit.
        group: String,
    },
    /// `checked.json` is not signed by the pinned identity.
    #[error("'{key}' in the bucket is not signed by the recovery site's identity: {reason}")]
    Forged {
        /// The object.
        key: Path,
        /// What does not match.
        reason: &'static str,
    },
    /// A segment cannot be read from the journal.
    #[error("segment {sequence} of group '{group}' cannot be read from the journal")]
    Journal {
        /// The group.
        group: GroupName,
        /// The segment.
        sequence: journal_format::Sequence,
        /// Why not.
        source: std::io::Error,
    },
    /// The journal's side failed while it was asked.
    #[error("shipping group '{group}' failed inside this process; it is tried again")]
    Failed {
        /// The group.
        group: GroupName,
    },
}

impl RoadError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RoadError::Store { source, .. } => store_kind(source),
            RoadError::Fenced { .. } => ErrorKind::Fenced,
            RoadError::Prefix { .. } | RoadError::Version { .. } | RoadError::Groups { .. } => {
                ErrorKind::Invalid
            }
            RoadError::TooLarge { .. }
            | RoadError::Document { .. }
            | RoadError::Claims { .. }
            | RoadError::OtherBytes { .. }
            | RoadError::Forged { .. }
            | RoadError::Segment { .. } => ErrorKind::Corrupt,
            RoadError::Journal { .. } | RoadError::Failed { .. } => ErrorKind::Retry,
        }
    }

    /// What to do now; may be empty.
    pub fn hint(&self) -> String {
        let hint = match self {
            RoadError::Prefix { .. } => {
                "use parts of letters, digits, '-', '_' and '.', separated by single '/'"
            }
            RoadError::Store { source, .. } => return store_hint(source),
            RoadError::Version { .. } => "install the same release of thirdsite wherever the bucket is used",
            RoadError::TooLarge { .. } | RoadError::Document { .. } | RoadError::Claims { .. } => {
                "something else writes below the bucket's prefix, or an object was changed; nothing is sent until it is as it was"
            }
            RoadError::Segment { .. } => "restore this version of the object if the bucket keeps versions",
            RoadError::OtherBytes { .. } => "something else writes below the bucket's prefix; look for it",
            RoadError::Fenced { .. } => {
                "this source sends nothing more; if the other one should not write, stop it and start this one again"
            }
            RoadError::Groups { .. } => "name each group once in the source's settings",
            RoadError::Forged { .. } => {
                "the journal keeps everything; check the recovery site's fingerprint in the source's settings, and who can write to the bucket"
            }
            RoadError::Journal { .. } | RoadError::Failed { .. } => "",
        };
        hint.to_owned()
    }
}

fn store_kind(error: &object_store::Error) -> ErrorKind {
    use object_store::Error;
    if let Some(own) = BucketError::within(error) {
        return own.kind();
    }
    match error {
        Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::UnknownConfigurationKey { .. }
        | Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::InvalidPath { .. } => ErrorKind::Invalid,
        _ => ErrorKind::Retry,
    }
}

fn store_hint(error: &object_store::Error) -> String {
    use object_store::Error;
    if let Some(own) = BucketError::within(error) {
        return own.hint().unwrap_or_default();
    }
    let hint = match error {
        Error::PermissionDenied { .. } => {
            "allow this key to list, read and put objects below the bucket's prefix"
        }
        Error::Unauthenticated { .. } => "check the access key and the secret, and the clock of this host",
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            "the server lacks what BUCKET.md says it must do; use another one"
        }
        _ => "",
    };
    hint.to_owned()
}
