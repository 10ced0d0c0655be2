//! Object storage that speaks S3: `object_store`'s trait on AWS' SDK.
//!
//! One call of the trait is one request, but for lists (a request for each page), multipart uploads and reads that break off.
//! Each request is repeated as [`RetryPolicy`] says, and counted. Since a repeated request may meet its own effect, a put that
//! must not replace anything compares what it then finds with what it sent.

mod authority;
mod body;
mod checksum;
mod classify;
mod connect;
mod credentials;
mod list;
mod upload;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::{Semaphore, SemaphorePermit};

pub use self::authority::{Authority, AuthorityError};
use self::body::Body;
use self::classify::error_of;
pub(crate) use self::credentials::read_keys;
pub use self::credentials::{CredentialsSource, KeyFileError};
use self::upload::S3Upload;
use crate::meter::{Meter, RequestKind};
use crate::retry::{Request, Retrier, RetryPolicy};
use crate::store_error::{BucketError, Cause};

/// Deletions that are under way at once.
const DELETES_MAX: usize = 8;

/// Where a bucket is and how it is spoken to.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Name of the bucket.
    pub bucket: String,
    /// URL of the server; none for AWS.
    pub endpoint: Option<String>,
    /// Region that requests are signed for.
    pub region: String,
    /// Whether the bucket's name is the first part of the path, not of the host's name.
    pub path_style: bool,
    /// Further certificates of authorities that are trusted.
    pub authority: Option<Authority>,
    /// Whether the authorities that this machine trusts are trusted.
    pub system_roots: bool,
    /// Where the keys come from.
    pub credentials: CredentialsSource,
    /// What is sent with each put, besides the signature over its SHA-256.
    pub checksums: Checksums,
    /// Puts and parts that are under way at once.
    pub uploads_max: usize,
    /// How requests are repeated.
    pub retry: RetryPolicy,
}

/// The checksum that is sent with what is put, for the server to check and keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checksums {
    /// CRC-32C in a header.
    #[default]
    Crc32c,
    /// None: the server checks what it received by the signature alone.
    None,
}

/// A marker among the extensions of [`PutMultipartOptions`]: the upload is completed only if there is no such object.
#[derive(Clone, Copy, Debug)]
pub struct IfAbsent;

/// A bucket.
#[derive(Clone, Debug)]
pub struct S3Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    bucket: String,
    checksums: Checksums,
    uploads: Semaphore,
    retrier: Retrier,
}

impl fmt::Display for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.shared.bucket)
    }
}

impl S3Store {
    /// Makes the client. Nothing is sent, and the credentials are not read yet.
    #[must_use]
    pub fn new(options: &S3Options, meter: Meter) -> Self {
        let shared = Shared {
            client: connect::client(options),
            bucket: options.bucket.clone(),
            checksums: options.checksums,
            uploads: Semaphore::new(options.uploads_max.max(1)),
            retrier: Retrier::new(options.retry, meter),
        };
        Self { shared: Arc::new(shared) }
    }

    async fn put_bytes(&self, key: &Path, bytes: Bytes, mode: &PutMode) -> Result<PutResult, BucketError> {
        let shared = &self.shared;
        let request = shared.request(RequestKind::Put, key, bytes.len() as u64);
        let checksum = shared.checksum(&bytes);
        let (none_match, matching) = match mode {
            PutMode::Create => (Some("*".to_owned()), None),
            PutMode::Update(version) => (None, version.e_tag.clone()),
            PutMode::Overwrite => (None, None),
        };
        let _permit = shared.permit().await;
        let result = shared
            .retrier
            .run(&request, async |_| {
                shared
                    .client
                    .put_object()
                    .bucket(&shared.bucket)
                    .key(key.as_ref())
                    .set_if_none_match(none_match.clone())
                    .set_if_match(matching.clone())
                    .set_checksum_crc32_c(checksum.clone())
                    .content_length(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
                    .body(ByteStream::from(bytes.clone()))
                    .send()
                    .await
                    .map_err(|error| error_of(&request, error))
            })
            .await;
        match result {
            Ok(answer) => Ok(put_result(answer.e_tag, answer.version_id)),
            Err(mut error) if error.cause == Cause::Exists && matching.is_some() => {
                error.cause = Cause::Changed;
                Err(error)
            }
            Err(error) if error.cause == Cause::Exists && error.tries > 1 => {
                let parts = [checksum::Part::of(&bytes)];
                self.settle_own_effect(key, &parts, error).await
            }
            Err(error) => Err(error),
        }
    }

    /// Decides whether the object that a repeated request met is what an earlier try of it put, whose answer was lost.
    async fn settle_own_effect(
        &self,
        key: &Path,
        parts: &[checksum::Part],
        error: BucketError,
    ) -> Result<PutResult, BucketError> {
        let found = match self.open(key, GetOptions::default()).await {
            Ok(found) => found,
            Err(reading) if reading.cause.is_passing() => return Err(reading),
            Err(_) => return Err(error),
        };
        let e_tag = found.meta.e_tag.clone();
        let expected: u64 = parts.iter().map(|part| part.bytes).sum();
        if found.meta.size != expected {
            return Err(error);
        }
        let mut comparison = checksum::Comparison::new(parts);
        let mut chunks = found.into_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk =
                chunk.map_err(|reading| BucketError::from_store_error("read back", key.as_ref(), reading))?;
            comparison.update(&chunk);
        }
        if comparison.is_equal() { Ok(put_result(e_tag, None)) } else { Err(error) }
    }

