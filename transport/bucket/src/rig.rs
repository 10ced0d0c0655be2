//! For tests: a journal in memory with real segments, a store that fails as it is told to, and a reader.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use journal_format::segment::{BuildOptions, Header, SegmentBuilder, SegmentMeta, VolumeKind, VolumeRecord};
use journal_format::{Epoch, Generation, GroupName, Hash, Position, Sequence, Timestamp};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use tokio::sync::{Notify, watch};
use transport::{
    Heartbeat, LinkState, NewestCut, Outbox, PublicKey, Refusal, RefusalKind, SegmentDescriptor,
};

use crate::chain::{ChainWalk, Listed};
use crate::documents::ClaimSource;
use crate::keys::BucketKeys;
use crate::lister::GroupBucket;

/// Longer than anything that is waited for takes by the stopped clock.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn group() -> GroupName {
    "db".parse().unwrap()
}

pub(crate) fn keys() -> BucketKeys {
    BucketKeys::new("p").unwrap()
}

pub(crate) fn source(name: &str) -> ClaimSource {
    ClaimSource { name: name.parse().unwrap(), fingerprint: PublicKey::from_bytes([1; 32]).fingerprint() }
}

/// A sealed segment behind `parent`; `content` makes it differ from others of its place.
pub(crate) fn segment(
    group: &GroupName,
    generation: Generation,
    parent: Option<Position>,
    content: u8,
) -> (SegmentDescriptor, Vec<u8>) {
    let sequence = parent.map_or(Sequence(1), |parent| parent.sequence.next());
    let header = Header {
        group: group.clone(),
        generation,
        sequence,
        first_epoch: Epoch(sequence.0),
        last_epoch: Epoch(sequence.0),
        part: 0,
        more_parts: false,
        sealed_at: Timestamp(0),
        parent: parent.map_or(Hash::ZERO, |parent| parent.hash),
    };
    let volume = VolumeRecord {
        name: "disk0".parse().unwrap(),
        kind: VolumeKind::Disk,
        size_bytes: 1 << 20,
        joining: false,
    };
    let meta = SegmentMeta { volumes: vec![volume], point: None, definition: None };
    let mut builder = SegmentBuilder::new(BuildOptions::default());
    builder.add_data(0, 0, &[content; 512]);
    let sealed = builder.finish(&header, &meta);
    let size_bytes = sealed.bytes.len() as u64;
    let descriptor = SegmentDescriptor { position: sealed.position, parent: header.parent, size_bytes };
    (descriptor, sealed.bytes)
}

#[derive(Default)]
pub(crate) struct JournalState {
    pub(crate) generation: Generation,
    /// What was trimmed, or gone on behind.
    pub(crate) base: Option<Position>,
    pub(crate) segments: Vec<(SegmentDescriptor, Vec<u8>)>,
    /// Everything that was ever sealed on this timeline, and what it went on behind.
    pub(crate) timeline: BTreeMap<Sequence, Position>,
    pub(crate) receipts: Vec<Position>,
    pub(crate) told_heads: Vec<Option<Position>>,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) links: Vec<LinkState>,
    pub(crate) rebases: u64,
    pub(crate) heartbeats: u64,
}

impl JournalState {
    fn head(&self) -> Option<Position> {
        self.segments.last().map(|(segment, _)| segment.position).or(self.base)
    }

    fn contains(&self, position: Position) -> bool {
        self.base == Some(position) || self.segments.iter().any(|(segment, _)| segment.position == position)
    }

    fn oldest(&self) -> Sequence {
        let oldest = self.segments.first().map(|(segment, _)| segment.position.sequence);
        oldest.unwrap_or(self.base.map_or(Sequence(1), |base| base.sequence.next()))
    }

    fn trim(&mut self, position: Position) {
        self.segments.retain(|(segment, _)| segment.position.sequence > position.sequence);
        self.base = Some(position);
    }

    /// By receipts, or as the head that a session began with.
    pub(crate) fn received(&self) -> u64 {
        self.base.map_or(0, |position| position.sequence.0)
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.refusals.iter().any(|refusal| refusal.kind == RefusalKind::Fenced)
    }
}

/// A journal that decides as `journal::Group` does.
pub(crate) struct TestJournal {
    group: GroupName,
    content: u8,
    wake: Notify,
    state: watch::Sender<JournalState>,
}

