//! A bucket as the place where segments come from. `transport/bucket/BUCKET.md` defines it; nothing is written here.
//!
//! Begin with `objects.rs`, how requests are made; `chain.rs` finds a group's segments, `index.rs` and `frames.rs` read them.

mod chain;
mod frames;
mod index;
mod objects;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use journal_format::segment::{
    FrameDecoder, FrameEntry, FrameKind, MAX_SEGMENT_BYTES, SegmentIndex, SegmentSource,
};
use journal_format::{FormatError, GroupName, Hash, Position, Timestamp};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::runtime::Handle;
use transport::{Fingerprint, Heartbeat, NewestCut, PublicKey, Receipt};
use transport_bucket::RoadError;
use transport_bucket::chain::Claims;
use transport_bucket::documents::{BucketHeartbeat, Checked, ClaimSource, Document, StoreMark};
use transport_bucket::keys::{BucketKeys, ClaimNumber, SegmentName};

use crate::decoding::{Decode, Decoding};
use crate::disk_cache::DiskCache;
use crate::error::StoreError;
use crate::parallel::in_parallel;
use crate::seed::SEED_PEER;
use crate::segments::{
    GroupWriter, KnownChain, ListedSegment, Listing, Segments, WantedFrame, check_whole, same_segment,
};
use frames::{FrameFetcher, Stored, Wanted};
use index::{IndexError, Outline};
use objects::SharedError;
pub(crate) use objects::{Objects, Promise};

/// Outlines that are read at once: at a round trip of 50 ms, about a thousand in a second.
const OUTLINES_AT_ONCE: usize = 64;
/// Largest range that is read with one request while a segment is verified.
const VERIFY_BYTES: u64 = 8 << 20;

/// A bucket, and how it is reached.
#[derive(Clone)]
pub struct BucketPlace {
    /// What people call it, for example `s3://bucket/prefix`.
    pub url: String,
    /// Where its objects are.
    pub objects: Arc<dyn ObjectStore>,
    /// What the keys of all its objects begin with; may be empty.
    pub prefix: String,
    /// What performs requests; it must go on for as long as the store is used.
    pub runtime: Handle,
    /// How long a request that fails is tried again before its failure is an error.
    pub patience: Duration,
}

impl std::fmt::Debug for BucketPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketPlace").field("url", &self.url).finish_non_exhaustive()
    }
}

/// How long the first request is tried again: a wrong address should be told soon.
const OPENING_PATIENCE: Duration = Duration::from_secs(20);

/// The segments of a bucket; used by many threads at once.
pub(crate) struct BucketSegments {
    objects: Objects,
    keys: BucketKeys,
    prefix: Path,
    identity: Hash,
    disk: Arc<DiskCache>,
    fetcher: FrameFetcher,
    /// The claims of each group, as they were read last.
    claims: Mutex<HashMap<GroupName, Arc<Claims>>>,
}

impl BucketSegments {
    pub(crate) fn open(place: &BucketPlace, disk: Arc<DiskCache>) -> Result<BucketSegments, StoreError> {
        let objects = Objects::of(place);
        let keys = BucketKeys::new(&place.prefix).map_err(|source| document(&objects, source))?;
        let prefix = Path::parse(&place.prefix).unwrap_or_default();
        let (opening, key) = (objects.with_patience(OPENING_PATIENCE.min(place.patience)), keys.store());
        let place = objects.place(&prefix, &key);
        let found = objects.perform(async move { opening.find(&key).await });
        let Some(mark) = found.map_err(objects.failed("read", place))? else {
            return Err(StoreError::NotABucket { url: objects.url().to_owned() });
        };
        StoreMark::decode(&keys.store(), &mark.bytes).map_err(|source| document(&objects, source))?;
        let made = mark.meta.last_modified.timestamp_nanos_opt().unwrap_or_default();
        let identity = format!("{}\n{made}\n{}", objects.url(), mark.meta.e_tag.unwrap_or_default());
        Ok(BucketSegments {
            fetcher: FrameFetcher::new(objects.clone(), Arc::clone(&disk)),
            objects,
            keys,
            prefix,
            identity: Hash::of(identity.as_bytes()),
            disk,
            claims: Mutex::default(),
        })
    }

