//! Names of peers.

use std::fmt;
use std::str::FromStr;

use journal_format::{FormatError, GroupName};
use serde::{Deserialize, Serialize};

/// Name of a protected site or a recovery site, given when its identity is made. It obeys the rule of group names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerName(String);

impl PeerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeerName {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text.parse::<GroupName>() {
            Ok(name) => Ok(Self(name.into())),
            Err(FormatError::Id { text, rule, .. }) => Err(FormatError::Id { what: "peer name", text, rule }),
            Err(other) => Err(other),
        }
    }
}

impl TryFrom<String> for PeerName {
    type Error = FormatError;

    fn try_from(text: String) -> Result<Self, FormatError> {
        text.parse()
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> String {
        name.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
