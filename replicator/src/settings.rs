//! Settings files: TOML, versioned, every unknown key refused, sizes and durations with units.

mod site;
mod source;
mod units;

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::de::DeserializeOwned;
use thiserror::Error;

pub(crate) use self::site::SiteSettings;
pub(crate) use self::source::{
    GroupTable, PairTable, Place, SiteTable, SourceSettings, TakeoverWord, TargetKind, TargetName,
    VolumeTable,
};
pub(crate) use self::units::Listen;

/// Version of both settings files.
const SETTINGS_VERSION: u32 = 1;

/// Why settings cannot be used.
#[derive(Debug, Error)]
pub(crate) enum SettingsError {
    #[error("settings file '{path}' cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("settings file '{path}' is not valid:\n{reason}")]
    Parse { path: PathBuf, reason: String },
    #[error("settings file '{path}': {rule}")]
    Rule { path: PathBuf, rule: String },
}

/// A settings file that knows its rules.
pub(crate) trait Settings: DeserializeOwned {
    /// The version that the file states.
    fn version(&self) -> u32;
    /// Makes relative paths absolute, from the file's folder.
    fn resolve(&mut self, folder: &Path);
    /// Checks what single values do not show; answers the rule that is broken.
    fn check(&self) -> Result<(), String>;
}

/// Reads and checks a settings file.
pub(crate) fn load<S: Settings>(path: &Path) -> Result<S, SettingsError> {
    let read = fs::read_to_string(path).and_then(|text| Ok((text, std::path::absolute(path)?)));
    let (text, absolute) = read.map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    let mut settings: S = toml::from_str(&text)
        .map_err(|error| SettingsError::Parse { path: path.to_owned(), reason: error.to_string() })?;
    let rule = |rule| SettingsError::Rule { path: path.to_owned(), rule };
    if settings.version() != SETTINGS_VERSION {
        let version = settings.version();
        return Err(rule(format!("version {version} is not known; this build reads {SETTINGS_VERSION}")));
    }
    settings.resolve(absolute.parent().unwrap_or(Path::new("/")));
    settings.check().map_err(rule)?;
    Ok(settings)
}

#[cfg(test)]
mod tests;
