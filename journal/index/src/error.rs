use std::io;
use std::path::{Path, PathBuf};

use journal_format::ErrorKind;
use thiserror::Error;

/// Why an index cannot be opened or written. Look-ups have no errors: what cannot be read is a miss.
#[derive(Debug, Error)]
pub enum IndexError {
    /// The system refused a call.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process, or another part of this one, has the index open.
    #[error("the index in {folder} is open already")]
    Locked {
        /// Folder of the index.
        folder: PathBuf,
    },
    /// An option or a record breaks a rule.
    #[error("{what} is not valid: {rule}")]
    Invalid {
        /// Which value.
        what: &'static str,
        /// The rule that is broken.
        rule: &'static str,
    },
    /// All 2^32 numbers of segments were given out.
    #[error(
        "the index has no number left for a further segment; clearing it does not help, removing its folder does"
    )]
    NumbersExhausted,
}

impl IndexError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            IndexError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::Full,
            IndexError::Io { .. } | IndexError::Locked { .. } => ErrorKind::Retry,
            IndexError::Invalid { .. } => ErrorKind::Invalid,
            IndexError::NumbersExhausted => ErrorKind::Full,
        }
    }

    /// For `map_err`: names the call that failed.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IndexError {
        move |source| IndexError::Io { action, path: path.to_owned(), source }
    }
}
