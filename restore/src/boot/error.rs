//! Why a VM does not boot, and what to do about it.

use journal_format::{ErrorKind, FormatError, PointId};
use thiserror::Error;

use crate::error::StoreError;
use crate::program::ProgramError;

/// Why a VM did not boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// The point, or a folder for overlays, cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// QEMU or one of its tools did not do its work.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// No VM definition travelled with the point.
    #[error("no VM definition came with point {point}")]
    NoDefinition {
        /// The point.
        point: PointId,
    },
    /// The definition cannot be used.
    #[error("the VM definition of point {point} cannot be used")]
    Definition {
        /// The point.
        point: PointId,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// The point has several VMs, and none was named.
    #[error("point {point} has several VMs: {}", known.join(", "))]
    SeveralVms {
        /// The point.
        point: PointId,
        /// Their names.
        known: Vec<String>,
    },
    /// The point has no such VM.
    #[error("point {point} has no VM '{vm}'. It has: {}", known.join(", "))]
    NoSuchVm {
        /// The point.
        point: PointId,
        /// The VM that was asked for.
        vm: String,
        /// Names of those that there are.
        known: Vec<String>,
    },
    /// The guest was not up in time.
    #[error("the guest was not up after {seconds:.0} s{}; the end of its console:\n{console}", awaited(.text))]
    NotReady {
        /// How long it had.
        seconds: f64,
        /// Text that was waited for.
        text: Option<String>,
        /// The end of its console.
        console: String,
    },
    /// The guest turned itself off.
    #[error("the guest turned itself off before it was up; the end of its console:\n{console}")]
    TurnedOff {
        /// The end of its console.
        console: String,
    },
    /// It was stopped from outside.
    #[error("the VM was stopped before the guest was up")]
    Stopped,
}

fn awaited(text: &Option<String>) -> String {
    text.as_ref().map_or(String::new(), |text| format!(" (no '{text}' on its console)"))
}

impl BootError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BootError::Store(error) => error.kind(),
            BootError::Program(_)
            | BootError::NotReady { .. }
            | BootError::TurnedOff { .. }
            | BootError::Stopped => ErrorKind::Retry,
            BootError::NoDefinition { .. }
            | BootError::Definition { .. }
            | BootError::SeveralVms { .. }
            | BootError::NoSuchVm { .. } => ErrorKind::Invalid,
        }
    }

    /// What an operator should do now.
    pub fn hint(&self) -> &'static str {
        match self {
            BootError::Store(error) => error.hint(),
            BootError::Program(error) => error.hint(),
            BootError::NoDefinition { .. } | BootError::Definition { .. } => {
                "use 'thirdsite export' or 'thirdsite restore' and start the VM by hand; mend [[group.vm]] at the protected site"
            }
            BootError::SeveralVms { .. } | BootError::NoSuchVm { .. } => "name one of them with --vm",
            BootError::NotReady { .. } => {
                "give it more time with --timeout, or correct the text with --ready; try an older point"
            }
            BootError::TurnedOff { .. } => "look at its console; try an older point",
            BootError::Stopped => "",
        }
    }
}