    /// What tells this bucket from another one, and from one that was made anew at its place.
    pub(crate) fn identity(&self) -> Hash {
        self.identity
    }

    fn url_of(&self, key: &Path) -> PathBuf {
        self.objects.place(&self.prefix, key)
    }

    fn request<T>(
        &self,
        action: &'static str,
        key: &Path,
        result: Result<T, SharedError>,
    ) -> Result<T, StoreError> {
        result.map_err(|source| StoreError::Bucket { action, place: self.url_of(key), source })
    }

    fn document(&self, source: RoadError) -> StoreError {
        document(&self.objects, source)
    }

    /// The claims of a group as they were read last, or now if they were not.
    fn claims(&self, group: &GroupName) -> Result<Arc<Claims>, StoreError> {
        let known = self.claims.lock().unwrap_or_else(PoisonError::into_inner).get(group).cloned();
        known.map_or_else(|| self.read_claims(group), Ok)
    }

    /// The object of a listed segment.
    fn listed_key(&self, group: &GroupName, listed: &ListedSegment) -> Path {
        let (claim, sequence) = (ClaimNumber(listed.claim), listed.sequence);
        self.keys.group(group).segment(SegmentName { claim, sequence })
    }

    /// The object of a segment that another one, or the catalog, names.
    fn key(&self, segment: &SegmentSource) -> Result<Path, StoreError> {
        let name = self.claims(&segment.group)?.segment_of(segment.sequence);
        // Without a start there is no such object under any number.
        let name = name.unwrap_or(SegmentName { claim: ClaimNumber::FIRST, sequence: segment.sequence });
        Ok(self.keys.group(&segment.group).segment(name))
    }

    /// Begins to read the index of a segment.
    fn begin_index(&self, key: &Path, size_bytes: Option<u64>) -> Promise<Result<Outline, IndexError>> {
        let (objects, key) = (self.objects.clone(), key.clone());
        self.objects.begin(async move { index::fetch(&objects, &key, size_bytes).await })
    }

    /// Verifies what was read, and keeps it on this machine.
    fn finish_index(
        &self,
        key: &Path,
        outline: Promise<Result<Outline, IndexError>>,
    ) -> Result<SegmentIndex, StoreError> {
        let read = outline.wait().unwrap_or_else(|| Err(objects::ended().into()));
        let decoded = read.and_then(|outline| outline.decode().map(|index| (outline, index)));
        let (outline, index) = decoded.map_err(|error| match error {
            IndexError::Request(source) => {
                StoreError::Bucket { action: "read", place: self.url_of(key), source }
            }
            IndexError::Damaged(source) => StoreError::Damaged { path: self.url_of(key), source },
        })?;
        outline.keep(&index, &self.disk);
        Ok(index)
    }

    /// Decodes a frame. What is damaged on this machine's disk, or on its way, is read from the bucket again.
    fn decoded(
        &self,
        wanted: &Wanted,
        entry: &FrameEntry,
        how: Decode,
        decoding: &mut Decoding,
    ) -> Result<Vec<u8>, StoreError> {
        let mut decode = |stored: &[u8]| {
            decoding.stored().clear();
            decoding.stored().extend_from_slice(stored);
            decoding.decode(entry, how)
        };
        let read = self.request("read", &wanted.key, self.fetcher.read(wanted))?;
        let first = match &read {
            Stored::Cached(bytes) => decode(bytes),
            Stored::Fetched(bytes) => decode(bytes),
        };
        match (first, read) {
            (Ok(raw), Stored::Fetched(bytes)) => {
                self.fetcher.keep(&wanted.hash, &bytes);
                Ok(raw)
            }
            (Ok(raw), Stored::Cached(_)) => Ok(raw),
            (Err(_), _) => {
                let bytes = self.request("read", &wanted.key, self.fetcher.read_again(wanted))?;
                let raw = decode(&bytes);
                let raw =
                    raw.map_err(|source| StoreError::Damaged { path: self.url_of(&wanted.key), source })?;
                self.fetcher.keep(&wanted.hash, &bytes);
                Ok(raw)
            }
        }
    }

