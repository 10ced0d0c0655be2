//! What an operator sees when something goes wrong, and the exit codes.

use std::fmt;

use journal_format::ErrorKind;
pub(crate) use journal_format::with_causes;

/// Exit codes, as the README's table states them.
pub(crate) mod exit {
    /// Anything that has no code of its own.
    pub(crate) const FAILED: u8 = 1;
    /// Arguments or settings are wrong.
    pub(crate) const INVALID: u8 = 2;
    /// Data is damaged.
    pub(crate) const CORRUPT: u8 = 3;
    /// A daemon, a site or a program that is needed cannot be reached.
    pub(crate) const UNREACHABLE: u8 = 4;
    /// A disk or a limit is full.
    pub(crate) const FULL: u8 = 5;
    /// Time ran out.
    pub(crate) const TIMEOUT: u8 = 6;
    /// Timelines diverged or a newer generation has taken over.
    pub(crate) const DIVERGED: u8 = 7;
}

/// An error with what to do about it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// What happened, where.
    pub(crate) message: String,
    /// What to do now.
    pub(crate) hint: Option<String>,
    /// Exit code.
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>, hint: &str) -> Failure {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        Failure { message: message.into(), hint, code }
    }

    pub(crate) fn invalid(message: impl Into<String>, hint: &str) -> Failure {
        Failure::new(exit::INVALID, message, hint)
    }

    pub(crate) fn unreachable(message: impl Into<String>, hint: &str) -> Failure {
        Failure::new(exit::UNREACHABLE, message, hint)
    }

    /// A failure from an error of one of the crates, with its causes.
    pub(crate) fn of(error: &dyn std::error::Error, kind: ErrorKind, hint: &str) -> Failure {
        Failure::new(code_of(kind), with_causes(error), hint)
    }
}

/// A failure from an error of the store.
pub(crate) fn store_failure(error: &restore::StoreError) -> Failure {
    Failure::of(error, error.kind(), error.hint())
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The exit code of a kind of error.
pub(crate) fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Retry => exit::FAILED,
        ErrorKind::Corrupt => exit::CORRUPT,
        ErrorKind::Diverged | ErrorKind::Fenced => exit::DIVERGED,
        ErrorKind::Invalid => exit::INVALID,
        ErrorKind::Full => exit::FULL,
    }
}