impl TestJournal {
    /// `content` makes its segments differ from those of other journals.
    pub(crate) fn new(generation: u64, content: u8) -> Arc<Self> {
        Self::of("db", generation, content)
    }

    pub(crate) fn of(group: &str, generation: u64, content: u8) -> Arc<Self> {
        let state = JournalState { generation: Generation(generation), ..JournalState::default() };
        let group = group.parse().unwrap();
        Arc::new(Self { group, content, wake: Notify::new(), state: watch::channel(state).0 })
    }

    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut JournalState) -> R) -> R {
        let mut result = None;
        self.state.send_modify(|state| result = Some(change(state)));
        result.unwrap()
    }

    pub(crate) fn read<R>(&self, read: impl FnOnce(&JournalState) -> R) -> R {
        read(&self.state.borrow())
    }

    pub(crate) async fn until(&self, what: &str, condition: impl FnMut(&JournalState) -> bool) {
        let mut receiver = self.state.subscribe();
        let reached = tokio::time::timeout(PATIENCE, receiver.wait_for(condition)).await;
        let links = self.read(|state| format!("{:?}", state.links.last()));
        assert!(matches!(reached, Ok(Ok(_))), "waited in vain until {what}: {links}");
    }

    pub(crate) async fn until_received(&self, sequence: u64) {
        self.until("everything is received", |state| state.received() >= sequence).await;
    }

    pub(crate) fn seal(&self, count: u64) {
        self.change(|state| {
            for _ in 0..count {
                let sealed = segment(&self.group, state.generation, state.head(), self.content);
                state.timeline.insert(sealed.0.position.sequence, sealed.0.position);
                state.segments.push(sealed);
            }
        });
        self.wake.notify_one();
    }
}

impl Outbox for TestJournal {
    fn group(&self) -> &GroupName {
        &self.group
    }

    fn generation(&self) -> Generation {
        self.read(|state| state.generation)
    }

    fn head(&self) -> Option<Position> {
        self.read(JournalState::head)
    }

    fn oldest(&self) -> Sequence {
        self.read(JournalState::oldest)
    }

    fn site_head(&self, head: Option<Position>) -> Result<Sequence, Refusal> {
        self.change(|state| {
            state.told_heads.push(head);
            match head {
                Some(site) if site.generation > state.generation => {
                    Err(Refusal::new(RefusalKind::Fenced, "a newer generation", ""))
                }
                Some(site) if state.contains(site) => {
                    state.trim(site);
                    Ok(site.sequence.next())
                }
                None if state.base.is_none() => Ok(Sequence(1)),
                _ => {
                    state.segments.clear();
                    state.base = head;
                    state.timeline.retain(|sequence, _| head.is_some_and(|head| *sequence <= head.sequence));
                    state.timeline.extend(head.map(|head| (head.sequence, head)));
                    state.rebases += 1;
                    Ok(head.map_or(Sequence(1), |head| head.sequence.next()))
                }
            }
        })
    }

    fn pending(&self, from: Sequence, limit: usize) -> Vec<SegmentDescriptor> {
        self.read(|state| {
            let later = state.segments.iter().filter(|(segment, _)| segment.position.sequence >= from);
            later.map(|(segment, _)| *segment).take(limit).collect()
        })
    }

    fn open(&self, sequence: Sequence) -> io::Result<File> {
        let bytes = self.read(|state| {
            let found = state.segments.iter().find(|(segment, _)| segment.position.sequence == sequence);
            found.map(|(_, bytes)| bytes.clone())
        });
        let mut file = tempfile::tempfile()?;
        file.write_all(&bytes.ok_or(io::ErrorKind::NotFound)?)?;
        Ok(file)
    }

    fn wake(&self) -> &Notify {
        &self.wake
    }

    fn receipt(&self, position: Position) {
        self.change(|state| {
            assert!(state.contains(position), "a receipt is for what was sealed");
            state.trim(position);
            state.receipts.push(position);
        });
    }

    fn heartbeat(&self) -> Heartbeat {
        self.change(|state| {
            state.heartbeats += 1;
            Heartbeat {
                now: Timestamp(state.heartbeats as i64),
                newest_cut: Some(NewestCut { epoch: Epoch(7), time: Timestamp(8) }),
                backlog_bytes: 10,
                backlog_segments: state.segments.len() as u64,
                state: "é".repeat(5000),
            }
        })
    }

