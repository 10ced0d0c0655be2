//! Requests to a bucket from threads. Each is tried again for as long as what is wrong may pass, so that a guest or an export waits and does
//! not see an error because of a hiccup.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;
use tokio::time::Instant;

use transport_bucket::BucketError;
use transport_bucket::documents::DOCUMENT_BYTES_MAX;

use super::BucketPlace;
use crate::error::StoreError;

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Parts in which an object is read as a whole.
const PART_BYTES: u64 = 8 << 20;
const PARTS_AT_ONCE: usize = 4;

/// An error that several threads hear of.
pub(crate) type SharedError = Arc<object_store::Error>;

/// A bucket that requests go to.
#[derive(Clone)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    url: Arc<str>,
    runtime: Handle,
    patience: Duration,
}

/// Bytes of an object.
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// Where they begin.
    pub(crate) start: u64,
    pub(crate) meta: ObjectMeta,
}

/// What a task will answer.
pub(crate) struct Promise<T>(Receiver<T>);

impl<T> Promise<T> {
    /// Waits for it; nothing if the runtime has ended.
    pub(crate) fn wait(self) -> Option<T> {
        self.0.recv().ok()
    }
}

impl Objects {
    /// The objects of a bucket.
    pub(crate) fn of(place: &BucketPlace) -> Objects {
        Objects {
            store: Arc::clone(&place.objects),
            url: place.url.trim_end_matches('/').into(),
            runtime: place.runtime.clone(),
            patience: place.patience,
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The same with other patience.
    pub(crate) fn with_patience(&self, patience: Duration) -> Objects {
        Objects { patience, ..self.clone() }
    }

    /// The URL of an object whose key has the bucket's prefix.
    pub(crate) fn place(&self, prefix: &Path, key: &Path) -> PathBuf {
        let below: Vec<_> = key.prefix_match(prefix).into_iter().flatten().collect();
        let below = below.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("/");
        PathBuf::from(format!("{}/{below}", self.url))
    }

    /// Begins a task.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Promise<T> {
        let (sender, receiver) = sync_channel(1);
        self.runtime.spawn(async move {
            // Nobody waits for it any more if this fails.
            let _ = sender.send(task.await);
        });
        Promise(receiver)
    }

    /// Performs a task and waits for it. May be called on any thread that may block.
    pub(crate) fn perform<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, SharedError>> + Send + 'static,
    ) -> Result<T, SharedError> {
        self.begin(task).wait().unwrap_or_else(|| Err(ended()))
    }

    /// Reads a range of an object, or all of it.
    pub(crate) async fn get(&self, key: &Path, range: Option<GetRange>) -> Result<Piece, SharedError> {
        self.patiently(|| async {
            let options = GetOptions { range: range.clone(), ..GetOptions::default() };
            let result = match self.store.get_opts(key, options).await {
                // Servers have many words for a range behind the end of an object.
                Err(error) if passes(&error) => return self.behind_the_end(key, range.as_ref(), error).await,
                result => result?,
            };
            let (meta, range) = (result.meta.clone(), result.range.clone());
            let bytes = result.bytes().await?;
            if bytes.len() as u64 != range.end - range.start {
                return Err(generic("the answer is shorter than it says"));
            }
            Ok(Piece { bytes, start: range.start, meta })
        })
        .await
    }

    /// No bytes, if that is what there is; `error` is what the server said.
    async fn behind_the_end(
        &self,
        key: &Path,
        range: Option<&GetRange>,
        error: object_store::Error,
    ) -> object_store::Result<Piece> {
        let Some(GetRange::Bounded(range)) = range else { return Err(error) };
        match self.store.head(key).await {
            Ok(meta) if meta.size <= range.start => {
                Ok(Piece { bytes: Bytes::new(), start: range.start, meta })
            }
            _ => Err(error),
        }
    }

    /// What an object is; nothing if it does not exist.
    pub(crate) async fn head(&self, key: &Path) -> Result<Option<ObjectMeta>, SharedError> {
        found(self.patiently(|| self.store.head(key)).await)
    }

