//! What can be wrong with bytes, and what a caller may do about an error.

use thiserror::Error;

/// What a caller can do about an error. Every error of the workspace answers one of these from its `kind()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Passing: the same call may succeed later.
    Retry,
    /// Bytes are not what their hash or format says.
    Corrupt,
    /// Two timelines of one group do not continue each other; answered by a resync.
    Diverged,
    /// A newer generation has taken over.
    Fenced,
    /// The request, the settings or the arguments are wrong; repeating does not help.
    Invalid,
    /// A limit or the medium is exhausted.
    Full,
}

/// Why bytes are not a segment, or a text is not an id.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    /// The bytes end before the part that should be there.
    #[error("{part} is truncated: {expected} bytes expected, {actual} found")]
    Truncated {
        /// Which part of the segment.
        part: &'static str,
        /// Bytes that should be there.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// The first bytes are not those of this format.
    #[error("{part} does not begin with its magic number: this is not a segment of thirdsite")]
    Magic {
        /// Which part of the segment.
        part: &'static str,
    },
    /// The format is of a version that this build does not read.
    #[error("segment format version {found} is not supported; this build reads version {supported}")]
    Version {
        /// Version in the bytes.
        found: u32,
        /// Version that this build reads.
        supported: u32,
    },
    /// A hash does not match its bytes.
    #[error("{part} is damaged: its hash does not match its bytes")]
    Hash {
        /// Which part of the segment.
        part: &'static str,
    },
    /// A length or count is larger than the format allows.
    #[error("{part} is too large: {actual}, the limit is {limit}")]
    TooLarge {
        /// Which part of the segment.
        part: &'static str,
        /// Value found.
        actual: u64,
        /// Largest value allowed.
        limit: u64,
    },
    /// Hashes match, yet the content breaks a rule of the format.
    #[error("{part} breaks the format: {rule}")]
    Rule {
        /// Which part of the segment.
        part: &'static str,
        /// The rule that is broken.
        rule: &'static str,
    },
    /// A frame cannot be decompressed to its stated size.
    #[error("a frame cannot be decompressed to its stated {raw_bytes} bytes")]
    Decompress {
        /// Size that the frame table states.
        raw_bytes: u64,
    },
    /// A text is not a valid id.
    #[error("'{text}' is not a valid {what}: {rule}")]
    Id {
        /// Which kind of id.
        what: &'static str,
        /// The text.
        text: String,
        /// What a valid one looks like.
        rule: &'static str,
    },
    /// A VM definition cannot be read.
    #[error("the VM definition is not valid: {reason}")]
    Definition {
        /// What the parser says.
        reason: String,
    },
    /// What describes the folder of a seed cannot be read.
    #[error("seed.json is not valid: {reason}")]
    Seed {
        /// What is wrong with it.
        reason: String,
    },
}

impl FormatError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            FormatError::Id { .. }
            | FormatError::Version { .. }
            | FormatError::Definition { .. }
            | FormatError::Seed { .. } => ErrorKind::Invalid,
            _ => ErrorKind::Corrupt,
        }
    }
}

/// An error's text, followed by those of its causes.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
