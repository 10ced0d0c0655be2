//! The settings of a bucket: one table of a daemon's TOML, the same in the command line's file.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use journal_format::ErrorKind;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::cost::Prices;
use crate::meter::{Meter, MeteredStore};
use crate::retry::RetryPolicy;
use crate::s3::{
    Authority, AuthorityError, Checksums, CredentialsSource, KeyFileError, S3Options, S3Store, read_keys,
};
use crate::staged::StagedStore;

mod url;

use self::url::{Endpoint, Place};

/// Region that requests to an endpoint are signed for if the settings name none; most servers other than AWS take it.
const ENDPOINT_REGION: &str = "us-east-1";
/// Most puts under way.
const UPLOADS_MAX: usize = 64;

/// Where a bucket is and how it is used. Sizes and durations have units, unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketSettings {
    /// `s3://BUCKET/PREFIX`, or `file:///FOLDER` for a folder that is used as a bucket.
    pub url: String,
    /// URL of a server other than AWS: `https://HOST:PORT`.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Region; must be given for AWS.
    #[serde(default)]
    pub region: Option<String>,
    /// Whether the bucket's name is part of the path; by default if there is an endpoint.
    #[serde(default)]
    pub path_style: Option<bool>,
    /// Whether an endpoint that is not on this machine may be spoken to without TLS.
    #[serde(default)]
    pub plain_http: bool,
    /// Certificates, in PEM, of authorities that are trusted besides this machine's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Whether this machine's authorities are trusted.
    #[serde(default = "yes")]
    pub system_roots: bool,
    /// Where the keys come from: `{ file = "…" }`, `{ profile = "…" }`, `"environment"`, `"instance"` or `"web-identity"`.
    #[serde(default)]
    pub credentials: Option<CredentialsSource>,
    /// Checksum that is sent with each put.
    #[serde(default)]
    pub checksums: Checksums,
    /// Puts under way, over all groups.
    #[serde(default = "uploads_max")]
    pub uploads_max: usize,
    /// Time until a request that fails is given up.
    #[serde(default = "deadline", deserialize_with = "duration")]
    pub deadline: Duration,
    /// Time for one try of a request, besides the time for its bytes.
    #[serde(default = "request_timeout", deserialize_with = "duration")]
    pub request_timeout: Duration,
    /// What keeps two writers of a group apart.
    #[serde(default)]
    pub fencing: Fencing,
    /// When a position is received.
    #[serde(default)]
    pub receipts: Receipts,
    /// Longest time between two heartbeats.
    #[serde(default = "heartbeat_interval", deserialize_with = "duration")]
    pub heartbeat_interval: Duration,
    /// Longest time between two looks at the claims while anything is unconfirmed.
    #[serde(default = "validate_interval", deserialize_with = "duration")]
    pub validate_interval: Duration,
    /// What the provider takes, for an estimate.
    #[serde(default)]
    pub prices: Option<Prices>,
}

/// What keeps two writers of a group apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fencing {
    /// The server: an object that exists is not replaced.
    #[default]
    PutIfAbsent,
    /// Nothing: whoever sets this promises that there is one writer.
    None,
}

/// When a position is received, so that the journal may trim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Receipts {
    /// When the server has stored it.
    #[default]
    Stored,
    /// When the recovery site has read and verified it.
    Checked,
}

