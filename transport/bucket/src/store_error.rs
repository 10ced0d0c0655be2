//! Why a request to the bucket failed, what may be done about it, and by whom.

use std::error::Error;
use std::fmt;
use std::io;
use std::iter;
use std::time::Duration;

use journal_format::ErrorKind;
use object_store::Error as StoreError;
use thiserror::Error;

/// A request that failed for good: it was tried as often as its deadline allowed, or repeating does not help.
#[derive(Debug, Error)]
#[error("cannot {operation} '{place}': {cause}{}", Effort { tries: *.tries, over: *.over })]
pub struct BucketError {
    /// What was asked for, as a verb: `put`, `get`, `list`.
    pub operation: &'static str,
    /// Object, or place of the bucket.
    pub place: Box<str>,
    /// What went wrong, in the last try.
    pub cause: Cause,
    /// Tries that failed, this one included.
    pub tries: u32,
    /// Time from the first try to the end of the last one.
    pub over: Duration,
    /// What the server asks to wait for before the next try.
    pub(crate) retry_after_seconds: Option<u32>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What went wrong.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Cause {
    /// Access key and secret do not belong together.
    #[error("the server refuses the signature: the secret does not belong to the access key")]
    WrongSecret,
    /// The server has no such access key.
    #[error("the server does not know the access key")]
    UnknownKey,
    /// Temporary credentials have run out.
    #[error("the credentials' session token has expired")]
    ExpiredToken,
    /// There are no credentials where the settings say.
    #[error("no credentials: {reason}")]
    NoCredentials {
        /// Why not.
        reason: String,
    },
    /// The clocks differ by more than the server allows.
    #[error("the server refuses this machine's clock, which {}", Skew(*.behind_seconds))]
    ClockSkew {
        /// By how much this machine's clock is behind the server's, negative if it is ahead; none if the server does not say.
        behind_seconds: Option<i64>,
    },
    /// There is no such bucket.
    #[error("the bucket does not exist")]
    NoBucket,
    /// The key may not do this.
    #[error("the credentials do not permit it")]
    Denied,
    /// The bucket is elsewhere.
    #[error("the bucket is in another region{}", .region.as_ref().map(|region| format!(", '{region}'")).unwrap_or_default())]
    WrongRegion {
        /// Where, if the server says so.
        region: Option<String>,
    },
    /// The server's certificate is not accepted, or it speaks no TLS.
    #[error("no TLS with the server: {reason}")]
    Tls {
        /// What rustls says.
        reason: String,
    },
    /// The endpoint's name has no address.
    #[error("the endpoint's name cannot be resolved")]
    Dns,
    /// Nobody listens at the endpoint.
    #[error("the endpoint refuses connections")]
    Refused,
    /// No answer, or no progress, in the time for one request.
    #[error("no answer within {} s", .after.as_secs())]
    TimedOut {
        /// The time that it had.
        after: Duration,
    },
    /// The server asks for fewer requests.
    #[error("the server is too busy ({code}, status {status})")]
    Busy {
        /// Status of HTTP.
        status: u16,
        /// Code of S3.
        code: Box<str>,
    },
    /// The server failed.
    #[error("the server failed with {code}, status {status}: {message}")]
    Server {
        /// Status of HTTP.
        status: u16,
        /// Code of S3.
        code: Box<str>,
        /// What it says, shortened.
        message: Box<str>,
    },
    /// The connection broke, before or in the middle of the answer.
    #[error("the connection was lost")]
    Lost,
    /// An answer ends early, or is not what S3 defines.
    #[error("the server's answer is not usable: {what}")]
    BadAnswer {
        /// What is wrong with it.
        what: String,
    },
    /// The server got other bytes than were sent.
    #[error("the server received other bytes than were sent ({code})")]
    Altered {
        /// Code of S3.
        code: Box<str>,
    },
    /// Another request for the same object is under way.
    #[error("another request for this object is under way ({code})")]
    Conflict {
        /// Code of S3.
        code: Box<str>,
    },
    /// The server does not know what is asked of it, or not in this form.
    #[error("the server refuses the request with {code}, status {status}: {message}")]
    Dialect {
        /// Status of HTTP.
        status: u16,
        /// Code of S3.
        code: Box<str>,
        /// What it says, shortened.
        message: Box<str>,
    },
    /// A backend cannot do this at all.
    #[error("{what} is not supported")]
    NotSupported {
        /// What is missing.
        what: String,
    },
    /// The object exists and must not be replaced.
    #[error("the object exists")]
    Exists,
    /// There is no such object.
    #[error("the object does not exist")]
    NotFound,
    /// The object is not the one that the condition names.
    #[error("the object has changed")]
    Changed,
    /// No space, or a quota is used up.
    #[error("there is no space left, or a quota is used up")]
    Full,
    /// The local file system, or another backend, failed.
    #[error("{reason}")]
    Local {
        /// What it says.
        reason: String,
    },
}

impl Cause {
    /// Whether the same request may succeed when it is repeated at once, with nobody having done anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Dns
                | Self::Refused
                | Self::TimedOut { .. }
                | Self::Busy { .. }
                | Self::Server { .. }
                | Self::Lost
                | Self::BadAnswer { .. }
                | Self::Altered { .. }
                | Self::Conflict { .. }
        )
    }
}

