//! What can go wrong with the engines that work in real time.

use std::io;

use thiserror::Error;

/// Errors of the engines.
#[derive(Debug, Error)]
pub enum LabError {
    /// The kernel refuses a network namespace.
    #[error("a network namespace cannot be made")]
    Namespace {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses a TUN device.
    #[error("a TUN device cannot be made with /dev/net/tun")]
    Tun {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program that is needed cannot be started.
    #[error("'{program}' cannot be started")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program that is needed says no.
    #[error("'{command}' failed: {said}")]
    Refused {
        /// What was called.
        command: String,
        /// What it wrote to standard error.
        said: String,
    },
    /// A socket of a relay.
    #[error("the relay cannot {action}")]
    Socket {
        /// What was tried, such as `listen on 127.0.0.1`.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread of the emulator ended early.
    #[error("the emulator's thread for packets on the way {way} has ended")]
    Engine {
        /// `up` or `down`.
        way: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread cannot be started, or a descriptor of the emulator cannot be made.
    #[error("the emulator cannot be started")]
    Start {
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl LabError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            LabError::Namespace { .. } => {
                "run as root, or as 'unshare --map-root-user --net COMMAND', or use the relay, which needs no rights"
            }
            LabError::Tun { .. } => {
                "load the module 'tun' and see that /dev/net/tun may be opened, or use the relay, which needs no rights"
            }
            LabError::Program { .. } => "install iproute2, or use the relay, which needs no programs",
            LabError::Refused { .. } | LabError::Socket { .. } => "",
            LabError::Engine { .. } | LabError::Start { .. } => "the run is void; start it again",
        }
    }
}