    fn refused(&self, refusal: &Refusal) {
        self.change(|state| state.refusals.push(refusal.clone()));
    }

    fn link(&self, link: LinkState) {
        self.change(|state| state.links.push(link));
    }
}

/// How often a store fails, out of 256 requests each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Answered 503 without being done.
    pub(crate) refused: u8,
    /// A put is done, and its answer is lost.
    pub(crate) lost: u8,
    /// A put is done, its answer is lost, and it is tried again, as a store that retries by itself does.
    pub(crate) repeated: u8,
    /// An object is not shown in a listing.
    pub(crate) unlisted: u8,
    /// A request takes longer than others.
    pub(crate) slow: u8,
}

/// Passes requests on to another store, if it is not told to fail.
#[derive(Debug)]
pub(crate) struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    faults: Mutex<Faults>,
    seed: AtomicU64,
    requests: watch::Sender<Vec<String>>,
}

impl FaultyStore {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, seed: u64, faults: Faults) -> Arc<Self> {
        let requests = watch::channel(Vec::new()).0;
        Arc::new(Self { inner, faults: Mutex::new(faults), seed: AtomicU64::new(seed), requests })
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    fn faults(&self) -> Faults {
        *self.faults.lock().unwrap()
    }

    /// All requests so far, as `VERB KEY`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.borrow().clone()
    }

    pub(crate) async fn until_requests(&self, count: usize) {
        self.requests.subscribe().wait_for(|requests| requests.len() >= count).await.unwrap();
    }

    fn chance(&self, of_256: u8) -> bool {
        of_256 > 0 && random(&self.seed) % 256 < u64::from(of_256)
    }

    async fn request(&self, verb: &str, key: &Path) -> StoreResult<()> {
        self.requests.send_modify(|requests| requests.push(format!("{verb} {key}")));
        if self.chance(self.faults().slow) {
            tokio::time::sleep(Duration::from_millis(random(&self.seed) % 100)).await;
        }
        if self.chance(self.faults().refused) { Err(error("503 SlowDown")) } else { Ok(()) }
    }
}

pub(crate) fn random(seed: &AtomicU64) -> u64 {
    let mut mixed = seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) >> 7
}

fn error(text: &'static str) -> StoreError {
    StoreError::Generic { store: "faulty", source: text.into() }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.request("PUT", key).await?;
        let put = self.inner.put_opts(key, payload.clone(), options.clone()).await;
        if self.chance(self.faults().lost) {
            return Err(error("the answer was lost"));
        }
        if self.chance(self.faults().repeated) {
            return self.inner.put_opts(key, payload, options).await;
        }
        put
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.request(if options.head { "HEAD" } else { "GET" }, key).await?;
        self.inner.get_opts(key, options).await
    }

    async fn get_ranges(&self, key: &Path, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        self.request("GET", key).await?;
        self.inner.get_ranges(key, ranges).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.list_with_offset(prefix, &Path::default())
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let key = prefix.cloned().unwrap_or_default();
        self.requests.send_modify(|requests| requests.push(format!("LIST {key}")));
        if self.chance(self.faults().refused) {
            return futures::stream::iter([Err(error("503 SlowDown"))]).boxed();
        }
        let (seed, unlisted) = (AtomicU64::new(random(&self.seed)), self.faults().unlisted);
        let shown = move |_: &ObjectMeta| random(&seed) % 256 >= u64::from(unlisted);
        let listed = self.inner.list_with_offset(prefix, offset);
        listed.try_filter(move |object| futures::future::ready(shown(object))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Reads the chain as a reader does, step by step.
pub(crate) async fn chain(store: &Arc<dyn ObjectStore>) -> Vec<Position> {
    chain_of(store, &group()).await
}

pub(crate) async fn chain_of(store: &Arc<dyn ObjectStore>, group: &GroupName) -> Vec<Position> {
    let bucket = GroupBucket::new(store.clone(), &keys(), group.clone());
    let claims = bucket.claims().await.unwrap();
    let mut listed = Listed::default();
    bucket.list_segments(&claims, Sequence(0), &mut listed).await.unwrap();
    let mut walk = ChainWalk::behind(group.clone(), None);
    let mut chain = Vec::new();
    for candidate in listed.run(&claims, Sequence(1)) {
        let (header, trailer) = bucket.outline(candidate).await.unwrap();
        chain.push(walk.step(&claims, candidate.name, &header, &trailer).unwrap());
    }
    chain
}
