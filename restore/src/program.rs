//! Programs of the host that are needed here: QEMU and its tools.

use std::ffi::OsString;
use std::io;
use std::process::{Command, ExitStatus, Stdio};

use thiserror::Error;

/// Why a program of the host did not do its work.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It cannot be started.
    #[error("'{program}' cannot be started")]
    Start {
        /// Its name.
        program: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended with an error.
    #[error("'{program}' ended with {status}: {said}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said on standard error.
        said: String,
    },
}

impl ProgramError {
    /// What an operator should do now.
    pub fn hint(&self) -> &'static str {
        match self {
            ProgramError::Start { program: "qemu-img", .. } => "install QEMU's tools: apt install qemu-utils",
            ProgramError::Start { .. } => "install QEMU 10 or later: apt install qemu-system-x86",
            ProgramError::Failed { .. } => "its own message says what it misses",
        }
    }
}

/// Runs a program to its end.
pub(crate) fn run(program: &'static str, arguments: &[OsString]) -> Result<(), ProgramError> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|source| ProgramError::Start { program, source })?;
    check(program, output.status, &output.stderr)
}

/// Makes an error of a bad end.
pub(crate) fn check(program: &'static str, status: ExitStatus, stderr: &[u8]) -> Result<(), ProgramError> {
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    let said = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
    Err(ProgramError::Failed { program, status, said })
}
