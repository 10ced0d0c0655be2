//! Gives backends, whose multipart uploads replace what is there, those that do not.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use crate::s3::IfAbsent;

/// Folder of uploads that are not completed.
const STAGING: &str = "staging";

/// Uploads that are to be completed only if there is no such object are put below `staging/` and renamed, if nothing is there.
///
/// For directories and memory. A crash may leave a file in `staging/`, which nothing reads.
#[derive(Debug)]
pub struct StagedStore<T> {
    inner: Arc<T>,
}

impl<T: ObjectStore> StagedStore<T> {
    /// `inner` must know [`object_store::CopyMode::Create`].
    pub fn new(inner: T) -> Self {
        Self { inner: Arc::new(inner) }
    }
}

impl<T: fmt::Display> fmt::Display for StagedStore<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl<T: ObjectStore> ObjectStore for StagedStore<T> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if options.extensions.get::<IfAbsent>().is_none() {
            return self.inner.put_multipart_opts(location, options).await;
        }
        let staged = Path::from_iter([STAGING.to_owned(), format!("{:032x}", fastrand::u128(..))]);
        let upload = self.inner.put_multipart_opts(&staged, options).await?;
        let (store, to) = (Arc::clone(&self.inner), location.clone());
        Ok(Box::new(StagedUpload { store, upload, staged, to, ended: false }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct StagedUpload<T> {
    store: Arc<T>,
    upload: Box<dyn MultipartUpload>,
    staged: Path,
    to: Path,
    /// Whether `upload` has nothing more to abort.
    ended: bool,
}

#[async_trait]
impl<T: ObjectStore> MultipartUpload for StagedUpload<T> {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.upload.complete().await?;
        self.ended = true;
        let moved = self.store.copy_if_not_exists(&self.staged, &self.to).await;
        let deleted = self.store.delete(&self.staged).await;
        moved?;
        deleted?;
        let meta = self.store.head(&self.to).await?;
        Ok(PutResult { e_tag: meta.e_tag, version: meta.version, extensions: Default::default() })
    }

    async fn abort(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        self.upload.abort().await
    }
}