    /// Reads and verifies every byte of an object.
    fn verify_object(&self, key: &Path, size_bytes: Option<u64>) -> Result<SegmentIndex, StoreError> {
        let index = self.finish_index(key, self.begin_index(key, size_bytes))?;
        let mut runs: Vec<&[FrameEntry]> = Vec::new();
        let (mut from, mut bytes) = (0, 0);
        for (number, frame) in index.frames.iter().enumerate() {
            if bytes + u64::from(frame.stored_bytes) > VERIFY_BYTES && number > from {
                runs.push(&index.frames[from..number]);
                (from, bytes) = (number, 0);
            }
            bytes += u64::from(frame.stored_bytes);
        }
        if from < index.frames.len() {
            runs.push(&index.frames[from..]);
        }
        in_parallel(runs.len(), |number| self.verify_run(key, runs[number]))?;
        Ok(index)
    }

    fn verify_run(&self, key: &Path, run: &[FrameEntry]) -> Result<(), StoreError> {
        let (start, last) = (run[0].offset, &run[run.len() - 1]);
        let end = last.offset + u64::from(last.stored_bytes);
        let (objects, wanted) = (self.objects.clone(), key.clone());
        let range = object_store::GetRange::Bounded(start..end);
        let piece = self.objects.perform(async move { objects.get(&wanted, Some(range)).await });
        let piece = self.request("read", key, piece)?;
        let mut decoder = FrameDecoder::default();
        for frame in run {
            let from = (frame.offset - start) as usize;
            let stored = piece.bytes.get(from..from + frame.stored_bytes as usize).unwrap_or_default();
            let damaged = |source| StoreError::Damaged { path: self.url_of(key), source };
            frame.decode_hashed(&mut decoder, stored).map_err(damaged)?;
            if frame.kind != FrameKind::Plain {
                // Who looks at what the differences stand for reads them again.
                self.fetcher.keep(&frame.stored_hash, stored);
            }
        }
        Ok(())
    }

    /// A segment of a generation that its claim does not have cannot be of the chain.
    fn check_generation(
        &self,
        group: &GroupName,
        key: &Path,
        index: SegmentIndex,
    ) -> Result<SegmentIndex, StoreError> {
        let claims = self.claims(group)?;
        let start = claims.start_of(index.header.sequence);
        if start.is_some_and(|start| index.header.generation <= start.generation) {
            return Ok(index);
        }
        let rule = "its generation is higher than that of the claim that it was put under";
        let source = FormatError::Rule { part: "the segment's header", rule };
        Err(StoreError::Damaged { path: self.url_of(key), source })
    }
}

fn document(objects: &Objects, source: RoadError) -> StoreError {
    StoreError::BucketContent { url: objects.url().to_owned(), source: Box::new(source) }
}

/// The position that the recovery site's word in a bucket names, if the identity with this fingerprint gave it.
pub(crate) fn checked_position(
    place: &BucketPlace,
    group: &GroupName,
    signer: Fingerprint,
) -> Result<Option<Position>, StoreError> {
    let objects = Objects::of(place);
    let keys = BucketKeys::new(&place.prefix).map_err(|source| document(&objects, source))?;
    let (key, prefix) = (keys.group(group).checked(), Path::parse(&place.prefix).unwrap_or_default());
    let (requests, wanted) = (objects.clone(), key.clone());
    let found = objects.perform(async move { requests.find(&wanted).await });
    let found = found.map_err(objects.failed("read", objects.place(&prefix, &key)))?;
    // One that is damaged, or another site's, is replaced.
    Ok(found.and_then(|piece| {
        let said = Checked::decode(&key, &piece.bytes).ok()?;
        Some(said.receipt(&key, group, signer).ok()?.position)
    }))
}