impl BucketError {
    /// An error of the first try.
    #[must_use]
    pub fn new(operation: &'static str, place: impl Into<Box<str>>, cause: Cause) -> Self {
        let place = place.into();
        Self {
            operation,
            place,
            cause,
            tries: 1,
            over: Duration::ZERO,
            retry_after_seconds: None,
            source: None,
        }
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &self.cause {
            Cause::Full => ErrorKind::Full,
            Cause::Exists
            | Cause::Changed
            | Cause::NotFound
            | Cause::Dialect { .. }
            | Cause::NotSupported { .. } => ErrorKind::Invalid,
            // People mend these while the daemon goes on trying.
            _ => ErrorKind::Retry,
        }
    }

    /// What to do about it; none if nothing but waiting helps.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match &self.cause {
            Cause::WrongSecret => {
                "copy access key and secret once more from where they were made, without spaces; some servers say the same of a wrong 'region'"
            }
            Cause::UnknownKey => "check the access key, and that it was made at this endpoint",
            Cause::ExpiredToken => {
                "renew the credentials, or use a key without an expiry, a role or a web identity"
            }
            Cause::NoCredentials { .. } => {
                "name one source in 'credentials' of the bucket's settings: a file, a profile, the environment, the instance's role or a web identity"
            }
            Cause::ClockSkew { .. } => {
                "let both machines' clocks be set by NTP; servers refuse requests that are off by more than 15 minutes"
            }
            Cause::NoBucket => {
                "create it, or correct the name in 'url'; buckets are never created by this program"
            }
            Cause::Denied => {
                "the key needs the right to get, put, list and delete below the prefix: s3:GetObject, s3:PutObject, s3:AbortMultipartUpload, s3:DeleteObject, s3:ListBucket"
            }
            Cause::WrongRegion { region } => {
                return Some(match region {
                    Some(region) => format!("set region = \"{region}\" in the bucket's settings"),
                    None => {
                        "set 'region' and 'endpoint' in the bucket's settings to where the bucket is".into()
                    }
                });
            }
            Cause::Tls { .. } => {
                "give the certificate of the server's authority as 'ca_file', and check that the name in 'endpoint' is the one in its certificate"
            }
            Cause::Dns => {
                "check the name in 'endpoint' and this machine's name server; host-style names need path_style = true where the server's DNS has none"
            }
            Cause::Refused => "check address and port in 'endpoint', and that the server runs",
            Cause::TimedOut { .. } | Cause::Lost => {
                "check the network on the way, proxies and firewalls included"
            }
            Cause::Busy { .. } => {
                "it is tried again more slowly; if it stays so, ask for a higher limit or lower 'uploads_max'"
            }
            Cause::Server { .. } => "see the server's own log or status page",
            Cause::BadAnswer { .. } => {
                "check that 'endpoint' is an S3 endpoint and that no proxy rewrites its answers"
            }
            Cause::Altered { .. } => "check the network on the way for a device that changes what it carries",
            Cause::Dialect { .. } | Cause::NotSupported { .. } => {
                "probe the server with this program's own command: its S3 lacks something that is needed"
            }
            Cause::Full => {
                "free space or raise the quota; nothing that is in the bucket is deleted by this program"
            }
            Cause::Conflict { .. }
            | Cause::Exists
            | Cause::NotFound
            | Cause::Changed
            | Cause::Local { .. } => return None,
        };
        Some(hint.into())
    }

    /// This error as one of the trait's, with itself as the source.
    pub(crate) fn into_store_error(self) -> StoreError {
        let path = self.place.to_string();
        match self.cause {
            Cause::NotFound => StoreError::NotFound { path, source: Box::new(self) },
            Cause::Exists => StoreError::AlreadyExists { path, source: Box::new(self) },
            Cause::Changed => StoreError::Precondition { path, source: Box::new(self) },
            Cause::Denied => StoreError::PermissionDenied { path, source: Box::new(self) },
            Cause::WrongSecret | Cause::UnknownKey | Cause::ExpiredToken | Cause::NoCredentials { .. } => {
                StoreError::Unauthenticated { path, source: Box::new(self) }
            }
            Cause::NotSupported { .. } => StoreError::NotSupported { source: Box::new(self) },
            _ => StoreError::Generic { store: "bucket", source: Box::new(self) },
        }
    }

    /// The error of this crate that a backend's error carries, if it does.
    #[must_use]
    pub fn within(error: &StoreError) -> Option<&Self> {
        chain(error).find_map(|error| error.downcast_ref::<Self>())
    }

    /// What a backend's error means. Those of this crate's S3 are taken out of their wrapping.
    #[must_use]
    pub fn from_store_error(operation: &'static str, place: impl Into<Box<str>>, error: StoreError) -> Self {
        let error = match unwrapped(error) {
            Ok(own) => return own,
            Err(error) => error,
        };
        let cause = match &error {
            StoreError::NotFound { .. } => Cause::NotFound,
            StoreError::AlreadyExists { .. } => Cause::Exists,
            StoreError::Precondition { .. } | StoreError::NotModified { .. } => Cause::Changed,
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => Cause::Denied,
            StoreError::NotImplemented { operation, .. } => Cause::NotSupported { what: operation.clone() },
            StoreError::NotSupported { source } => Cause::NotSupported { what: source.to_string() },
            _ => cause_of_io(&error),
        };
        Self::new(operation, place, cause).with_source(error)
    }
}

