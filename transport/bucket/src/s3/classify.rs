//! What an answer of the server, or its absence, means.

use std::error::Error;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::connect::CONNECT_TIMEOUT;
use crate::retry::Request;
use crate::store_error::{BucketError, Cause, chain};

/// Most characters of a server's message that are repeated.
const MESSAGE_CHARS_MAX: usize = 200;

/// A server's refusal, as far as it decides what it means.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// Code of S3, empty if the answer has no body.
    pub(super) code: String,
    pub(super) message: String,
    /// Header `x-amz-bucket-region`.
    pub(super) region: Option<String>,
    /// Header `date`, in seconds since 1970.
    pub(super) date: Option<i64>,
}

/// Makes an error of what the SDK answers.
pub(super) fn error_of<E>(request: &Request, error: SdkError<E, HttpResponse>) -> BucketError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let new = |cause| BucketError::new(request.kind.verb(), &*request.place, cause);
    match error {
        SdkError::ServiceError(service) => {
            let raw = service.raw();
            let retry_after = retry_after(raw, unix_now());
            let refusal = refusal(raw, service.err().code(), service.err().message());
            let mut error = new(cause_of_refusal(&refusal, unix_now()));
            error.retry_after_seconds = retry_after;
            error
        }
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            if status >= 400 {
                let refusal = refusal(response.raw(), None, None);
                return new(cause_of_refusal(&refusal, unix_now()));
            }
            new(Cause::BadAnswer { what: format!("status {status}, but the answer cannot be read") })
        }
        SdkError::TimeoutError(_) => new(Cause::TimedOut { after: CONNECT_TIMEOUT }),
        SdkError::DispatchFailure(failure) => {
            let timed_out = failure.as_connector_error().is_some_and(|error| error.is_timeout());
            let source: Box<dyn Error + Send + Sync> = SdkError::<E, HttpResponse>::DispatchFailure(failure)
                .into_source()
                .unwrap_or_else(|error| Box::new(error));
            let cause = match cause_of_connection(&*source) {
                Cause::Lost if timed_out => Cause::TimedOut { after: CONNECT_TIMEOUT },
                cause => cause,
            };
            new(cause).with_source(source)
        }
        other => {
            let source: Box<dyn Error + Send + Sync> =
                other.into_source().unwrap_or_else(|error| Box::new(error));
            let cause = match cause_of_connection(&*source) {
                Cause::Lost => Cause::Local { reason: "the request cannot be made".into() },
                cause => cause,
            };
            new(cause).with_source(source)
        }
    }
}

fn refusal(raw: &HttpResponse, code: Option<&str>, message: Option<&str>) -> Refusal {
    let header = |name| raw.headers().get(name);
    Refusal {
        status: raw.status().as_u16(),
        code: code.map(shortened).unwrap_or_default(),
        message: message.map(shortened).unwrap_or_default(),
        region: header("x-amz-bucket-region").map(shortened),
        date: header("date").and_then(http_date),
    }
}

/// What a refusal means. `now` is this machine's clock, in seconds since 1970.
pub(super) fn cause_of_refusal(refusal: &Refusal, now: i64) -> Cause {
    let Refusal { status, code, message, .. } = refusal;
    let named = || Box::from(if code.is_empty() { "no code" } else { code });
    let message_text = || Box::from(&**message);
    match (&**code, *status) {
        ("SignatureDoesNotMatch", _) => Cause::WrongSecret,
        ("InvalidAccessKeyId" | "InvalidToken" | "NotSignedUp", _) => Cause::UnknownKey,
        ("ExpiredToken" | "TokenRefreshRequired", _) => Cause::ExpiredToken,
        ("RequestTimeTooSkewed" | "RequestInTheFuture" | "RequestExpired", _) => {
            Cause::ClockSkew { behind_seconds: refusal.date.map(|date| date - now) }
        }
        ("NoSuchBucket", _) => Cause::NoBucket,
        ("AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _) | (_, 301 | 307) => {
            Cause::WrongRegion { region: refusal.region.clone().or_else(|| expected_region(message)) }
        }
        ("BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch", _) => {
            Cause::Altered { code: named() }
        }
        ("PreconditionFailed", _) | (_, 412) => Cause::Exists,
        (_, 304) => Cause::Changed,
        ("SlowDown" | "ServiceUnavailable" | "TooManyRequests" | "RequestLimitExceeded", _)
        | (_, 429 | 503) => Cause::Busy { status: *status, code: named() },
        ("QuotaExceeded" | "XMinioStorageFull", _) | (_, 507) => Cause::Full,
        ("NotImplemented", _) => Cause::Dialect { status: *status, code: named(), message: message_text() },
        ("RequestTimeout" | "InternalError", _) | (_, 500..) | (_, 200..=299 | 408) => {
            Cause::Server { status: *status, code: named(), message: message_text() }
        }
        ("ConditionalRequestConflict" | "OperationAborted", _) | (_, 409) => {
            Cause::Conflict { code: named() }
        }
        ("NoSuchKey" | "NoSuchUpload" | "NotFound", _) | (_, 404) => Cause::NotFound,
        ("AccessDenied", _) | (_, 401 | 403) => Cause::Denied,
        _ => Cause::Dialect { status: *status, code: named(), message: message_text() },
    }
}

/// The region in "the region 'us-east-1' is wrong; expecting 'eu-west-1'", which AWS and others say.
fn expected_region(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("expecting '")?;
    rest.split_once('\'').map(|(region, _)| region.to_owned())
}

/// What it means that no answer came.
fn cause_of_connection(error: &(dyn Error + 'static)) -> Cause {
    for error in chain(error) {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Cause::Tls { reason: tls.to_string() };
        }
        if let Some(credentials) =
            error.downcast_ref::<aws_credential_types::provider::error::CredentialsError>()
        {
            let innermost = chain(credentials).last().map_or_else(String::new, ToString::to_string);
            return Cause::NoCredentials { reason: innermost };
        }
        if error.to_string().starts_with("dns error") {
            return Cause::Dns;
        }
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind == Some(io::ErrorKind::ConnectionRefused) {
            return Cause::Refused;
        }
    }
    Cause::Lost
}

/// What the header `retry-after` asks for: seconds, or a date.
fn retry_after(raw: &HttpResponse, now: i64) -> Option<u32> {
    let value = raw.headers().get("retry-after")?.trim();
    value.parse().ok().or_else(|| u32::try_from(http_date(value)? - now).ok())
}

fn http_date(text: &str) -> Option<i64> {
    DateTime::from_str(text, Format::HttpDate).ok().map(|date| date.secs())
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A server's text in one line, without control characters, and not too long for a log.
fn shortened(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