/// Puts the recovery site's word of how far it has read and verified a group, in the place of the one before.
pub(crate) fn put_checked(place: &BucketPlace, receipt: &Receipt, key: &PublicKey) -> Result<(), StoreError> {
    let objects = Objects::of(place);
    let keys = BucketKeys::new(&place.prefix).map_err(|source| document(&objects, source))?;
    let (to, bytes) = (keys.group(&receipt.group).checked(), Checked::new(receipt, key).encode());
    let prefix = Path::parse(&place.prefix).unwrap_or_default();
    let url = objects.place(&prefix, &to);
    let requests = objects.clone();
    let put = objects.perform(async move { requests.replace(&to, bytes.into()).await });
    put.map_err(objects.failed("put", url))
}

impl Segments for BucketSegments {
    fn location(&self) -> String {
        self.objects.url().to_owned()
    }

    fn groups(&self) -> Result<Vec<GroupName>, StoreError> {
        let (objects, folder) = (self.objects.clone(), self.keys.groups());
        let folders = self.objects.perform(async move { objects.folders(&folder).await });
        let folders = self.request("list", &self.keys.groups(), folders)?;
        let mut groups: Vec<GroupName> =
            folders.iter().filter_map(|folder| self.keys.group_of(folder)).collect();
        groups.sort();
        Ok(groups)
    }

    fn list(&self, group: &GroupName, known: Option<KnownChain>) -> Result<Listing, StoreError> {
        self.list_chain(group, known)
    }

    fn at_once(&self) -> usize {
        4 * OUTLINES_AT_ONCE
    }

    fn read_listed(
        &self,
        group: &GroupName,
        listed: &[ListedSegment],
    ) -> Vec<Result<SegmentIndex, StoreError>> {
        let (mut begun, mut read) = (VecDeque::new(), Vec::with_capacity(listed.len()));
        for segment in listed {
            if begun.len() == OUTLINES_AT_ONCE
                && let Some((key, promise)) = begun.pop_front()
            {
                read.push(self.finish_index(&key, promise));
            }
            let key = self.listed_key(group, segment);
            let promise = self.begin_index(&key, Some(segment.size_bytes));
            begun.push_back((key, promise));
        }
        read.extend(begun.into_iter().map(|(key, promise)| self.finish_index(&key, promise)));
        let keys = listed.iter().map(|segment| self.listed_key(group, segment));
        let checked = read.into_iter().zip(keys);
        checked.map(|(index, key)| self.check_generation(group, &key, index?)).collect()
    }

