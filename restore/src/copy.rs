//! Copying a group's chain from one store to another. What is there already is not copied again, so that a copy that was interrupted goes on.
//!
//! A folder takes segments in as if they had arrived over the link: each is verified, durable and attached, or not there at all. In a bucket the
//! copier claims like any writer (`transport/bucket/BUCKET.md`), in the name of the group's source.

mod error;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use journal_format::{Generation, GroupName, Hash, Position, Sequence, Timestamp};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use tokio::runtime::Handle;
use transport::{Begin, Fingerprint, Inbox, PeerName, RefusalKind, SegmentDescriptor};
use transport_bucket::documents::{Claim, ClaimKind, ClaimSource, SessionId, StoreMark};
use transport_bucket::keys::{BucketKeys, ClaimNumber, SegmentName};
use transport_bucket::lister::{GroupBucket, Put, put_document};
use transport_bucket::{RoadError, put_file};

pub use self::error::CopyError;
use crate::bucket::{BucketPlace, Objects, Promise};
use crate::catalog::SegmentRow;
use crate::disk_cache::CacheOptions;
use crate::error::{StoreError, io_error};
use crate::segments::GroupWriter;
use crate::store::{Store, StoreWriter};

/// Handed to the store that takes a segment in at once.
const WRITE_BYTES: usize = 1 << 20;
/// Segments that are put into a bucket at once; each is in memory as a whole.
const PUTS_AT_ONCE: usize = 4;

/// What a copy did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The group.
    pub group: GroupName,
    /// Segments of its chain.
    pub segments: u64,
    /// Those that were copied now.
    pub copied_segments: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Up to where the target has the group.
    pub head: Option<Position>,
}

impl Copied {
    fn of(group: &GroupName, chain: &[SegmentRow]) -> Copied {
        let segments = chain.len() as u64;
        Copied { group: group.clone(), segments, copied_segments: 0, copied_bytes: 0, head: None }
    }

    fn add(&mut self, row: &SegmentRow) {
        self.copied_segments += 1;
        self.copied_bytes += row.size_bytes;
        self.head = Some(row.position);
    }
}

/// What the target lacks of a group's chain. It has the group up to `head`, which may be ahead of the chain; `theirs` answers the hash of its
/// segment at a place.
fn missing<'a>(
    group: &GroupName,
    chain: &'a [SegmentRow],
    head: Option<Position>,
    theirs: impl Fn(Sequence) -> Result<Option<Hash>, StoreError>,
) -> Result<&'a [SegmentRow], CopyError> {
    let Some(head) = head else { return Ok(chain) };
    // The first segment of a chain has sequence 1.
    let common = chain.len().min(head.sequence.0 as usize);
    let Some(row) = chain[..common].last() else { return Ok(chain) };
    if theirs(row.position.sequence)? == Some(row.position.hash) {
        return Ok(&chain[common..]);
    }
    Err(CopyError::Diverged { group: group.clone(), head })
}

/// Reads a segment as a whole and verifies it.
fn read(from: &Store, group: &GroupName, row: &SegmentRow) -> Result<Bytes, StoreError> {
    let named = row.source(group);
    from.segments().whole(&named)
}

/// Copies what a folder lacks of a group. `progress` hears bytes done and bytes in all.
///
/// # Errors
/// [`CopyError`]; what was copied until then stays, and the next copy goes on behind it.
pub fn copy_to_folder(
    from: &Store,
    writer: &StoreWriter,
    group: &GroupName,
    progress: &dyn Fn(u64, u64),
) -> Result<Copied, CopyError> {
    let chain = from.whole_chain(group)?;
    let mut copied = Copied::of(group, &chain);
    copied.head = writer.head(group);
    let missing = missing(group, &chain, copied.head, |place| writer.attached_hash(group, place))?;
    let (Some(last), Some(source)) = (missing.last(), from.segments().writer(group)?) else {
        return Ok(copied);
    };
    let refused = |refusal| CopyError::Refused { group: group.clone(), refusal };
    writer.claim(&source.name, group, last.position.generation).map_err(refused)?;
    writer.open_group(&source.name, group).map_err(refused)?;
    let (total, mut done) = (missing.iter().map(|row| row.size_bytes).sum(), 0);
    for row in missing {
        let bytes = read(from, group, row)?;
        let segment =
            SegmentDescriptor { position: row.position, parent: row.parent, size_bytes: row.size_bytes };
        match writer.begin(group, &segment).map_err(refused)? {
            Begin::Have(_) => {}
            Begin::Receive(mut sink) => {
                let mut pieces = (0u64..).step_by(WRITE_BYTES).zip(bytes.chunks(WRITE_BYTES));
                pieces.try_for_each(|(offset, piece)| sink.write_at(offset, piece)).map_err(refused)?;
                sink.commit().map_err(refused)?;
                copied.add(row);
            }
        }
        done += row.size_bytes;
        progress(done, total);
    }
    writer.closed(&source.name, group);
    Ok(copied)
}