impl From<BucketError> for StoreError {
    fn from(error: BucketError) -> Self {
        error.into_store_error()
    }
}

/// The error of this crate that a backend's error carries, else the error itself.
fn unwrapped(error: StoreError) -> Result<BucketError, StoreError> {
    let own = |source: Box<dyn Error + Send + Sync>| source.downcast::<BucketError>();
    match error {
        StoreError::NotFound { path, source } => {
            own(source).map_or_else(|source| Err(StoreError::NotFound { path, source }), |own| Ok(*own))
        }
        StoreError::AlreadyExists { path, source } => {
            own(source).map_or_else(|source| Err(StoreError::AlreadyExists { path, source }), |own| Ok(*own))
        }
        StoreError::Precondition { path, source } => {
            own(source).map_or_else(|source| Err(StoreError::Precondition { path, source }), |own| Ok(*own))
        }
        StoreError::PermissionDenied { path, source } => own(source)
            .map_or_else(|source| Err(StoreError::PermissionDenied { path, source }), |own| Ok(*own)),
        StoreError::Unauthenticated { path, source } => own(source)
            .map_or_else(|source| Err(StoreError::Unauthenticated { path, source }), |own| Ok(*own)),
        StoreError::NotSupported { source } => {
            own(source).map_or_else(|source| Err(StoreError::NotSupported { source }), |own| Ok(*own))
        }
        StoreError::Generic { store, source } => {
            own(source).map_or_else(|source| Err(StoreError::Generic { store, source }), |own| Ok(*own))
        }
        other => Err(other),
    }
}

fn cause_of_io(error: &StoreError) -> Cause {
    let found = chain(error).find_map(|error| error.downcast_ref::<io::Error>());
    match found.map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Cause::Full,
        Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => Cause::Denied,
        Some(_) => Cause::Local { reason: found.map(ToString::to_string).unwrap_or_default() },
        None => Cause::Local { reason: error.to_string() },
    }
}

/// An error and what caused it, outermost first. One of I/O that is made of another one does not name that as its source.
pub(crate) fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

struct Effort {
    tries: u32,
    over: Duration,
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tries < 2 {
            return Ok(());
        }
        write!(f, " (tried {} times in {} s)", self.tries, self.over.as_secs())
    }
}

struct Skew(Option<i64>);

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("is too far from its own"),
            Some(seconds) => {
                let direction = if seconds < 0 { "ahead of" } else { "behind" };
                write!(f, "is {} s {direction} its own", seconds.unsigned_abs())
            }
        }
    }
}

#[cfg(test)]
mod tests;
