//! What can be wrong with a profile.

use std::io;

use thiserror::Error;

use super::builtin::BUILT_IN;

/// Errors of profiles. All of them are the fault of what was given.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// The file cannot be read.
    #[error("profile '{path}' cannot be read")]
    Read {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no TOML, or a key or value is not one of a profile.
    #[error("profile '{origin}' is not valid: {source}")]
    Parse {
        /// Path or name.
        origin: String,
        /// Which line, which key, what is allowed.
        source: Box<toml::de::Error>,
    },
    /// Another version of the format.
    #[error("profile '{origin}': version {version} is not known; this program knows version 1")]
    Version {
        /// Path or name.
        origin: String,
        /// Its version.
        version: u32,
    },
    /// A value that makes no link.
    #[error("profile '{origin}': {field}: {reason}")]
    Value {
        /// Path or name.
        origin: String,
        /// Where, such as `up.mtu`.
        field: String,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// No built-in profile has this name.
    #[error("there is no built-in profile '{name}'; there are {}", BUILT_IN.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
}

impl ProfileError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            ProfileError::Read { .. } => "check the path; a profile of your own is a file ending in .toml",
            ProfileError::Unknown { .. } => {
                "for a profile of your own give the path of a file ending in .toml"
            }
            _ => {
                "WAN-LAB.md has the format; 'thirdsite wan-lab profiles NAME' prints a profile to begin with"
            }
        }
    }
}