/// How a copy to a bucket is made.
#[derive(Clone, Debug)]
pub struct BucketCopy {
    /// The bucket; it is made if there is none.
    pub place: BucketPlace,
    /// The cache for what is read of it.
    pub cache: CacheOptions,
    /// Fingerprint that the claims bear if the store that is copied from does not know the source's.
    pub fingerprint: Option<Fingerprint>,
    /// The time.
    pub now: Timestamp,
}

/// Copies what a bucket lacks of a group. `progress` hears bytes done and bytes in all.
///
/// # Errors
/// [`CopyError`]; what was copied until then stays, and the next copy goes on behind it.
pub fn copy_to_bucket(
    from: &Store,
    to: &BucketCopy,
    group: &GroupName,
    progress: &dyn Fn(u64, u64),
) -> Result<Copied, CopyError> {
    let chain = from.whole_chain(group)?;
    let target = Target::open(to, group)?;
    let (there, head) = target.head(to)?;
    let missing = missing(group, &chain, head, |place| {
        Ok(there.catalog().segment(group, place)?.map(|row| row.position.hash))
    })?;
    let mut copied = Copied::of(group, &chain);
    copied.head = head;
    let Some(last) = missing.last() else { return Ok(copied) };
    let source = target.source(from, to)?;
    let claim = target.claim(&source, last.position.generation, head, to.now)?;
    let (total, mut done) = (missing.iter().map(|row| row.size_bytes).sum(), 0);
    let mut begun: VecDeque<(&SegmentRow, Path, Promise<object_store::Result<()>>)> = VecDeque::new();
    let mut finish = |(row, key, put): (&SegmentRow, Path, Promise<object_store::Result<()>>)| {
        target.landed(&key, put)?;
        copied.add(row);
        done += row.size_bytes;
        progress(done, total);
        Ok::<_, CopyError>(())
    };
    for row in missing {
        if begun.len() == PUTS_AT_ONCE
            && let Some(first) = begun.pop_front()
        {
            finish(first)?;
        }
        let bytes = read(from, group, row)?;
        let (key, put) = target.begin(claim, row.position.sequence, bytes);
        begun.push_back((row, key, put));
    }
    begun.into_iter().try_for_each(&mut finish)?;
    target.check_unfenced(claim)?;
    Ok(copied)
}

/// A group's part of the bucket that is copied to.
struct Target {
    objects: Objects,
    bucket: GroupBucket,
    place: BucketPlace,
    group: GroupName,
}

impl Target {
    fn open(to: &BucketCopy, group: &GroupName) -> Result<Target, CopyError> {
        let place = to.place.clone();
        let objects = Objects::of(&place);
        let keys = BucketKeys::new(&place.prefix).map_err(|source| road(&place, source))?;
        let bucket = GroupBucket::new(place.objects.clone(), &keys, group.clone());
        let target = Target { objects, bucket, place, group: group.clone() };
        let (store, key) = (target.place.objects.clone(), keys.store());
        target.perform(async move { put_document(&*store, &key, &StoreMark {}).await })?;
        Ok(target)
    }

