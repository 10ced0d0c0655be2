//! Names, numbers and hashes that identify things on both sites.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::FormatError;

const NAME_RULE: &str =
    "1 to 63 characters from a-z, 0-9 and '-', beginning and ending with a letter or digit";

/// What the name of a group's seed has behind the group's.
const SEED_SUFFIX: &str = "-seed";

fn check_name(what: &'static str, text: &str) -> Result<(), FormatError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    let valid = bytes.len() <= 63
        && bytes.iter().all(|&byte| allowed(byte))
        && ends.iter().all(|end| end.is_some_and(|&byte| byte != b'-'));
    if valid { Ok(()) } else { Err(FormatError::Id { what, text: text.to_owned(), rule: NAME_RULE }) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = FormatError;

            fn from_str(text: &str) -> Result<Self, FormatError> {
                check_name($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = FormatError;

            fn try_from(text: String) -> Result<Self, FormatError> {
                check_name($what, &text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type!(
    /// Name of a consistency group; unique at a recovery site.
    GroupName,
    "group name"
);
impl GroupName {
    /// The group that holds what was brought to the recovery site on a disk for this one: its *seed*. A name that is too long has none.
    pub fn seed(&self) -> Option<GroupName> {
        format!("{self}{SEED_SUFFIX}").parse().ok()
    }

    /// The group whose seed this one is by its name. Who wrote it tells whether it is that.
    pub fn seed_of(&self) -> Option<GroupName> {
        self.0.strip_suffix(SEED_SUFFIX)?.parse().ok()
    }
}

name_type!(
    /// Name of a volume; unique in its group.
    VolumeName,
    "volume name"
);
name_type!(
    /// Name that an operator gave to a point.
    BookmarkName,
    "bookmark name"
);

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one that follows.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_type!(
    /// Fencing number of a timeline's writer; the first is 1.
    Generation
);
number_type!(
    /// Number of an interval of writes of the whole group; the first is 1.
    Epoch
);
number_type!(
    /// Place of a segment in its group's chain; the first is 1.
    Sequence
);

/// Nanoseconds since 1970-01-01 00:00 UTC, by the clock of the host that recorded it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Seconds from `earlier` to `self`; negative if `earlier` is later.
    pub fn seconds_since(self, earlier: Timestamp) -> f64 {
        (self.0 - earlier.0) as f64 / 1e9
    }
}

/// A blake3 hash. Printed as 64 hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The parent of a chain's first segment.
    pub const ZERO: Hash = Hash([0; 32]);

    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        blake3::Hash::from_hex(text).map(|hash| Hash(*hash.as_bytes())).map_err(|_| FormatError::Id {
            what: "hash",
            text: text.to_owned(),
            rule: "64 hexadecimal digits",
        })
    }
}

impl TryFrom<String> for Hash {
    type Error = FormatError;

    fn try_from(text: String) -> Result<Self, FormatError> {
        text.parse()
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> String {
        hash.to_string()
    }
}

/// A place in a group's chain: everything up to and including one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Generation of the segment's writer.
    pub generation: Generation,
    /// The segment's place in the chain.
    pub sequence: Sequence,
    /// Last epoch that the segment carries.
    pub epoch: Epoch,
    /// The segment's hash, which covers its parent's.
    pub hash: Hash,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.generation, self.sequence, self.epoch, self.hash)
    }
}

impl FromStr for Position {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let invalid = || FormatError::Id {
            what: "position",
            text: text.to_owned(),
            rule: "GENERATION/SEQUENCE/EPOCH/HASH",
        };
        let mut parts = text.splitn(4, '/');
        let mut number = || parts.next().and_then(|part| part.parse().ok()).ok_or_else(invalid);
        let (generation, sequence, epoch) = (number()?, number()?, number()?);
        Ok(Position {
            generation: Generation(generation),
            sequence: Sequence(sequence),
            epoch: Epoch(epoch),
            hash: parts.next().ok_or_else(invalid)?.parse()?,
        })
    }
}

/// Id of a recovery point, unique in its group. Printed as `GENERATION-EPOCH`, for example `1-57`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PointId {
    /// Generation of the writer that cut it.
    pub generation: Generation,
    /// Epoch that the cut ended.
    pub epoch: Epoch,
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.generation, self.epoch))
    }
}

impl FromStr for PointId {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let number = |part: &str| part.parse::<u64>().ok();
        text.split_once('-')
            .and_then(|(generation, epoch)| Some((number(generation)?, number(epoch)?)))
            .map(|(generation, epoch)| PointId { generation: Generation(generation), epoch: Epoch(epoch) })
            .ok_or_else(|| FormatError::Id {
                what: "point id",
                text: text.to_owned(),
                rule: "GENERATION-EPOCH, for example 1-57; 'thirdsite point list' prints them",
            })
    }
}

impl TryFrom<String> for PointId {
    type Error = FormatError;

    fn try_from(text: String) -> Result<Self, FormatError> {
        text.parse()
    }
}

impl From<PointId> for String {
    fn from(id: PointId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests;
