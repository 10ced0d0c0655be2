//! The folder of a *seed*: a group's first copy, which is carried to the recovery site. `FORMAT.md` defines it.

use serde::{Deserialize, Serialize};

use crate::{FormatError, GroupName, Timestamp, VolumeName};

/// The file that says what the folder is.
pub const SEED_FILE: &str = "seed.json";
/// Largest such file that is read, in bytes.
pub const MAX_SEED_FILE_BYTES: u64 = 1 << 20;

const FORMAT: &str = "thirdsite-seed";
const VERSION: u32 = 1;

/// What the folder is the seed of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedFile {
    format: String,
    version: u32,
    /// The group that it is a first copy of. Its segments are those of the group's [seed](GroupName::seed).
    pub group: GroupName,
    /// When the folder was made, by the protected site's clock.
    pub created: Timestamp,
    /// The volumes that were read last.
    pub volumes: Vec<SeedVolume>,
}

/// A volume of a seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedVolume {
    /// Its name.
    pub name: VolumeName,
    /// Its size in bytes.
    pub size_bytes: u64,
}

impl SeedFile {
    /// Describes a new folder.
    pub fn new(group: GroupName, created: Timestamp, volumes: Vec<SeedVolume>) -> SeedFile {
        SeedFile { format: FORMAT.to_owned(), version: VERSION, group, created, volumes }
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("it has only fields that JSON can hold")
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// [`FormatError::Seed`] if they are something else, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<SeedFile, FormatError> {
        let invalid = |reason: String| FormatError::Seed { reason };
        let file: SeedFile = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if file.format != FORMAT || file.version != VERSION {
            let found = format!("it is of format {} version {}", file.format, file.version);
            return Err(invalid(format!("{found}; this build reads {FORMAT} version {VERSION}")));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::SeedFile;
    use crate::{FormatError, Timestamp};

    #[test]
    fn a_seed_file_is_read_as_it_was_written() {
        let file = SeedFile::new("demo".parse().unwrap(), Timestamp(7), Vec::new());
        assert_eq!(SeedFile::decode(&file.encode()), Ok(file));
    }

    #[test]
    fn v1_seed_file_is_parsed() {
        let text = br#"{"format":"thirdsite-seed","version":1,"group":"demo","created":7,"volumes":[{"name":"disk0","size_bytes":512}]}"#;
        assert_eq!(SeedFile::decode(text).unwrap().volumes[0].size_bytes, 512);
    }

    #[test]
    fn other_files_are_not_taken_for_one() {
        let other = br#"{"format":"thirdsite-seed","version":2,"group":"demo","created":7,"volumes":[]}"#;
        for bytes in [&b""[..], b"{}", other] {
            assert!(matches!(SeedFile::decode(bytes), Err(FormatError::Seed { .. })));
        }
    }
}