    /// Reads a document; nothing if it does not exist. Of one that is too large only so much that this is seen.
    pub(crate) async fn find(&self, key: &Path) -> Result<Option<Piece>, SharedError> {
        let range = GetRange::Bounded(0..DOCUMENT_BYTES_MAX + 1);
        found(self.get(key, Some(range)).await)
    }

    /// Reads an object as a whole, in parts, several at once; of a larger one than `bytes_max` only the beginning.
    pub(crate) async fn get_whole(&self, key: &Path, bytes_max: u64) -> Result<Bytes, SharedError> {
        let first = self.get(key, Some(GetRange::Bounded(0..PART_BYTES))).await?;
        let size_bytes = first.meta.size.min(bytes_max);
        let starts = (PART_BYTES..size_bytes).step_by(PART_BYTES as usize);
        let part = |start: u64| {
            let range = GetRange::Bounded(start..size_bytes.min(start + PART_BYTES));
            async move { self.get(key, Some(range)).await.map(|piece| piece.bytes) }
        };
        let mut parts = futures::stream::iter(starts.map(part)).buffered(PARTS_AT_ONCE);
        let mut bytes = BytesMut::from(&first.bytes[..]);
        while let Some(part) = parts.try_next().await? {
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    /// Puts an object in the place of the one that is there.
    pub(crate) async fn replace(&self, key: &Path, bytes: Bytes) -> Result<(), SharedError> {
        self.patiently(|| self.store.put(key, bytes.clone().into())).await.map(drop)
    }

    /// Lists the objects in a folder whose keys are behind `offset`.
    pub(crate) async fn list(
        &self,
        folder: &Path,
        offset: Option<&Path>,
    ) -> Result<Vec<ObjectMeta>, SharedError> {
        self.patiently(|| async {
            match offset {
                Some(offset) => self.store.list_with_offset(Some(folder), offset).try_collect().await,
                None => self.store.list(Some(folder)).try_collect().await,
            }
        })
        .await
    }

    /// Lists the folders in a folder.
    pub(crate) async fn folders(&self, folder: &Path) -> Result<Vec<Path>, SharedError> {
        let listed = self.patiently(|| self.store.list_with_delimiter(Some(folder))).await?;
        Ok(listed.common_prefixes)
    }

    /// Tries a request until it succeeds, or fails with what does not pass, or patience is at its end.
    async fn patiently<T, F>(&self, request: impl Fn() -> F) -> Result<T, SharedError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let (begin, mut pause) = (Instant::now(), PAUSE_MIN);
        loop {
            let error = match request().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !passes(&error) || begin.elapsed() + pause > self.patience {
                return Err(Arc::new(error));
            }
            let patience_seconds = self.patience.as_secs();
            tracing::warn!(%error, url = %self.url, patience_seconds, "a request to the bucket failed; it is tried again");
            tokio::time::sleep(with_jitter(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Makes [`StoreError::Bucket`] of an error.
    pub(crate) fn failed(&self, action: &'static str, place: PathBuf) -> impl Fn(SharedError) -> StoreError {
        move |source| StoreError::Bucket { action, place: place.clone(), source }
    }
}

/// Whether an error may be gone when the request is made again.
fn passes(error: &object_store::Error) -> bool {
    use object_store::Error::{Generic, JoinError};
    match error {
        // What a store says of itself is more exact.
        Generic { source, .. } => {
            source.downcast_ref::<BucketError>().is_none_or(|error| error.cause.is_passing())
        }
        JoinError { .. } => true,
        _ => false,
    }
}

fn found<T>(result: Result<T, SharedError>) -> Result<Option<T>, SharedError> {
    match result {
        Err(error) if matches!(*error, object_store::Error::NotFound { .. }) => Ok(None),
        result => result.map(Some),
    }
}

/// Between half of a pause and all of it, so that many readers do not come back at once.
fn with_jitter(pause: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    pause / 2 + pause / 2 * (now.subsec_nanos() % 1024) / 1024
}

fn generic(reason: &'static str) -> object_store::Error {
    object_store::Error::Generic { store: "bucket", source: reason.into() }
}

pub(crate) fn ended() -> SharedError {
    Arc::new(generic("the program ends"))
}
