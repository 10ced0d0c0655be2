//! Puts a file as one object: at once if it is small, else in parts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::FuturesUnordered;
use object_store::path::Path;
use object_store::{
    Extensions, MultipartUpload, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutResult,
};

use crate::s3::IfAbsent;
use crate::store_error::{BucketError, Cause};

/// Most bytes that are put at once.
pub(crate) const PUT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Size of all parts but the last.
pub(crate) const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Parts of one file that are in memory at once.
const PARTS_MAX: usize = 4;

/// Puts the first `bytes` bytes of `file` as `key`; `if_absent` as [`PutMode::Create`] does. The file must not change meanwhile.
///
/// # Errors
/// [`Cause::Exists`] if it may not replace what is there; anything that [`BucketError`] says. Nothing is left then but what a
/// server that cannot be reached keeps of an upload.
///
/// # Cancel safety
/// If this is dropped, the upload is aborted in the background; the object may exist, whole, or not.
pub async fn put_file(
    store: &dyn ObjectStore,
    key: &Path,
    file: &Arc<File>,
    bytes: u64,
    mode: PutMode,
) -> Result<PutResult, BucketError> {
    let failed = |error| BucketError::from_store_error("put", key.as_ref(), error);
    if bytes <= PUT_BYTES_MAX {
        let content = read(file, 0, bytes, key).await?;
        return store.put_opts(key, content.into(), PutOptions::from(mode)).await.map_err(failed);
    }
    let options =
        PutMultipartOptions { extensions: extensions(&mode, key)?, ..PutMultipartOptions::default() };
    let mut upload = store.put_multipart_opts(key, options).await.map_err(failed)?;
    match put_parts(&mut *upload, key, file, bytes).await {
        Ok(result) => Ok(result),
        Err(error) => {
            if let Err(abort) = upload.abort().await {
                tracing::debug!(error = %abort, key = key.as_ref(), "an upload that failed is not aborted");
            }
            Err(error)
        }
    }
}

fn extensions(mode: &PutMode, key: &Path) -> Result<Extensions, BucketError> {
    let mut extensions = Extensions::default();
    match mode {
        PutMode::Overwrite => {}
        PutMode::Create => {
            extensions.insert(IfAbsent);
        }
        PutMode::Update(_) => {
            let what = "replacing a version of an object in parts".into();
            return Err(BucketError::new("put", key.as_ref(), Cause::NotSupported { what }));
        }
    }
    Ok(extensions)
}

async fn put_parts(
    upload: &mut dyn MultipartUpload,
    key: &Path,
    file: &Arc<File>,
    bytes: u64,
) -> Result<PutResult, BucketError> {
    let failed = |error| BucketError::from_store_error("put", key.as_ref(), error);
    let mut under_way = FuturesUnordered::new();
    let mut offset = 0;
    while offset < bytes {
        if under_way.len() == PARTS_MAX {
            under_way.try_next().await.map_err(failed)?;
        }
        let content = read(file, offset, PART_BYTES.min(bytes - offset), key).await?;
        offset += content.len() as u64;
        under_way.push(upload.put_part(content.into()));
    }
    under_way.try_collect::<()>().await.map_err(failed)?;
    upload.complete().await.map_err(failed)
}

async fn read(file: &Arc<File>, offset: u64, bytes: u64, key: &Path) -> Result<Bytes, BucketError> {
    let file = Arc::clone(file);
    let reading = tokio::task::spawn_blocking(move || {
        let mut content = vec![0; usize::try_from(bytes).expect("at most 16 MiB")];
        file.read_exact_at(&mut content, offset).map(|()| content)
    });
    let content = reading.await.expect("reading does not panic").map_err(|error| {
        let reason = format!("the file cannot be read at byte {offset}");
        BucketError::new("put", key.as_ref(), Cause::Local { reason }).with_source(error)
    })?;
    Ok(content.into())
}
