//! Values with units, as people write them.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Reads `500ms`, `1s`, `2min`.
pub(super) fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    humantime::parse_duration(&text).map_err(|error| {
        de::Error::custom(format!("'{text}' is not a duration ({error}); write it like 500ms, 1s or 2min"))
    })
}

/// Reads `256MiB`, `10GB`, into bytes.
pub(super) fn size<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let text = String::deserialize(input)?;
    let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
    match text.parse::<bytesize::ByteSize>() {
        Ok(size) if has_unit => Ok(size.as_u64()),
        _ => Err(de::Error::custom(format!(
            "'{text}' is not a size with a unit; write it like 256MiB or 10GB"
        ))),
    }
}

/// Reads a size that may be absent.
pub(super) fn optional_size<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    size(input).map(Some)
}

/// Where an NBD server listens: `unix:PATH` or `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl Listen {
    pub(super) fn resolve(&mut self, folder: &Path) {
        if let Listen::Unix(path) = self {
            *path = folder.join(&path);
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("'unix:' needs a path behind it".to_owned()),
            Some(path) => Ok(Listen::Unix(PathBuf::from(path))),
            None => text.parse().map(Listen::Tcp).map_err(|_| {
                format!("'{text}' is neither unix:PATH nor an ADDRESS:PORT such as 127.0.0.1:10809")
            }),
        }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Tcp(address) => address.fmt(f),
        }
    }
}