    fn perform<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, RoadError>> + Send + 'static,
    ) -> Result<T, CopyError> {
        let answered = self.objects.begin(task).wait().ok_or(CopyError::Ended)?;
        answered.map_err(|source| road(&self.place, source))
    }

    fn head(&self, to: &BucketCopy) -> Result<(Store, Option<Position>), CopyError> {
        let store = Store::open_bucket(&self.place, &to.cache, &|_, _| {})?;
        match store.group(&self.group) {
            Ok(summary) => Ok((store, summary.head)),
            Err(StoreError::UnknownGroup { .. }) => Ok((store, None)),
            Err(error) => Err(error.into()),
        }
    }

    /// In whose name the segments are put: the source of the group is not fenced by its own name.
    fn source(&self, from: &Store, to: &BucketCopy) -> Result<ClaimSource, CopyError> {
        let GroupWriter { name, fingerprint } = from
            .segments()
            .writer(&self.group)?
            .ok_or_else(|| CopyError::NoWriter { group: self.group.clone() })?;
        let fingerprint = fingerprint.or(to.fingerprint);
        let fingerprint =
            fingerprint.ok_or_else(|| CopyError::NoFingerprint { source_name: name.to_string() })?;
        Ok(ClaimSource { name, fingerprint })
    }

    /// Puts a fence and a start, and answers the start's number.
    fn claim(
        &self,
        source: &ClaimSource,
        generation: Generation,
        behind: Option<Position>,
        time: Timestamp,
    ) -> Result<ClaimNumber, CopyError> {
        let bucket = self.bucket.clone();
        let claims = self.perform(async move { bucket.claims().await })?;
        if let Some(newest) = claims.newest()
            && (newest.generation > generation
                || newest.generation == generation && newest.source.name != source.name)
        {
            return Err(self.fenced(newest.number, &newest.source.name));
        }
        let session = random_session()?;
        let mut number = claims.next();
        for kind in [ClaimKind::Fence, ClaimKind::Start] {
            let claim = Claim {
                group: self.group.clone(),
                number,
                kind,
                session,
                generation,
                source: source.clone(),
                software: env!("CARGO_PKG_VERSION").to_owned(),
                time,
                behind: behind.filter(|_| kind == ClaimKind::Start),
            };
            let bucket = self.bucket.clone();
            let put = self.perform(async move {
                match bucket.put_claim(&claim).await? {
                    Put::Created => Ok(true),
                    // The answer to our own put may have been lost.
                    Put::Existed => Ok(bucket.claim(claim.number).await?.is_some_and(|found| found == claim)),
                }
            })?;
            if !put {
                return Err(self.fenced(number, &source.name));
            }
            number = number.next();
        }
        Ok(ClaimNumber(number.0 - 1))
    }

    fn begin(
        &self,
        claim: ClaimNumber,
        sequence: Sequence,
        bytes: Bytes,
    ) -> (Path, Promise<object_store::Result<()>>) {
        let key = self.bucket.keys().segment(SegmentName { claim, sequence });
        let (store, to) = (self.place.objects.clone(), key.clone());
        let put = self.objects.begin(async move {
            let (staged, by, at) = (bytes.clone(), Arc::clone(&store), to.clone());
            let put = tokio::task::spawn_blocking(move || put_staged(&staged, &*by, &at)).await;
            match put.map_err(|source| object_store::Error::JoinError { source })? {
                Err(error @ object_store::Error::AlreadyExists { .. }) => {
                    // The answer to our own put may have been lost.
                    let found = store.get(&to).await?.bytes().await?;
                    if Hash::of(&found) == Hash::of(&bytes) { Ok(()) } else { Err(error) }
                }
                result => result,
            }
        });
        (key, put)
    }

    fn landed(&self, key: &Path, put: Promise<object_store::Result<()>>) -> Result<(), CopyError> {
        let put = put.wait().ok_or(CopyError::Ended)?;
        let failed = |source| RoadError::Store { action: "put", key: key.clone(), source };
        put.map_err(failed).map_err(|source| road(&self.place, source))
    }

    /// Whether nobody has claimed since: what was put would not be the chain.
    fn check_unfenced(&self, claim: ClaimNumber) -> Result<(), CopyError> {
        let bucket = self.bucket.clone();
        match self.perform(async move { bucket.claim(claim.next()).await })? {
            None => Ok(()),
            Some(newer) => Err(self.fenced(newer.number, &newer.source.name)),
        }
    }

    fn fenced(&self, number: ClaimNumber, by: &PeerName) -> CopyError {
        CopyError::Fenced { group: self.group.clone(), claim: number.0, by: by.to_string() }
    }
}

fn road(place: &BucketPlace, source: RoadError) -> CopyError {
    StoreError::BucketContent { url: place.url.clone(), source: Box::new(source) }.into()
}

/// Puts bytes by way of a temporary file without a name: large ones are put in parts, from a file. On a thread that may block.
fn put_staged(bytes: &[u8], store: &dyn ObjectStore, key: &Path) -> object_store::Result<()> {
    let staged = tempfile::tempfile().and_then(|mut file| file.write_all(bytes).map(|()| Arc::new(file)));
    let file = staged.map_err(|source| object_store::Error::Generic {
        store: "the folder for temporary files",
        source: source.into(),
    })?;
    let put = put_file(store, key, &file, bytes.len() as u64, PutMode::Create);
    Handle::current().block_on(put).map(drop).map_err(object_store::Error::from)
}

fn random_session() -> Result<SessionId, StoreError> {
    let path = std::path::Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(io_error("read", path))?;
    Ok(SessionId(bytes))
}

impl CopyError {
    /// The group that has to be copied first, if that is why a segment was refused.
    pub fn lacks_another_group(&self) -> bool {
        matches!(self, CopyError::Refused { refusal, .. } if refusal.kind == RefusalKind::Lacking)
    }
}
