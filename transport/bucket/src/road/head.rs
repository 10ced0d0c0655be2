//! Finds the head of the chain without reading all of it; `BUCKET.md`, "The chain".

use std::sync::Arc;

use futures::{StreamExt, stream};
use journal_format::{Hash, Position, Sequence, with_causes};
use tracing::warn;
use transport::Outbox;
use transport::asking::blocking;

use super::session::AHEAD_MAX;
use crate::chain::{Candidate, ChainWalk, Claims, Listed};
use crate::error::RoadError;
use crate::lister::GroupBucket;

/// Outlines that are read at once.
const OUTLINES_AT_ONCE: usize = 16;

/// The head of the chain. Checked are the segments behind the journal's newest receipt or, if that is not in the chain, those that a session may have
/// put behind one that failed.
pub(super) async fn find_head(
    bucket: &GroupBucket,
    outbox: &Arc<dyn Outbox>,
    claims: &Claims,
) -> Result<Option<Position>, RoadError> {
    let Some(start) = claims.newest_start().copied() else { return Ok(None) };
    let read = start.behind.map_or(Sequence(0), |behind| behind.sequence);
    let mut listed = Listed::default();
    bucket.list_segments(claims, read, &mut listed).await?;
    let run: Vec<Candidate> = listed.run(claims, read.next()).collect();
    let (begin, behind) = match begin(bucket, outbox, &run).await? {
        (0, _) | (_, None) => (0, start.behind),
        known => known,
    };

    let mut walk = ChainWalk::behind(outbox.group().clone(), behind);
    let mut outlines = stream::iter(run[begin..].to_vec())
        .map(|segment| async move { (segment, bucket.outline(segment).await) })
        .buffered(OUTLINES_AT_ONCE);
    while let Some((segment, outline)) = outlines.next().await {
        let broken = match outline {
            Ok((header, trailer)) => {
                walk.step(claims, segment.name, &header, &trailer).err().map(|error| error.to_string())
            }
            Err(error @ RoadError::Segment { .. }) => Some(with_causes(&error)),
            Err(error) => return Err(error),
        };
        if let Some(reason) = broken {
            warn!(group = %outbox.group(), name = %segment.name, reason, "the chain in the bucket ends before a segment");
            break;
        }
    }
    Ok(walk.position())
}

/// The place in `run` from which on it is to be checked, and the position before it; none if that cannot be read.
async fn begin(
    bucket: &GroupBucket,
    outbox: &Arc<dyn Outbox>,
    run: &[Candidate],
) -> Result<(usize, Option<Position>), RoadError> {
    let (sequence, hash) = blocking(outbox, received).await;
    if let Some(at) = run.iter().position(|segment| segment.name.sequence == sequence) {
        let position = bucket.position_of(run[at]).await?;
        if position.is_some_and(|position| position.hash == hash) {
            return Ok((at + 1, position));
        }
    }
    let begin = run.len().saturating_sub(AHEAD_MAX);
    match begin.checked_sub(1) {
        Some(before) => Ok((begin, bucket.position_of(run[before]).await?)),
        None => Ok((0, None)),
    }
}

/// Sequence and hash of the newest segment that the journal has a receipt for.
fn received(outbox: &dyn Outbox) -> (Sequence, Hash) {
    let oldest = outbox.oldest();
    let parent = outbox.pending(oldest, 1).first().map(|segment| segment.parent);
    let hash = parent.or_else(|| outbox.head().map(|head| head.hash));
    (Sequence(oldest.0.saturating_sub(1)), hash.unwrap_or(Hash::ZERO))
}
