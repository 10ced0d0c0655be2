//! Reads a group's part of a bucket: documents, claims, what segments there are, and their outlines.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use journal_format::segment::{HEADER_BYTES, Header, TRAILER_BYTES, Trailer};
use journal_format::{FormatError, GroupName, Position, Sequence};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::chain::{Candidate, Claims, Listed};
use crate::documents::{Claim, ClaimKind, DOCUMENT_BYTES_MAX, Document};
use crate::error::RoadError;
use crate::keys::{BucketKeys, ClaimNumber, GroupKeys, SegmentName};

/// Claims that are read at once.
const CLAIMS_AT_ONCE: usize = 16;

/// Whether something was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Created,
    /// Something was there before.
    Existed,
}

/// One group in a bucket. Cheap to copy.
#[derive(Clone)]
pub struct GroupBucket {
    store: Arc<dyn ObjectStore>,
    group: GroupName,
    keys: GroupKeys,
}

impl fmt::Debug for GroupBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupBucket").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl GroupBucket {
    /// The part of `group` of the bucket behind `store`.
    pub fn new(store: Arc<dyn ObjectStore>, keys: &BucketKeys, group: GroupName) -> Self {
        Self { keys: keys.group(&group), store, group }
    }

    /// The names of its objects.
    pub fn keys(&self) -> &GroupKeys {
        &self.keys
    }

    /// Reads all claims from the first to the newest.
    ///
    /// # Errors
    /// [`RoadError`].
    pub async fn claims(&self) -> Result<Claims, RoadError> {
        let mut claims = Claims::new(self.group.clone());
        self.read_claims(&mut claims, self.listed_claim().await?).await?;
        Ok(claims)
    }

    /// Reads the newest claims, back to the newest start.
    ///
    /// # Errors
    /// [`RoadError`].
    pub async fn newest_claims(&self) -> Result<Claims, RoadError> {
        let mut newest_first = Vec::new();
        let mut number = self.listed_claim().await?;
        while let Some(at) = number {
            let claim = self.listed(at).await?;
            number =
                (claim.kind != ClaimKind::Start && at > ClaimNumber::FIRST).then(|| ClaimNumber(at.0 - 1));
            newest_first.push(claim);
        }
        let first = newest_first.last().map_or(ClaimNumber::FIRST, |claim| claim.number);
        let mut claims = Claims::since(self.group.clone(), first);
        newest_first.into_iter().rev().try_for_each(|claim| claims.push(claim))?;
        self.read_new_claims(&mut claims).await?;
        Ok(claims)
    }

    /// Reads the claims that were put since, each by its name.
    ///
    /// # Errors
    /// [`RoadError`].
    pub async fn read_new_claims(&self, claims: &mut Claims) -> Result<(), RoadError> {
        while let Some(claim) = self.claim(claims.next()).await? {
            claims.push(claim)?;
        }
        Ok(())
    }

    /// Reads a claim; none if there is none of this number.
    ///
    /// # Errors
    /// [`RoadError`].
    pub async fn claim(&self, number: ClaimNumber) -> Result<Option<Claim>, RoadError> {
        read_document(&*self.store, &self.keys.claim(number)).await
    }

    /// Puts a claim if there is none of its number.
    ///
    /// # Errors
    /// [`RoadError`].
    pub async fn put_claim(&self, claim: &Claim) -> Result<Put, RoadError> {
        put_document(&*self.store, &self.keys.claim(claim.number), claim).await
    }

    /// The newest claim of a listing.
    async fn listed_claim(&self) -> Result<Option<ClaimNumber>, RoadError> {
        let folder = self.keys.claims();
        let keys = self.store.list(Some(&folder)).map_ok(|object| self.keys.claim_number(&object.location));
        let newest = keys.try_fold(None, |newest, number| async move { Ok(newest.max(number)) });
        newest.await.map_err(failed("list", &folder))
    }

    /// A claim that was listed, or is before one that was.
    async fn listed(&self, number: ClaimNumber) -> Result<Claim, RoadError> {
        let rule = "it is not there, although a later one is";
        let missing = || RoadError::Claims { group: self.group.clone(), number, rule };
        self.claim(number).await?.ok_or_else(missing)
    }

    async fn read_claims(&self, claims: &mut Claims, last: Option<ClaimNumber>) -> Result<(), RoadError> {
        let numbers = claims.next().0..=last.map_or(0, |last| last.0);
        let read = stream::iter(numbers).map(|number| self.listed(ClaimNumber(number)));
        let mut read = read.buffered(CLAIMS_AT_ONCE);
        while let Some(claim) = read.try_next().await? {
            claims.push(claim)?;
        }
        drop(read);
        self.read_new_claims(claims).await
    }

    /// Lists the segments that may be the chain's behind `read` and are not known yet, and asks for the first that is missing by its name, until
    /// one does not exist.
    ///
    /// # Errors
    /// [`RoadError`].
    pub async fn list_segments(
        &self,
        claims: &Claims,
        read: Sequence,
        listed: &mut Listed,
    ) -> Result<(), RoadError> {
        let folder = self.keys.segments();
        let Some(behind) = listed.list_behind(claims, read) else { return Ok(()) };
        let mut objects = self.store.list_with_offset(Some(&folder), &self.keys.segment(behind));
        while let Some(object) = objects.try_next().await.map_err(failed("list", &folder))? {
            if let Some(name) = self.keys.segment_name(&object.location) {
                listed.insert(name, object.size);
            }
        }
        self.fill_hole(claims, read, listed).await
    }

    /// Asks for the first segment behind `read` that is not known by its name, until one does not exist: enough for a reader that waits for the
    /// next segment, without a listing.
    ///
    /// # Errors
    /// [`RoadError`].
    pub async fn fill_hole(
        &self,
        claims: &Claims,
        read: Sequence,
        listed: &mut Listed,
    ) -> Result<(), RoadError> {
        let mut from = read.next();
        while let Some(hole) = listed.hole(claims, from) {
            let Some(size_bytes) = self.segment_size(hole).await? else { break };
            listed.insert(hole, size_bytes);
            from = hole.sequence;
        }
        Ok(())
    }

    /// Size of a segment's object; none if it does not exist.
    async fn segment_size(&self, name: SegmentName) -> Result<Option<u64>, RoadError> {
        let key = self.keys.segment(name);
        match self.store.head(&key).await {
            Ok(object) => Ok(Some(object.size)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed("look at", &key)(source)),
        }
    }

    /// Reads what a segment says that it is: header and trailer, which are verified together.
    ///
    /// # Errors
    /// [`RoadError::Segment`] if they are damaged, [`RoadError::Store`] if they cannot be read.
    pub async fn outline(&self, segment: Candidate) -> Result<(Header, Trailer), RoadError> {
        let key = self.keys.segment(segment.name);
        let damaged = |source| RoadError::Segment { key: key.clone(), source };
        let (header_bytes, trailer_bytes) = (HEADER_BYTES as u64, TRAILER_BYTES as u64);
        let size = segment.size_bytes;
        if size < header_bytes + trailer_bytes {
            let (part, expected) = ("the segment", header_bytes + trailer_bytes);
            return Err(damaged(FormatError::Truncated { part, expected, actual: size }));
        }
        let ranges = [0..header_bytes, size - trailer_bytes..size];
        let parts = self.store.get_ranges(&key, &ranges).await.map_err(failed("read", &key))?;
        let part = |number: usize| parts.get(number).cloned().unwrap_or_else(Bytes::new);
        let trailer = Trailer::decode(&part(1), &part(0), size).map_err(damaged)?;
        let header = Header::decode(&part(0)).map_err(damaged)?;
        Ok((header, trailer))
    }

    /// The position of a segment of the chain, if its object exists and is what its name says. Its parents are not looked at.
    ///
    /// # Errors
    /// [`RoadError`].
    pub async fn position(&self, name: SegmentName) -> Result<Option<Position>, RoadError> {
        let Some(size_bytes) = self.segment_size(name).await? else { return Ok(None) };
        self.position_of(Candidate { name, size_bytes }).await
    }

    /// The same of an object whose size is known.
    ///
    /// # Errors
    /// [`RoadError`].
    pub async fn position_of(&self, segment: Candidate) -> Result<Option<Position>, RoadError> {
        let sequence = segment.name.sequence;
        match self.outline(segment).await {
            Ok((header, trailer)) if header.group == self.group && header.sequence == sequence => {
                Ok(Some(header.position(trailer.hash)))
            }
            Ok(_) | Err(RoadError::Segment { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Reads a document; none if there is no such object.
///
/// # Errors
/// [`RoadError`].
pub async fn read_document<T: Document>(store: &dyn ObjectStore, key: &Path) -> Result<Option<T>, RoadError> {
    let found = match store.get(key).await {
        Ok(found) => found,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(source) => return Err(failed("read", key)(source)),
    };
    let (actual, limit) = (found.meta.size, DOCUMENT_BYTES_MAX);
    if actual > limit {
        return Err(RoadError::TooLarge { key: key.clone(), actual, limit });
    }
    let bytes = found.bytes().await.map_err(failed("read", key))?;
    T::decode(key, &bytes).map(Some)
}

/// Puts a document if there is none at `key`.
///
/// # Errors
/// [`RoadError::Store`].
pub async fn put_document<T: Document>(
    store: &dyn ObjectStore,
    key: &Path,
    document: &T,
) -> Result<Put, RoadError> {
    let options = PutOptions::from(PutMode::Create);
    match store.put_opts(key, document.encode().into(), options).await {
        Ok(_) => Ok(Put::Created),
        Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(Put::Existed),
        Err(source) => Err(failed("put", key)(source)),
    }
}

/// Puts a document in the place of the one at `key`.
///
/// # Errors
/// [`RoadError::Store`].
pub async fn replace_document<T: Document>(
    store: &dyn ObjectStore,
    key: &Path,
    document: &T,
) -> Result<(), RoadError> {
    let put = store.put(key, document.encode().into()).await;
    put.map(drop).map_err(failed("put", key))
}

pub(crate) fn failed(action: &'static str, key: &Path) -> impl Fn(StoreError) -> RoadError + use<> {
    let key = key.clone();
    move |source| RoadError::Store { action, key: key.clone(), source }
}

#[cfg(test)]
mod tests;
