//! `site.toml`: the recovery site's daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Settings;

/// The recovery site's settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SiteSettings {
    version: u32,
    /// Folder made by `identity new`.
    pub(crate) identity: PathBuf,
    /// Folder of the store.
    pub(crate) store: PathBuf,
    /// Unix socket for `status`.
    pub(crate) control: PathBuf,
    /// UDP address for QUIC.
    pub(crate) listen: SocketAddr,
    /// File with the enrolled sources.
    pub(crate) enrolled: PathBuf,
}

impl Settings for SiteSettings {
    fn version(&self) -> u32 {
        self.version
    }

    fn resolve(&mut self, folder: &Path) {
        for path in [&mut self.identity, &mut self.store, &mut self.control, &mut self.enrolled] {
            *path = folder.join(&path);
        }
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}
