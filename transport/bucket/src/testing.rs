//! What the tests of this crate are made against: a server of S3 in this process, and a proxy that spoils what it carries.

mod proxy;
mod server;

use std::time::Duration;

pub(crate) use self::proxy::{Action, Proxy, Rule};
pub(crate) use self::server::{S3Server, SECRET};

use crate::meter::Meter;
use crate::retry::RetryPolicy;
use crate::s3::{Authority, Checksums, CredentialsSource, S3Options, S3Store};

/// Name of the bucket that a server has from the start.
pub(crate) const BUCKET: &str = "the-bucket";

/// Repeats soon, so that a test of a repetition takes no time, and for long, so that a busy machine does not matter.
pub(crate) fn eager() -> RetryPolicy {
    RetryPolicy {
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(20),
        deadline: Duration::from_mins(2),
        ..RetryPolicy::default()
    }
}

/// How a server at `endpoint` is spoken to.
pub(crate) fn options(endpoint: String, keys: &tempfile::NamedTempFile) -> S3Options {
    S3Options {
        bucket: BUCKET.into(),
        endpoint: Some(endpoint),
        region: "us-east-1".into(),
        path_style: true,
        authority: None::<Authority>,
        system_roots: false,
        credentials: CredentialsSource::File(keys.path().to_owned()),
        checksums: Checksums::Crc32c,
        uploads_max: 8,
        retry: eager(),
    }
}

/// A file with these keys.
pub(crate) fn key_file(id: &str, secret: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let text = format!("access_key_id = \"{id}\"\nsecret_access_key = \"{secret}\"\n");
    std::fs::write(file.path(), text).expect("written");
    file
}

/// A store, its counters, and what it needs to live.
pub(crate) struct Connected {
    pub(crate) store: S3Store,
    pub(crate) meter: Meter,
    /// Deleted when this is dropped.
    pub(crate) _keys: tempfile::NamedTempFile,
}

/// Speaks to the server at `endpoint` with the right keys, otherwise as `change` says.
pub(crate) fn connect(endpoint: String, change: impl FnOnce(&mut S3Options)) -> Connected {
    let keys = key_file(server::KEY, SECRET);
    let mut options = options(endpoint, &keys);
    change(&mut options);
    let meter = Meter::new();
    Connected { store: S3Store::new(&options, meter.clone()), meter, _keys: keys }
}