/// Why settings do not name a usable bucket.
#[derive(Debug, Error)]
pub enum BucketSettingsError {
    /// A value is not usable.
    #[error("'{setting}' of the bucket is '{value}': {rule}")]
    Value {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        rule: String,
    },
    /// A setting is missing.
    #[error("the bucket has no '{setting}': {rule}")]
    Missing {
        /// The setting.
        setting: &'static str,
        /// What to put there.
        rule: &'static str,
    },
    /// A setting does not belong to this kind of bucket.
    #[error("'{setting}' of the bucket is for S3, but 'url' is '{url}'; remove it")]
    OnlyForS3 {
        /// The setting.
        setting: &'static str,
        /// The URL.
        url: String,
    },
    /// The file of keys is not usable.
    #[error("'credentials' of the bucket: {0}")]
    Keys(#[source] KeyFileError),
    /// The file of certificates is not usable.
    #[error("'ca_file' of the bucket: {0}")]
    Authority(#[source] AuthorityError),
    /// The folder is not usable.
    #[error("the folder '{path}' cannot be used as a bucket; create it, or mount what should be there")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: object_store::Error,
    },
}

impl BucketSettingsError {
    /// What a caller can do about it: nothing before the settings, or a file that they name, are mended.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }

    /// What to do about it; each message says that already.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        None
    }
}

/// A bucket that is ready to be asked. Names in it begin behind the prefix.
#[derive(Clone, Debug)]
pub struct OpenBucket {
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
    /// Counts what is asked of it.
    pub meter: Meter,
    /// For messages: the URL, and the endpoint if there is one.
    pub place: String,
}

