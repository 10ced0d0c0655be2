//! What a URL of the settings means.

use std::net::IpAddr;
use std::path::PathBuf;

use object_store::path::Path;

use super::BucketSettingsError;

/// Longest prefix: what is behind it in a key needs less than 200 of S3's 1024 bytes.
const PREFIX_BYTES_MAX: usize = 512;

/// Where a bucket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    S3 {
        bucket: String,
        prefix: Path,
    },
    Folder(PathBuf),
    #[cfg(any(test, feature = "testing"))]
    Memory,
}

impl Place {
    pub(super) fn parse(url: &str) -> Result<Self, BucketSettingsError> {
        let wrong =
            |rule: &str| BucketSettingsError::Value { setting: "url", value: url.into(), rule: rule.into() };
        #[cfg(any(test, feature = "testing"))]
        if url == "memory:" {
            return Ok(Self::Memory);
        }
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(wrong("a folder is file:///FOLDER, with three slashes and an absolute path"));
            }
            return Ok(Self::Folder(path.into()));
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(wrong("it is s3://BUCKET/PREFIX or file:///FOLDER"));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_bucket_name(bucket) {
            return Err(wrong(
                "a bucket's name has 3 to 63 small letters, digits, dots and hyphens, and begins and ends with a letter or digit",
            ));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let parsed = Path::parse(prefix).ok().filter(|parsed| parsed.as_ref() == prefix);
        let Some(prefix) = parsed.filter(|_| prefix.len() <= PREFIX_BYTES_MAX) else {
            return Err(wrong(
                "a prefix has at most 512 bytes, and no empty part, no '.' or '..' between its slashes",
            ));
        };
        Ok(Self::S3 { bucket: bucket.into(), prefix })
    }
}

fn is_bucket_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=63).contains(&name.len())
        && name.chars().all(|c| plain(c) || c == '.' || c == '-')
        && name.starts_with(plain)
        && name.ends_with(plain)
}

/// A URL of a server, known to be usable.
#[derive(Debug)]
pub(super) struct Endpoint;

impl Endpoint {
    pub(super) fn parse(url: &str, plain_http: bool) -> Result<Self, BucketSettingsError> {
        let wrong = |rule: &str| BucketSettingsError::Value {
            setting: "endpoint",
            // Somebody may have put a password there.
            value: if url.contains('@') { "…@…".into() } else { url.into() },
            rule: rule.into(),
        };
        let form = "it is https://HOST or https://HOST:PORT, with nothing behind it; the bucket's name belongs into 'url'";
        let Some((scheme, rest)) = url.split_once("://") else { return Err(wrong(form)) };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = split_port(authority);
        let foreign = |c: char| !(c.is_ascii_alphanumeric() || "-._:[]".contains(c));
        if host.is_empty()
            || authority.contains(foreign)
            || port.is_some_and(|port| port.parse::<u16>().is_err())
        {
            return Err(wrong(form));
        }
        match scheme {
            "https" => Ok(Self),
            "http" if plain_http || is_loopback(host) => Ok(Self),
            "http" => Err(wrong(
                "without TLS everybody on the way can read what is stored; use https, or set plain_http = true if the way is protected by other means",
            )),
            _ => Err(wrong(form)),
        }
    }
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
