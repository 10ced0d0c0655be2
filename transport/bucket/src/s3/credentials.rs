//! Where the keys come from. They are never written anywhere, and their `Debug` shows nothing of them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most bytes of a file of keys.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
/// A file of keys is read again after this time, so that keys can be changed while the daemon runs.
const KEY_FILE_LIFETIME: Duration = Duration::from_mins(5);

/// Where the keys come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum CredentialsSource {
    /// A file that only its owner may read, with lines `access_key_id = "…"`, `secret_access_key = "…"` and, for temporary
    /// keys, `session_token = "…"`.
    File(PathBuf),
    /// A profile of AWS' own files, `~/.aws/config` and `~/.aws/credentials`; roles that it assumes included.
    Profile(String),
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    Environment,
    /// The role of the EC2 instance, from its metadata service (version 2).
    Instance,
    /// The token in the file `AWS_WEB_IDENTITY_TOKEN_FILE`, for the role `AWS_ROLE_ARN`.
    WebIdentity,
}

/// Why a file of keys cannot be used. It names no part of the file's content.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("'{path}' cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others can read it.
    #[error("others than its owner may read '{path}' (mode {mode:04o}); run: chmod 600 '{path}'")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Somebody else can change it.
    #[error(
        "'{path}' belongs to user {owner}, not to user {expected} that this program runs as, nor to root"
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs this program.
        expected: u32,
    },
    /// It is not what it should be.
    #[error(
        "'{path}', line {line}: {rule}; a line is access_key_id = \"…\", secret_access_key = \"…\" or session_token = \"…\""
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A part is missing.
    #[error("'{path}' has no line {name} = \"…\"")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What is missing.
        name: &'static str,
    },
    /// It is far too large.
    #[error("'{path}' has more than {KEY_FILE_BYTES_MAX} bytes: this is no file of keys")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// Keys in a file, read again from time to time.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl ProvideCredentials for KeyFile {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let keys = read_keys(&self.path).map_err(CredentialsError::invalid_configuration);
        future::ProvideCredentials::ready(keys.map(|mut keys| {
            *keys.expiry_mut() = Some(SystemTime::now() + KEY_FILE_LIFETIME);
            keys
        }))
    }
}

/// Reads a file of keys, after looking at its owner and mode through the same descriptor.
///
/// # Errors
/// If others may read it, or it is not such a file.
pub(crate) fn read_keys(path: &Path) -> Result<Credentials, KeyFileError> {
    let read = |source| KeyFileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    let expected = rustix::process::geteuid().as_raw();
    if metadata.uid() != expected && metadata.uid() != 0 {
        return Err(KeyFileError::Owner { path: path.to_owned(), owner: metadata.uid(), expected });
    }
    let mut text = String::new();
    file.take(KEY_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > KEY_FILE_BYTES_MAX {
        return Err(KeyFileError::TooLarge { path: path.to_owned() });
    }
    parse_keys(path, &text)
}

/// A parser of TOML would repeat the line that it does not understand, and with it a secret.
fn parse_keys(path: &Path, text: &str) -> Result<Credentials, KeyFileError> {
    let [mut id, mut secret, mut token] = [None, None, None];
    for (index, line) in text.lines().enumerate() {
        let wrong = |rule| KeyFileError::Line { path: path.to_owned(), line: index + 1, rule };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| wrong("there is no '='"))?;
        let value = value.trim();
        let bare = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let value = bare.ok_or_else(|| wrong("the value is not in double quotes"))?;
        let slot = match name.trim() {
            "access_key_id" => &mut id,
            "secret_access_key" => &mut secret,
            "session_token" => &mut token,
            _ => return Err(wrong("the name is not known")),
        };
        if value.is_empty() || value.contains(['"', '\\']) || value.chars().any(char::is_whitespace) {
            return Err(wrong("the value is empty, or has quotes, backslashes or spaces in it"));
        }
        if slot.replace(value).is_some() {
            return Err(wrong("this name stands here a second time"));
        }
    }
    let missing = |name| KeyFileError::Missing { path: path.to_owned(), name };
    let id = id.ok_or_else(|| missing("access_key_id"))?;
    let secret = secret.ok_or_else(|| missing("secret_access_key"))?;
    Ok(Credentials::new(id, secret, token.map(str::to_owned), None, "key file"))
}

#[cfg(test)]
mod tests;
