//! A layer that counts the calls of a backend.

use std::fmt;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::{Meter, Outcome, RequestKind};
use crate::store_error::BucketError;

/// Counts the calls of `inner`, as if each were one request.
#[derive(Debug)]
pub struct MeteredStore<T> {
    inner: T,
    meter: Meter,
}

impl<T: ObjectStore> MeteredStore<T> {
    /// Counts in `meter`.
    pub fn new(inner: T, meter: Meter) -> Self {
        Self { inner, meter }
    }
}

impl<T: fmt::Display> fmt::Display for MeteredStore<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Meter {
    /// Counts a call that ended, and names the object in its error.
    fn counted<R>(&self, kind: RequestKind, sent: u64, place: &str, result: Result<R>) -> Result<R> {
        let result = result.map_err(|error| BucketError::from_store_error(kind.verb(), place, error));
        self.count(kind, sent, result.as_ref().err().map_or(Outcome::Done, Outcome::of));
        result.map_err(Into::into)
    }
}

#[async_trait]
impl<T: ObjectStore> ObjectStore for MeteredStore<T> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let bytes = payload.content_length() as u64;
        let result = self.inner.put_opts(location, payload, options).await;
        self.meter.counted(RequestKind::Put, bytes, location.as_ref(), result)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let result = self.inner.put_multipart_opts(location, options).await;
        let inner = self.meter.counted(RequestKind::Begin, 0, location.as_ref(), result)?;
        Ok(Box::new(MeteredUpload { inner, meter: self.meter.clone(), place: location.to_string() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let kind = if options.head { RequestKind::Head } else { RequestKind::Get };
        let result = self.inner.get_opts(location, options).await;
        let mut result = self.meter.counted(kind, 0, location.as_ref(), result)?;
        let meter = self.meter.clone();
        if kind == RequestKind::Get {
            result.payload = match result.payload {
                GetResultPayload::Stream(chunks) => GetResultPayload::Stream(
                    chunks.inspect_ok(move |chunk| meter.count_received(chunk.len() as u64)).boxed(),
                ),
                file @ GetResultPayload::File(..) => {
                    meter.count_received(result.range.end - result.range.start);
                    file
                }
            };
        }
        Ok(result)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let meter = self.meter.clone();
        let deleted = self.inner.delete_stream(locations);
        deleted.map(move |result| meter.counted(RequestKind::Delete, 0, "an object", result)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.meter.count(RequestKind::List, 0, Outcome::Done);
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.meter.count(RequestKind::List, 0, Outcome::Done);
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let result = self.inner.list_with_delimiter(prefix).await;
        self.meter.counted(RequestKind::List, 0, prefix.map(Path::as_ref).unwrap_or_default(), result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let result = self.inner.copy_opts(from, to, options).await;
        self.meter.counted(RequestKind::Put, 0, to.as_ref(), result)
    }
}

#[derive(Debug)]
struct MeteredUpload {
    inner: Box<dyn MultipartUpload>,
    meter: Meter,
    place: String,
}

#[async_trait]
impl MultipartUpload for MeteredUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (meter, place, bytes) = (self.meter.clone(), self.place.clone(), data.content_length() as u64);
        let part = self.inner.put_part(data);
        Box::pin(async move { meter.counted(RequestKind::Part, bytes, &place, part.await) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await;
        self.meter.counted(RequestKind::Complete, 0, &self.place, result)
    }

    async fn abort(&mut self) -> Result<()> {
        let result = self.inner.abort().await;
        self.meter.counted(RequestKind::Abort, 0, &self.place, result)
    }
}