    async fn open(&self, key: &Path, options: GetOptions) -> Result<GetResult, BucketError> {
        let body = Body::open(Arc::clone(&self.shared), key.clone(), options).await?;
        Ok(GetResult {
            meta: body.meta().clone(),
            range: body.range(),
            attributes: Default::default(),
            extensions: Default::default(),
            payload: GetResultPayload::Stream(body.into_stream()),
        })
    }

    async fn look_at(&self, key: &Path, options: &GetOptions) -> Result<GetResult, BucketError> {
        let shared = &self.shared;
        let request = shared.request(RequestKind::Head, key, 0);
        let answer = shared
            .retrier
            .run(&request, async |_| {
                shared
                    .client
                    .head_object()
                    .bucket(&shared.bucket)
                    .key(key.as_ref())
                    .set_if_match(options.if_match.clone())
                    .set_if_none_match(options.if_none_match.clone())
                    .send()
                    .await
                    .map_err(|error| changed(error_of(&request, error)))
            })
            .await?;
        let size = body::length(&request, answer.content_length)?;
        let meta = ObjectMeta {
            location: key.clone(),
            last_modified: body::time(answer.last_modified),
            size,
            e_tag: answer.e_tag,
            version: answer.version_id,
        };
        Ok(GetResult {
            range: 0..size,
            meta,
            attributes: Default::default(),
            extensions: Default::default(),
            payload: GetResultPayload::Stream(futures::stream::empty().boxed()),
        })
    }

    async fn delete_one(&self, key: &Path) -> Result<(), BucketError> {
        let shared = &self.shared;
        let request = shared.request(RequestKind::Delete, key, 0);
        let result = shared
            .retrier
            .run(&request, async |_| {
                let deletion = shared.client.delete_object().bucket(&shared.bucket).key(key.as_ref());
                deletion.send().await.map_err(|error| error_of(&request, error))
            })
            .await;
        match result {
            Ok(_) => Ok(()),
            // S3 answers that it is deleted; some servers do not.
            Err(error) if error.cause == Cause::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Shared {
    fn request(&self, kind: RequestKind, key: &Path, bytes: u64) -> Request {
        Request { kind, place: format!("s3://{}/{key}", self.bucket), bytes }
    }

    /// CRC-32C of what is put, as the header has it.
    fn checksum(&self, bytes: &[u8]) -> Option<String> {
        (self.checksums == Checksums::Crc32c).then(|| checksum::header(checksum::crc32c(bytes)))
    }

    async fn permit(&self) -> SemaphorePermit<'_> {
        self.uploads.acquire().await.expect("the semaphore is never closed")
    }
}

/// A condition that a read names and that does not hold.
fn changed(mut error: BucketError) -> BucketError {
    if error.cause == Cause::Exists {
        error.cause = Cause::Changed;
    }
    error
}

fn put_result(e_tag: Option<String>, version: Option<String>) -> PutResult {
    PutResult { e_tag, version, extensions: Default::default() }
}

fn unsupported(operation: &'static str, place: &Path, what: &str) -> Error {
    BucketError::new(operation, place.as_ref(), Cause::NotSupported { what: what.into() }).into_store_error()
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if !options.attributes.is_empty() || !options.tags.encoded().is_empty() {
            return Err(unsupported("put", location, "an attribute or a tag"));
        }
        Ok(self.put_bytes(location, payload.into(), &options.mode).await?)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if !options.attributes.is_empty() || !options.tags.encoded().is_empty() {
            return Err(unsupported("put", location, "an attribute or a tag"));
        }
        let if_absent = options.extensions.get::<IfAbsent>().is_some();
        Ok(Box::new(S3Upload::begin(self.clone(), location.clone(), if_absent).await?))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.if_modified_since.is_some()
            || options.if_unmodified_since.is_some()
            || options.version.is_some()
        {
            return Err(unsupported("get", location, "a condition on time, or a version"));
        }
        let head = options.head;
        Ok(if head { self.look_at(location, &options).await? } else { self.open(location, options).await? })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |location: Result<Path>| {
            let store = store.clone();
            async move {
                let location = location?;
                store.delete_one(&location).await?;
                Ok(location)
            }
        };
        locations.map(delete).buffered(DELETES_MAX).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        list::objects(Arc::clone(&self.shared), prefix, None)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        list::objects(Arc::clone(&self.shared), prefix, Some(offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        Ok(list::level(&self.shared, prefix).await?)
    }

    async fn copy_opts(&self, _from: &Path, to: &Path, _options: CopyOptions) -> Result<()> {
        Err(unsupported("copy", to, "copying inside the bucket"))
    }
}

#[cfg(test)]
mod tests;