impl BucketSettings {
    /// The settings that have defaults, for `url`.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            endpoint: None,
            region: None,
            path_style: None,
            plain_http: false,
            ca_file: None,
            system_roots: true,
            credentials: None,
            checksums: Checksums::default(),
            uploads_max: uploads_max(),
            deadline: deadline(),
            request_timeout: request_timeout(),
            fencing: Fencing::default(),
            receipts: Receipts::default(),
            heartbeat_interval: heartbeat_interval(),
            validate_interval: validate_interval(),
            prices: None,
        }
    }

    /// Makes relative paths absolute, from the folder of the settings file.
    pub fn resolve(&mut self, folder: &FilePath) {
        if let Some(path) = &mut self.ca_file {
            *path = folder.join(&*path);
        }
        if let Some(CredentialsSource::File(path)) = &mut self.credentials {
            *path = folder.join(&*path);
        }
    }

    /// Checks what can be checked without reading files or asking the server.
    ///
    /// # Errors
    /// The first setting that is not usable.
    pub fn check(&self) -> Result<(), BucketSettingsError> {
        let place = Place::parse(&self.url)?;
        if matches!(place, Place::S3 { .. }) {
            self.check_s3()?
        } else {
            self.check_not_s3()?
        }
        between("uploads_max", self.uploads_max, 1..=UPLOADS_MAX)?;
        let seconds = |setting, duration: Duration, range| between(setting, duration.as_secs(), range);
        seconds("deadline", self.deadline, 1..=86_400)?;
        seconds("request_timeout", self.request_timeout, 1..=3600)?;
        seconds("heartbeat_interval", self.heartbeat_interval, 1..=86_400)?;
        seconds("validate_interval", self.validate_interval, 1..=3600)?;
        if let Some(setting) = self.prices.as_ref().and_then(Prices::unusable) {
            let rule = "a price is a number that is not negative".into();
            return Err(BucketSettingsError::Value { setting: "prices", value: setting.into(), rule });
        }
        Ok(())
    }

    fn check_s3(&self) -> Result<(), BucketSettingsError> {
        if let Some(endpoint) = &self.endpoint {
            Endpoint::parse(endpoint, self.plain_http)?;
        } else if self.region.is_none() {
            let rule = "give the region of AWS that the bucket is in, or the 'endpoint' of another server";
            return Err(BucketSettingsError::Missing { setting: "region", rule });
        }
        if self.credentials.is_none() {
            let rule = "one of { file = \"…\" }, { profile = \"…\" }, \"environment\", \"instance\" and \"web-identity\"";
            return Err(BucketSettingsError::Missing { setting: "credentials", rule });
        }
        if !self.system_roots && self.ca_file.is_none() {
            let rule = "without this machine's authorities ('system_roots = false') it must name those that are trusted";
            return Err(BucketSettingsError::Missing { setting: "ca_file", rule });
        }
        Ok(())
    }

    fn check_not_s3(&self) -> Result<(), BucketSettingsError> {
        let foreign = [
            ("endpoint", self.endpoint.is_some()),
            ("region", self.region.is_some()),
            ("path_style", self.path_style.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("credentials", self.credentials.is_some()),
        ];
        match foreign.iter().find(|(_, given)| *given) {
            Some((setting, _)) => Err(BucketSettingsError::OnlyForS3 { setting, url: self.url.clone() }),
            None => Ok(()),
        }
    }

    /// Makes the bucket ready. The files of keys and certificates are read; nothing is sent.
    ///
    /// # Errors
    /// If a setting, or a file that it names, is not usable.
    pub fn open(&self) -> Result<OpenBucket, BucketSettingsError> {
        self.check()?;
        let meter = Meter::new();
        match Place::parse(&self.url)? {
            Place::S3 { bucket, prefix } => self.open_s3(bucket, &prefix, meter),
            Place::Folder(path) => {
                let folder = |source| BucketSettingsError::Folder { path: path.clone(), source };
                let store = LocalFileSystem::new_with_prefix(&path).map_err(folder)?.with_fsync(true);
                Ok(self.opened(StagedStore::new(store), meter))
            }
            #[cfg(any(test, feature = "testing"))]
            Place::Memory => Ok(self.opened(StagedStore::new(object_store::memory::InMemory::new()), meter)),
        }
    }

    fn opened(&self, store: impl ObjectStore, meter: Meter) -> OpenBucket {
        let store = Arc::new(MeteredStore::new(store, meter.clone()));
        OpenBucket { store, meter, place: self.url.clone() }
    }

    fn open_s3(
        &self,
        bucket: String,
        prefix: &Path,
        meter: Meter,
    ) -> Result<OpenBucket, BucketSettingsError> {
        let authority = self.ca_file.as_deref().map(Authority::read).transpose();
        let credentials = self.credentials.clone().expect("checked before");
        if let CredentialsSource::File(path) = &credentials {
            read_keys(path).map_err(BucketSettingsError::Keys)?;
        }
        let options = S3Options {
            bucket,
            endpoint: self.endpoint.clone(),
            region: self.region.clone().unwrap_or_else(|| ENDPOINT_REGION.into()),
            path_style: self.path_style.unwrap_or(self.endpoint.is_some()),
            authority: authority.map_err(BucketSettingsError::Authority)?,
            system_roots: self.system_roots,
            credentials,
            checksums: self.checksums,
            uploads_max: self.uploads_max,
            retry: self.retry_policy(),
        };
        let store = S3Store::new(&options, meter.clone());
        let store: Arc<dyn ObjectStore> = if prefix.as_ref().is_empty() {
            Arc::new(store)
        } else {
            Arc::new(PrefixStore::new(store, prefix.clone()))
        };
        let at = self.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
        Ok(OpenBucket { store, meter, place: format!("{}{at}", self.url) })
    }

    /// How requests are repeated.
    #[must_use]
    pub fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy { deadline: self.deadline, request_base: self.request_timeout, ..RetryPolicy::default() }
    }
}

fn between<T: PartialOrd + std::fmt::Display>(
    setting: &'static str,
    value: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<(), BucketSettingsError> {
    if range.contains(&value) {
        return Ok(());
    }
    let rule = format!("it is from {} to {}", range.start(), range.end());
    Err(BucketSettingsError::Value { setting, value: value.to_string(), rule })
}

fn yes() -> bool {
    true
}

fn uploads_max() -> usize {
    8
}

fn deadline() -> Duration {
    RetryPolicy::default().deadline
}

fn request_timeout() -> Duration {
    RetryPolicy::default().request_base
}

fn heartbeat_interval() -> Duration {
    Duration::from_mins(1)
}

fn validate_interval() -> Duration {
    Duration::from_secs(5)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!("'{text}' is not a duration like \"30s\" or \"10min\": {error}"))
    })
}

#[cfg(test)]
mod tests;
