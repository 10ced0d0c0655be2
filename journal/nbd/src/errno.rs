//! The errors that the protocol can carry.

use std::io;

use thiserror::Error;

/// An error of a request, as the protocol knows them.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
pub enum Errno {
    /// The export is read-only.
    #[error("operation not permitted")]
    Perm,
    /// The medium failed.
    #[error("input/output error")]
    Io,
    /// Memory is exhausted.
    #[error("cannot allocate memory")]
    NoMem,
    /// The request is wrong.
    #[error("invalid argument")]
    Inval,
    /// The medium is full, or a write is beyond its end.
    #[error("no space left on device")]
    NoSpc,
    /// The request is too large.
    #[error("value too large")]
    Overflow,
    /// The request is not supported in this form.
    #[error("operation not supported")]
    NotSup,
    /// The server is shutting down.
    #[error("server is shutting down")]
    Shutdown,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        match self {
            Errno::Perm => 1,
            Errno::Io => 5,
            Errno::NoMem => 12,
            Errno::Inval => 22,
            Errno::NoSpc => 28,
            Errno::Overflow => 75,
            Errno::NotSup => 95,
            Errno::Shutdown => 108,
        }
    }

    /// The error of a number on the wire; the specification has unknown ones taken as `EINVAL`.
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Errno::Perm,
            5 => Errno::Io,
            12 => Errno::NoMem,
            28 => Errno::NoSpc,
            75 => Errno::Overflow,
            95 => Errno::NotSup,
            108 => Errno::Shutdown,
            _ => Errno::Inval,
        }
    }
}

impl From<rustix::io::Errno> for Errno {
    /// What the medium answered; anything without a counterpart in the protocol is an I/O error.
    fn from(error: rustix::io::Errno) -> Self {
        use rustix::io::Errno as Os;
        match error {
            Os::PERM | Os::ACCESS | Os::ROFS => Errno::Perm,
            Os::NOMEM => Errno::NoMem,
            Os::INVAL => Errno::Inval,
            Os::NOSPC | Os::DQUOT | Os::FBIG => Errno::NoSpc,
            Os::OVERFLOW => Errno::Overflow,
            Os::OPNOTSUPP | Os::NOSYS => Errno::NotSup,
            _ => Errno::Io,
        }
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        rustix::io::Errno::from_io_error(error).map_or(Errno::Io, Errno::from)
    }
}