    fn index(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError> {
        let mut read = None;
        self.indexes(std::slice::from_ref(segment), &mut |index| {
            read = Some(index);
            Ok(())
        })?;
        Ok(read.expect("what was asked for was handed over, or there was an error"))
    }

    fn indexes(
        &self,
        segments: &[SegmentSource],
        take: &mut dyn FnMut(SegmentIndex) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        enum Begun {
            Kept(Box<SegmentIndex>),
            Asked(SegmentSource, Path, Promise<Result<Outline, IndexError>>),
        }
        let begin = |segment: &SegmentSource| {
            if let Some(index) = index::kept(&self.disk, &segment.hash) {
                return Ok(Begun::Kept(Box::new(index)));
            }
            let key = self.key(segment)?;
            let promise = self.begin_index(&key, None);
            Ok::<_, StoreError>(Begun::Asked(segment.clone(), key, promise))
        };
        let mut finish = |begun| match begun {
            Begun::Kept(index) => take(*index),
            Begun::Asked(segment, key, promise) => {
                let index = self.finish_index(&key, promise)?;
                same_segment(&segment, &index, || self.url_of(&key))?;
                take(index)
            }
        };
        let mut begun: VecDeque<Begun> = VecDeque::new();
        for segment in segments {
            if begun.len() == OUTLINES_AT_ONCE
                && let Some(first) = begun.pop_front()
            {
                finish(first)?;
            }
            begun.push_back(begin(segment)?);
        }
        begun.into_iter().try_for_each(finish)
    }

    fn frame(
        &self,
        frame: &WantedFrame<'_>,
        how: Decode,
        decoding: &mut Decoding,
    ) -> Result<Vec<u8>, StoreError> {
        let wanted = Wanted::new(&self.key(frame.segment)?, frame.entry);
        // It may come from this machine's disk now, and from the bucket the next time.
        self.decoded(&wanted, frame.entry, how.max(Decode::Verified), decoding)
    }

    fn reads_ahead(&self) -> bool {
        true
    }

    fn expect(&self, frames: &[WantedFrame<'_>]) {
        // What cannot be said ahead is an error when it is read.
        let wanted = |frame: &WantedFrame<'_>| Some(Wanted::new(&self.key(frame.segment).ok()?, frame.entry));
        self.fetcher.expect(frames.iter().filter_map(wanted).collect());
    }

    fn verify(&self, group: &GroupName, listed: &ListedSegment) -> Result<SegmentIndex, StoreError> {
        self.verify_object(&self.listed_key(group, listed), Some(listed.size_bytes))
    }

    fn verify_named(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError> {
        let key = self.key(segment)?;
        let index = self.verify_object(&key, None)?;
        same_segment(segment, &index, || self.url_of(&key))?;
        Ok(index)
    }

    fn whole(&self, segment: &SegmentSource) -> Result<Bytes, StoreError> {
        let key = self.key(segment)?;
        let (objects, wanted) = (self.objects.clone(), key.clone());
        let read = self.objects.perform(async move { objects.get_whole(&wanted, MAX_SEGMENT_BYTES).await });
        let bytes = self.request("read", &key, read)?;
        check_whole(segment, &bytes, || self.url_of(&key))?;
        Ok(bytes)
    }

    fn writer(&self, group: &GroupName) -> Result<Option<GroupWriter>, StoreError> {
        let claims = self.claims(group)?;
        Ok(claims.newest().map(|claim| {
            let ClaimSource { name, fingerprint } = claim.source.clone();
            GroupWriter { name, fingerprint: Some(fingerprint) }
        }))
    }

    fn place(&self, segment: &SegmentSource) -> PathBuf {
        let key = self.key(segment).unwrap_or_else(|_| self.keys.group(&segment.group).segments());
        self.url_of(&key)
    }

    fn place_listed(&self, group: &GroupName, listed: &ListedSegment) -> PathBuf {
        self.url_of(&self.listed_key(group, listed))
    }

    fn seed_of(&self, group: &GroupName) -> Result<Option<GroupName>, StoreError> {
        let Some(of) = group.seed_of() else { return Ok(None) };
        let claims = self.claims(group)?;
        let by_seed = claims.newest().is_some_and(|claim| claim.source.name.as_str() == SEED_PEER);
        Ok(by_seed.then_some(of))
    }

    fn heartbeat(&self, group: &GroupName) -> Result<Option<(Heartbeat, Timestamp)>, StoreError> {
        let key = self.keys.group(group).heartbeat();
        let (objects, wanted) = (self.objects.clone(), key.clone());
        let found = self.objects.perform(async move { objects.find(&wanted).await });
        let Some(piece) = self.request("read", &key, found)? else { return Ok(None) };
        let said = BucketHeartbeat::decode(&key, &piece.bytes).map_err(|source| self.document(source))?;
        let claims = self.claims(group)?;
        // A writer that was fenced may have said it last.
        if said.group != *group || claims.newest_start().is_some_and(|start| said.number < start.number) {
            return Ok(None);
        }
        let at = piece.meta.last_modified.timestamp_nanos_opt().unwrap_or(i64::MAX);
        let newest_cut = said.newest_cut.map(|cut| NewestCut { epoch: cut.epoch, time: cut.time });
        let BucketHeartbeat { now, backlog_bytes, backlog_segments, state, .. } = said;
        Ok(Some((Heartbeat { now, newest_cut, backlog_bytes, backlog_segments, state }, Timestamp(at))))
    }
}
