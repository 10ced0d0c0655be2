//! Puts a segment's file as one object.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, PutMode, PutOptions};

/// Puts segments. A store that can put large ones in parts does it better than [`WholePutter`].
#[async_trait]
pub trait SegmentPutter: fmt::Debug + Send + Sync + 'static {
    /// Puts the first `size_bytes` bytes of `file` as `key` if there is no such object, durably.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] if there is, whatever its bytes are.
    ///
    /// # Cancel safety
    /// If this is dropped, the object exists as a whole or not at all.
    async fn put_segment(&self, key: &Path, file: Arc<File>, size_bytes: u64) -> Result<(), StoreError>;
}

/// Reads a whole segment into memory and puts it at once; for stores that are not far away.
#[derive(Clone, Debug)]
pub struct WholePutter(pub Arc<dyn ObjectStore>);

#[async_trait]
impl SegmentPutter for WholePutter {
    async fn put_segment(&self, key: &Path, file: Arc<File>, size_bytes: u64) -> Result<(), StoreError> {
        let read = tokio::task::spawn_blocking(move || -> io::Result<Vec<u8>> {
            let size = usize::try_from(size_bytes).map_err(io::Error::other)?;
            let mut bytes = vec![0; size];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        });
        let bytes = read.await.map_err(|source| StoreError::JoinError { source })?;
        let bytes = bytes
            .map_err(|source| StoreError::Generic { store: "the journal's disk", source: source.into() })?;
        self.0.put_opts(key, bytes.into(), PutOptions::from(PutMode::Create)).await.map(drop)
    }
}
