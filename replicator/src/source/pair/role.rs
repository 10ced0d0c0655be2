//! `pair.json`: which role this host has.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use journal::Storage;
use serde::{Deserialize, Serialize};

const FILE: &str = "pair.json";
const FORMAT_VERSION: u32 = 1;

/// What a host of a pair does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Serves the VM and ships.
    Active,
    /// Keeps what is needed to take over.
    Standby,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleFile {
    version: u32,
    role: Role,
}

impl Role {
    /// The role that this host took last; `first` if it never took one.
    pub(crate) fn load(journal: &Path, first: Role) -> anyhow::Result<Role> {
        let path = journal.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(first),
            Err(error) => return Err(error).with_context(|| format!("file '{}'", path.display())),
        };
        let file: RoleFile =
            serde_json::from_slice(&text).with_context(|| format!("file '{}'", path.display()))?;
        anyhow::ensure!(
            file.version == FORMAT_VERSION,
            "'{}' is of version {}",
            path.display(),
            file.version
        );
        Ok(file.role)
    }

    /// Takes a role, durably.
    pub(crate) fn save(self, journal: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(&RoleFile { version: FORMAT_VERSION, role: self })?;
        let folder = journal::DirStorage::open(journal).context("the journal's folder")?;
        folder.write(FILE, &text).context("writing pair.json")
    }
}
