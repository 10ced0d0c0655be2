//! Names of objects. What is written here is what is parsed here: any other spelling is not ours.

use std::fmt;

use journal_format::{GroupName, Sequence};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::error::RoadError;

const CLAIM_DIGITS: usize = 10;
const SEQUENCE_DIGITS: usize = 20;

/// Place of a claim among those of its group; the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClaimNumber(pub u64);

impl ClaimNumber {
    /// The first claim of a group.
    pub const FIRST: ClaimNumber = ClaimNumber(1);

    /// The one that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for ClaimNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the name of a segment's object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The start that it was put under.
    pub claim: ClaimNumber,
    /// Its place in the chain.
    pub sequence: Sequence,
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{:0CLAIM_DIGITS$}-s{:0SEQUENCE_DIGITS$}.seg", self.claim.0, self.sequence.0)
    }
}

impl SegmentName {
    fn parse(name: &str) -> Option<Self> {
        let (claim, sequence) = name.strip_prefix('c')?.strip_suffix(".seg")?.split_once("-s")?;
        Some(Self {
            claim: ClaimNumber(number(claim, CLAIM_DIGITS)?),
            sequence: Sequence(number(sequence, SEQUENCE_DIGITS)?),
        })
    }
}

/// A number of exactly so many digits, from 1 on.
fn number(text: &str, digits: usize) -> Option<u64> {
    let strict = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    strict.then(|| text.parse().ok())?.filter(|&number| number > 0)
}

/// Names of everything that is kept under one prefix of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketKeys {
    prefix: Path,
}

impl BucketKeys {
    /// Under `prefix`, parts of which are separated by `/`; empty for the whole bucket.
    ///
    /// # Errors
    /// [`RoadError::Prefix`].
    pub fn new(prefix: &str) -> Result<Self, RoadError> {
        let parsed = Path::parse(prefix);
        let prefix = parsed.map_err(|source| RoadError::Prefix { prefix: prefix.to_owned(), source })?;
        Ok(Self { prefix })
    }

    /// What says that a bucket is kept here, and in which version.
    pub fn store(&self) -> Path {
        self.prefix.clone().join("store.json")
    }

    /// The folder of all groups.
    pub fn groups(&self) -> Path {
        self.prefix.clone().join("groups")
    }

    /// The names of one group's objects.
    pub fn group(&self, group: &GroupName) -> GroupKeys {
        GroupKeys { folder: self.groups().join(group.as_str()) }
    }

    /// The group whose folder this is; none for other names.
    pub fn group_of(&self, folder: &Path) -> Option<GroupName> {
        only_part(folder, &self.groups())?.parse().ok()
    }
}

/// Names of one group's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupKeys {
    folder: Path,
}

impl GroupKeys {
    /// The folder of the claims.
    pub fn claims(&self) -> Path {
        self.folder.clone().join("claims")
    }

    /// A claim.
    pub fn claim(&self, number: ClaimNumber) -> Path {
        self.claims().join(format!("c{:0CLAIM_DIGITS$}.json", number.0))
    }

    /// The number of a claim's object; none for other names.
    pub fn claim_number(&self, key: &Path) -> Option<ClaimNumber> {
        let name = only_part(key, &self.claims())?;
        let digits = name.strip_prefix('c')?.strip_suffix(".json")?.to_owned();
        number(&digits, CLAIM_DIGITS).map(ClaimNumber)
    }

    /// The folder of the segments.
    pub fn segments(&self) -> Path {
        self.folder.clone().join("segments")
    }

    /// A segment.
    pub fn segment(&self, name: SegmentName) -> Path {
        self.segments().join(name.to_string())
    }

    /// What a segment's object is named; none for other names.
    pub fn segment_name(&self, key: &Path) -> Option<SegmentName> {
        SegmentName::parse(&only_part(key, &self.segments())?)
    }

    /// What the source last said of itself.
    pub fn heartbeat(&self) -> Path {
        self.folder.clone().join("heartbeat.json")
    }

    /// How far the recovery site has read and verified.
    pub fn checked(&self) -> Path {
        self.folder.clone().join("checked.json")
    }
}

/// The one part that `key` has behind `folder`.
fn only_part(key: &Path, folder: &Path) -> Option<String> {
    let mut parts = key.prefix_match(folder)?;
    let part = parts.next()?;
    parts.next().is_none().then(|| part.as_ref().to_owned())
}

#[cfg(test)]
mod tests;
