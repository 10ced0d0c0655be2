//! A bucket in memory that counts what it is asked, and can be made to fail, to list late, and to lose bytes.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use journal_format::segment::SealedSegment;
use journal_format::{Generation, GroupName, Position, Timestamp};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use restore::{BucketPlace, CacheOptions, Store, StoreError};
use tokio::runtime::Runtime;
use transport_bucket::documents::{Claim, ClaimKind, ClaimSource, Document, SessionId, StoreMark};
use transport_bucket::keys::{BucketKeys, ClaimNumber, SegmentName};

/// What is below the bucket's root.
pub(crate) const PREFIX: &str = "some/prefix";

#[derive(Default)]
pub(crate) struct Server {
    memory: InMemory,
    /// Each GET of a segment: what was asked for.
    pub(crate) gets: Mutex<Vec<(Path, u64)>>,
    pub(crate) lists: AtomicU64,
    /// So many requests fail from now on.
    pub(crate) failing: AtomicU64,
    /// Keys that listings do not show.
    pub(crate) late: Mutex<BTreeSet<Path>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    fn may_fail(&self) -> Result<()> {
        let next = |left: u64| left.checked_sub(1);
        match self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Ok(_) => Err(Error::Generic { store: "test", source: "503 SlowDown".into() }),
            Err(_) => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectStore for Server {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.may_fail()?;
        self.memory.put_opts(key, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.memory.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        self.may_fail()?;
        let head = options.head;
        let result = self.memory.get_opts(key, options).await?;
        if !head && key.as_ref().ends_with(".seg") {
            let Range { start, end } = result.range;
            self.gets.lock().unwrap().push((key.clone(), end - start));
        }
        Ok(result)
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.memory.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        let late = self.late.lock().unwrap().clone();
        let shown = move |meta: &Result<ObjectMeta>| {
            let shown = meta.as_ref().is_ok_and(|meta| !late.contains(&meta.location));
            std::future::ready(shown)
        };
        self.memory.list(prefix).filter(shown).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.may_fail()?;
        self.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.memory.copy_opts(from, to, options).await
    }
}

/// A bucket and what reads it.
pub(crate) struct TestBucket {
    pub(crate) server: Arc<Server>,
    pub(crate) keys: BucketKeys,
    pub(crate) runtime: Runtime,
    pub(crate) patience: Duration,
}

impl TestBucket {
    pub(crate) fn new() -> TestBucket {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let bucket = TestBucket {
            server: Arc::default(),
            keys: BucketKeys::new(PREFIX).unwrap(),
            runtime: runtime.unwrap(),
            patience: Duration::from_secs(20),
        };
        bucket.put(&bucket.keys.store(), StoreMark {}.encode());
        bucket
    }

    /// A bucket with a history, put under one start.
    pub(crate) fn with(group: &GroupName, segments: &[SealedSegment]) -> TestBucket {
        let bucket = TestBucket::new();
        bucket.add(group, segments);
        bucket
    }

    /// Adds a group, put under one start.
    pub(crate) fn add(&self, group: &GroupName, segments: &[SealedSegment]) {
        let claim = self.claim(group, 1, None);
        segments.iter().for_each(|segment| self.put_segment(group, claim, segment));
    }

    pub(crate) fn put(&self, key: &Path, bytes: Vec<u8>) {
        self.runtime.block_on(self.server.memory.put(key, bytes.into())).unwrap();
    }

    pub(crate) fn get(&self, key: &Path) -> Option<Vec<u8>> {
        self.runtime.block_on(async {
            let found = self.server.memory.get(key).await.ok()?;
            Some(found.bytes().await.unwrap().to_vec())
        })
    }

    pub(crate) fn delete(&self, key: &Path) {
        self.runtime.block_on(self.server.memory.delete(key)).unwrap();
    }

    /// Puts a fence and a start behind the newest claim, and answers the start's number.
    pub(crate) fn claim(&self, group: &GroupName, generation: u64, behind: Option<Position>) -> ClaimNumber {
        let keys = self.keys.group(group);
        let mut number = ClaimNumber::FIRST;
        while self.get(&keys.claim(number)).is_some() {
            number = number.next();
        }
        for (number, kind, behind) in
            [(number, ClaimKind::Fence, None), (number.next(), ClaimKind::Start, behind)]
        {
            let claim = Claim {
                group: group.clone(),
                number,
                kind,
                session: SessionId([7; 16]),
                generation: Generation(generation),
                source: ClaimSource {
                    name: "site-a".parse().unwrap(),
                    fingerprint: "ab".repeat(32).parse().unwrap(),
                },
                software: "test".to_owned(),
                time: Timestamp(1),
                behind,
            };
            self.put(&keys.claim(number), claim.encode());
        }
        number.next()
    }

    pub(crate) fn segment_key(&self, group: &GroupName, claim: ClaimNumber, segment: &SealedSegment) -> Path {
        let sequence = segment.position.sequence;
        self.keys.group(group).segment(SegmentName { claim, sequence })
    }

    pub(crate) fn put_segment(&self, group: &GroupName, claim: ClaimNumber, segment: &SealedSegment) {
        self.put(&self.segment_key(group, claim, segment), segment.bytes.clone());
    }

    pub(crate) fn place(&self) -> BucketPlace {
        BucketPlace {
            url: "s3://bucket/some/prefix".to_owned(),
            objects: self.server.clone(),
            prefix: PREFIX.to_owned(),
            runtime: self.runtime.handle().clone(),
            patience: self.patience,
        }
    }

    pub(crate) fn try_open(&self, cache: &CacheOptions) -> std::result::Result<Store, StoreError> {
        Store::open_bucket(&self.place(), cache, &|_, _| {})
    }

    pub(crate) fn open(&self, cache: &std::path::Path) -> Store {
        self.try_open(&cache_in(cache)).unwrap()
    }

    /// What was read of segments since the last call: how many requests, and bytes.
    pub(crate) fn take_gets(&self) -> (usize, u64) {
        let gets = std::mem::take(&mut *self.server.gets.lock().unwrap());
        (gets.len(), gets.iter().map(|(_, bytes)| bytes).sum())
    }
}

pub(crate) fn cache_in(folder: &std::path::Path) -> CacheOptions {
    CacheOptions { folder: Some(folder.to_owned()), ..CacheOptions::default() }
}
