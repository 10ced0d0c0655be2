//! Puts one segment: opens it in the journal, looks whether it is what it should be, and puts it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use journal_format::FormatError;
use journal_format::segment::{HEADER_BYTES, Header, TRAILER_BYTES, Trailer};
use object_store::{Error as StoreError, ObjectStore, PutMode};
use tokio::sync::Semaphore;
use transport::asking::blocking;
use transport::{Outbox, Refusal, RefusalKind, SegmentDescriptor};

use super::session::PutFailure;
use crate::error::RoadError;
use crate::keys::{ClaimNumber, SegmentName};
use crate::lister::{GroupBucket, failed};
use crate::put_file::put_file;

/// What a put needs.
#[derive(Clone)]
pub(super) struct PutContext {
    pub(super) bucket: GroupBucket,
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) store: Arc<dyn ObjectStore>,
    /// Puts that may be under way at once, over all groups.
    pub(super) permits: Arc<Semaphore>,
    pub(super) start: ClaimNumber,
}

/// Puts `segment` under the session's start.
pub(super) async fn put(context: PutContext, segment: SegmentDescriptor) -> Result<(), PutFailure> {
    // The semaphore is never closed, and serves in the order of asking: oldest first, and every group in its turn.
    let _permit = context.permits.acquire().await.map_err(|_| PutFailure::Gone)?;
    let file = blocking(&context.outbox, move |outbox| open(outbox, &segment)).await?;
    let name = SegmentName { claim: context.start, sequence: segment.position.sequence };
    let key = context.bucket.keys().segment(name);
    let put = put_file(&*context.store, &key, &Arc::new(file), segment.size_bytes, PutMode::Create).await;
    match put.map_err(StoreError::from) {
        Ok(_) => Ok(()),
        // The answer to an earlier try was lost, or the name is not ours alone.
        Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
            let found = context.bucket.position(name).await.map_err(bucket)?;
            if found == Some(segment.position) { Ok(()) } else { Err(bucket(RoadError::OtherBytes { key })) }
        }
        Err(source) => Err(bucket(failed("put", &key)(source))),
    }
}

fn bucket(error: RoadError) -> PutFailure {
    PutFailure::Bucket(Arc::new(error))
}

fn open(outbox: &dyn Outbox, segment: &SegmentDescriptor) -> Result<File, PutFailure> {
    let sequence = segment.position.sequence;
    let refused = |kind, reason: String, hint: &str| {
        PutFailure::Local(Refusal::new(kind, reason, hint).of_segment(sequence))
    };
    let opened = outbox.open(sequence).and_then(|file| Ok((is_sealed(&file, segment)?, file)));
    match opened {
        Ok((true, file)) => Ok(file),
        // A receipt, or a rebase, trimmed it after it was named; the next session asks anew.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(PutFailure::Gone),
        Ok((false, _)) => Err(refused(
            RefusalKind::Corrupt,
            "the segment in the journal is not what was sealed".to_owned(),
            "the journal's disk may be failing; the data is read from the VM's disk and sent again",
        )),
        Err(error) => Err(refused(
            RefusalKind::Retry,
            format!("the segment cannot be read from the journal: {error}"),
            "check the journal's disk; it is tried again",
        )),
    }
}

/// Whether a file is as long as the segment, and says that it is this one. The rest of its bytes is covered by what it says, and looked at
/// by whoever reads it.
fn is_sealed(file: &File, segment: &SegmentDescriptor) -> io::Result<bool> {
    let smallest = (HEADER_BYTES + TRAILER_BYTES) as u64;
    if file.metadata()?.len() != segment.size_bytes || segment.size_bytes < smallest {
        return Ok(false);
    }
    let mut header = [0; HEADER_BYTES];
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    file.read_exact_at(&mut trailer, segment.size_bytes - TRAILER_BYTES as u64)?;
    let outline = || -> Result<(Header, Trailer), FormatError> {
        Ok((Header::decode(&header)?, Trailer::decode(&trailer, &header, segment.size_bytes)?))
    };
    Ok(outline().is_ok_and(|(header, trailer)| {
        header.position(trailer.hash) == segment.position && header.parent == segment.parent
    }))
}
