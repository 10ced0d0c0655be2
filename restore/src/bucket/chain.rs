//! Finding a group's segments in a bucket. What is the chain is decided by [`transport_bucket::chain`]; here its claims are read and its
//! segments are listed, behind those that are known already.

use std::sync::{Arc, PoisonError};

use futures::StreamExt;
use journal_format::{GroupName, Sequence};
use object_store::path::Path;
use transport_bucket::chain::{Claims, Listed};
use transport_bucket::documents::{Claim, Document};
use transport_bucket::keys::{ClaimNumber, GroupKeys, SegmentName};

use super::objects::{Objects, SharedError};
use super::{BucketSegments, OUTLINES_AT_ONCE};
use crate::error::StoreError;
use crate::segments::{KnownChain, ListedSegment, Listing};

impl BucketSegments {
    /// Reads the claims that are new.
    pub(super) fn read_claims(&self, group: &GroupName) -> Result<Arc<Claims>, StoreError> {
        let known = self.claims.lock().unwrap_or_else(PoisonError::into_inner).get(group).cloned();
        let mut claims = known.map_or_else(|| Claims::new(group.clone()), |known| Claims::clone(&known));
        let keys = self.keys.group(group);
        let (objects, from, of) = (self.objects.clone(), claims.next(), keys.clone());
        let read = self.objects.perform(async move { read_claims(&objects, &of, from).await });
        for (number, bytes) in self.request("read", &keys.claims(), read)? {
            let claim = Claim::decode(&keys.claim(number), &bytes).map_err(|source| self.document(source))?;
            claims.push(claim).map_err(|source| self.document(source))?;
        }
        let claims = Arc::new(claims);
        let mut all = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(group.clone(), Arc::clone(&claims));
        Ok(claims)
    }

    /// Lists the segments of a group's chain behind what is known and still belongs to it. Those behind a hole are listed too.
    pub(super) fn list_chain(
        &self,
        group: &GroupName,
        known: Option<KnownChain>,
    ) -> Result<Listing, StoreError> {
        let claims = self.read_claims(group)?;
        let kept = known.map_or(Sequence(0), |known| {
            let kept = claims.kept_since(ClaimNumber(known.claim));
            kept.map_or(known.head, |kept| kept.min(known.head))
        });
        let keys = self.keys.group(group);
        if claims.newest_start().is_none() {
            return Ok(Listing { kept, segments: Vec::new() });
        }
        // A first start that goes on behind what another store has leaves the beginning of the chain to nobody.
        let behind = Listed::default().list_behind(&claims, kept).map(|behind| keys.segment(behind));
        let (objects, folder) = (self.objects.clone(), keys.segments());
        let listed = self.objects.perform(async move { objects.list(&folder, behind.as_ref()).await });
        let listed = self.request("list", &keys.segments(), listed)?;
        let named = listed.iter().filter_map(|meta| Some((keys.segment_name(&meta.location)?, meta.size)));
        let mut found: Vec<(SegmentName, u64)> =
            named.filter(|(name, _)| name.sequence > kept && claims.has(*name)).collect();
        found.extend(self.found_by_name(&keys, &claims, kept, &found)?);
        let mut segments: Vec<ListedSegment> = found.into_iter().map(listed_segment).collect();
        segments.sort();
        Ok(Listing { kept, segments })
    }

    /// Objects that a listing did not show, from the first hole on up to one that does not exist.
    fn found_by_name(
        &self,
        keys: &GroupKeys,
        claims: &Claims,
        kept: Sequence,
        found: &[(SegmentName, u64)],
    ) -> Result<Vec<(SegmentName, u64)>, StoreError> {
        let mut listed = Listed::default();
        found.iter().for_each(|&(name, size)| listed.insert(name, size));
        let mut late = Vec::new();
        while let Some(hole) = listed.hole(claims, kept.next()) {
            let key = keys.segment(hole);
            let (objects, wanted) = (self.objects.clone(), key.clone());
            let meta = self.objects.perform(async move { objects.head(&wanted).await });
            let Some(meta) = self.request("look at", &key, meta)? else { break };
            listed.insert(hole, meta.size);
            late.push((hole, meta.size));
        }
        Ok(late)
    }
}

fn listed_segment((name, size_bytes): (SegmentName, u64)) -> ListedSegment {
    ListedSegment { sequence: name.sequence, generation: None, claim: name.claim.0, size_bytes, hash: None }
}

/// Reads all claims from a number on: those that a listing shows at once, and then one by one until there is none.
async fn read_claims(
    objects: &Objects,
    keys: &GroupKeys,
    from: ClaimNumber,
) -> Result<Vec<(ClaimNumber, bytes::Bytes)>, SharedError> {
    let listed = objects.list(&keys.claims(), None).await?;
    let newest = listed.iter().filter_map(|meta| keys.claim_number(&meta.location)).max();
    let newest = newest.map_or(0, |newest| newest.0);
    let read = |number: u64| {
        let key: Path = keys.claim(ClaimNumber(number));
        async move { objects.find(&key).await.map(|found| (ClaimNumber(number), found)) }
    };
    let mut claims = Vec::new();
    let mut listed = futures::stream::iter((from.0..=newest).map(read)).buffered(OUTLINES_AT_ONCE);
    while let Some(found) = listed.next().await {
        // One that is missing is found out when the next one does not follow the one before it.
        let (number, Some(piece)) = found? else { continue };
        claims.push((number, piece.bytes));
    }
    let mut number = newest.max(from.0 - 1) + 1;
    while let (_, Some(piece)) = read(number).await? {
        claims.push((ClaimNumber(number), piece.bytes));
        number += 1;
    }
    Ok(claims)
}
