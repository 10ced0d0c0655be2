//! What the transport calls: a segment arrives, is verified, made durable and attached.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use journal_format::segment::{MAX_SEGMENT_BYTES, SegmentIndex, SegmentSource};
use journal_format::{ErrorKind, Generation, GroupName, Hash, Position, Sequence, Timestamp};
use transport::{
    Begin, CallAnswer, CallRequest, Heartbeat, Inbox, PeerName, Refusal, RefusalKind, SegmentDescriptor,
    SegmentSink,
};

use super::attach::Place;
use super::claim::ClaimError;
use super::compare::{Asked, compare};
use super::listing::{list_blocks, list_segments};
use super::resolve::{Unresolved, resolve};
use super::writer::{Arrived, Group, GroupState, Part, Shared, StoreWriter};
use crate::blocks;
use crate::error::{StoreError, io_error, is_full};
use crate::segment_file;

impl Inbox for StoreWriter {
    fn claim(&self, peer: &PeerName, group: &GroupName, generation: Generation) -> Result<(), Refusal> {
        let group = self.shared.open_group(group).map_err(|error| refusal_of(&error))?;
        let mut state = group.state();
        state.claim.take(&self.shared.disk, &group.name, peer, generation).map_err(|error| match error {
            ClaimError::Fenced(reason) => {
                let hint = "another host writes this group now; this one must stop";
                Refusal::new(RefusalKind::Fenced, reason, hint)
            }
            ClaimError::Store(error) => refusal_of(&error),
        })?;
        *group.writer.lock().unwrap_or_else(PoisonError::into_inner) = state.claim.writer().cloned();
        Ok(())
    }

    fn call(&self, group: &GroupName, request: CallRequest) -> Result<CallAnswer, Refusal> {
        let Some(group) = self.shared.group(group) else {
            return Err(Refusal::new(RefusalKind::Invalid, format!("group '{group}' is not open"), ""));
        };
        match request {
            CallRequest::Compare { volume, offset, regions, size_bytes } => {
                let asked = Asked { volume: &volume, size_bytes, offset, regions: &regions };
                compare(&self.shared, &group, &asked)
            }
            CallRequest::Attached { seed, before } => {
                list_segments(&self.shared, &group.name, seed, before).map_err(|error| refusal_of(&error))
            }
            CallRequest::Blocks { seed, sequence, skip } => {
                list_blocks(&self.shared, &group.name, seed, sequence, skip)
                    .map_err(|error| refusal_of(&error))
            }
            CallRequest::Pair(_) => {
                Err(Refusal::new(RefusalKind::Invalid, "a recovery site is no host of a pair", ""))
            }
        }
    }

    fn open_group(&self, _peer: &PeerName, group: &GroupName) -> Result<Option<Position>, Refusal> {
        let group = self.shared.open_group(group).map_err(|error| refusal_of(&error))?;
        let head = group.state().timeline.head();
        Ok(head)
    }

    fn begin(&self, group: &GroupName, segment: &SegmentDescriptor) -> Result<Begin, Refusal> {
        let sequence = segment.position.sequence;
        if segment.size_bytes > MAX_SEGMENT_BYTES || sequence.0 == 0 {
            let reason = format!("a segment of {} bytes at sequence {sequence}", segment.size_bytes);
            let hint =
                "segments have at most 256 MiB and begin at sequence 1: the source is of another version";
            return Err(Refusal::new(RefusalKind::Invalid, reason, hint).of_segment(sequence));
        }
        let Some(group) = self.shared.group(group) else {
            let reason = format!("group '{group}' is not open");
            return Err(Refusal::new(RefusalKind::Invalid, reason, "").of_segment(sequence));
        };
        let claim = {
            let state = group.state();
            if let Some(head) = settled(&self.shared, &group, &state, segment)? {
                return Ok(Begin::Have(head));
            }
            state.claim.number()
        };
        let part = self.shared.begin_part(&group, &segment.position, segment.size_bytes);
        let part = part.map_err(|error| refusal_of(&error).of_segment(sequence))?;
        let (part, file) = part.ok_or_else(|| limit_reached().of_segment(sequence))?;
        let shared = Arc::clone(&self.shared);
        Ok(Begin::Receive(Box::new(Sink {
            shared,
            group,
            segment: *segment,
            claim,
            file,
            part,
            received_bytes: 0,
        })))
    }

    fn heartbeat(&self, group: &GroupName, heartbeat: &Heartbeat, received_at: Timestamp) {
        self.shared.put_heartbeat(group, heartbeat, received_at);
    }

    fn closed(&self, _peer: &PeerName, group: &GroupName) {
        // Segments that wait were sent for nothing if their parents come no more; the next session offers them again.
        if let Some(group) = self.shared.group(group) {
            group.state().timeline.forget_waiting();
        }
    }
}

/// One segment on its way in.
struct Sink {
    shared: Arc<Shared>,
    group: Arc<Group>,
    segment: SegmentDescriptor,
    /// The claim under which it was begun.
    claim: u64,
    file: File,
    part: Part,
    received_bytes: u64,
}

impl SegmentSink for Sink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.received_bytes += bytes.len() as u64;
        self.group.received_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if offset + bytes.len() as u64 > self.segment.size_bytes {
            let reason = format!("more than the announced {} bytes arrived", self.segment.size_bytes);
            return Err(corrupt(reason).of_segment(self.segment.position.sequence));
        }
        self.file.write_all_at(bytes, offset).map_err(|source| {
            let path = self.part.path.clone().unwrap_or_default();
            let error = StoreError::Io { action: "write", path, source };
            refusal_of(&error).of_segment(self.segment.position.sequence)
        })
    }

    fn commit(self: Box<Self>) -> Result<Option<Position>, Refusal> {
        let Sink { shared, group, segment, claim, file, part, received_bytes } = *self;
        let sequence = segment.position.sequence;
        let verified = verified(&shared, &group, &file, &part, &segment);
        let (mut index, resolved) = verified.map_err(|refusal| refusal.of_segment(sequence))?;
        file.sync_all()
            .map_err(|source| refusal_of(&io_error("sync", part.path())(source)).of_segment(sequence))?;
        drop(file);
        index.drop_tables();
        let arrived = Arrived { index, resolved, part };
        let mut state = group.state();
        if state.claim.number() != claim {
            let hint = "another host writes this group now; this one must stop";
            let refusal = Refusal::new(RefusalKind::Fenced, "the group was taken over meanwhile", hint);
            return Err(refusal.of_segment(sequence));
        }
        // Others were attached while this one was arriving.
        if let Some(head) = settled(&shared, &group, &state, &segment)? {
            group.received_again_bytes.fetch_add(received_bytes, Ordering::Relaxed);
            return Ok(head);
        }
        if state.timeline.place(&segment) == Place::Ahead {
            drop(state.timeline.wait(segment, arrived));
        } else {
            attach(&shared, &group, &mut state, arrived).map_err(|refusal| refusal.of_segment(sequence))?;
        }
        Ok(state.timeline.head())
    }
}

/// Whether what a segment refers to can be looked at already.
fn sources_are_here(state: &GroupState, segment: &SegmentDescriptor, index: &SegmentIndex) -> bool {
    let head = state.timeline.head().map_or(Sequence(0), |head| head.sequence);
    let is_here = |source: &SegmentSource| source.group == index.header.group && source.sequence <= head;
    match state.timeline.place(segment) {
        Place::Next => true,
        // Other groups' segments are attached or not, whenever one looks; what is looked at too early would be refused for good.
        Place::Ahead => index.sources.iter().all(is_here),
        _ => false,
    }
}

/// Answers the head if the segment is here already, nothing if it is wanted.
fn settled(
    shared: &Shared,
    group: &Group,
    state: &GroupState,
    segment: &SegmentDescriptor,
) -> Result<Option<Option<Position>>, Refusal> {
    let sequence = segment.position.sequence;
    let head = state.timeline.head();
    match state.timeline.place(segment) {
        Place::Next | Place::Ahead => Ok(None),
        Place::Waiting => Ok(Some(head)),
        Place::Behind => match shared.has(&group.name, &segment.position) {
            Ok(true) => Ok(Some(head)),
            Ok(false) => {
                Err(diverged("another segment has this place in the chain", head).of_segment(sequence))
            }
            Err(error) => Err(refusal_of(&error).of_segment(sequence)),
        },
        Place::Diverged => {
            Err(diverged("its parent is not the head of the chain", head).of_segment(sequence))
        }
        Place::Fenced => {
            let reason = format!("generation {} has been superseded", segment.position.generation);
            let hint = "another writer has taken over this group; this one must stop";
            Err(Refusal::new(RefusalKind::Fenced, reason, hint).of_segment(sequence))
        }
        Place::TooFar => {
            let hint = "send the segments before it first";
            Err(Refusal::new(RefusalKind::Retry, "it is too far ahead of the chain", hint)
                .of_segment(sequence))
        }
    }
}

/// Verifies what has arrived, and what it refers to if that is here already; tells whether it is.
fn verified(
    shared: &Shared,
    group: &Group,
    file: &File,
    part: &Part,
    segment: &SegmentDescriptor,
) -> Result<(SegmentIndex, bool), Refusal> {
    let path = part.path();
    let length = file.metadata().map_err(|source| refusal_of(&io_error("look at", path)(source)))?.len();
    if length != segment.size_bytes {
        return Err(corrupt(format!("{length} of {} bytes arrived", segment.size_bytes)));
    }
    let index = segment_file::read_index(path).map_err(|error| unread(&error))?;
    if index.header.group != group.name {
        return Err(corrupt(format!("it is a segment of group '{}'", index.header.group)));
    }
    if index.position() != segment.position || index.header.parent != segment.parent {
        return Err(corrupt(format!("it is the segment {}, not the one announced", index.position())));
    }
    // Without the lock, both: it is the long part.
    let are_here = || sources_are_here(&group.state(), segment, &index);
    let mut hashes = None;
    if !are_here() {
        hashes = Some(segment_file::verify_frames(path, &index).map_err(|error| unread(&error))?);
    }
    let resolved = hashes.is_none() || are_here();
    if resolved {
        take_in_blocks(shared, group, path, &index, hashes)?;
    }
    Ok((index, resolved))
}

/// What the peer is told about a segment whose bytes could not be verified.
fn unread(error: &StoreError) -> Refusal {
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Invalid => corrupt(with_cause(error)),
        _ => refusal_of(error),
    }
}

/// Verifies a segment's frames, if that has to be done yet, and what it refers to, and keeps the list of its blocks.
fn take_in_blocks(
    shared: &Shared,
    group: &Group,
    path: &Path,
    index: &SegmentIndex,
    verified: Option<Vec<Vec<Hash>>>,
) -> Result<(), Refusal> {
    let blocks = resolve(shared, group, path, index, verified).map_err(|unresolved| match unresolved {
        Unresolved::Lacks(source, why) => lacking(&source, &why),
        Unresolved::Store(error) => unread(&error),
    })?;
    let position = index.position();
    let list = shared.disk.block_list_path(&group.name, position.generation, position.sequence);
    blocks::write(&list, &position.hash, &blocks).map_err(|error| refusal_of(&error))
}

/// Attaches a segment that continues the head, and all that waited for it.
fn attach(shared: &Shared, group: &Group, state: &mut GroupState, first: Arrived) -> Result<(), Refusal> {
    let mut position = first.index.position();
    let mut published = vec![publish(shared, group, first)?];
    while let Some((_, next)) = state.timeline.take_next(position) {
        let next_position = next.index.position();
        match publish(shared, group, next) {
            Ok(index) => published.push(index),
            Err(refusal) => {
                // Its source has no receipt and sends it again.
                tracing::warn!(group = %group.name, %refusal, "a segment that waited was not attached");
                break;
            }
        }
        position = next_position;
    }
    shared.disk.sync_segments(&group.name).map_err(|error| refusal_of(&error))?;
    published.iter().for_each(|index| state.timeline.advance(index.position()));
    shared.catalog_attached(group, state, &published);
    Ok(())
}

fn publish(shared: &Shared, group: &Group, arrived: Arrived) -> Result<SegmentIndex, Refusal> {
    let Arrived { index, resolved, part } = arrived;
    if !resolved {
        // With its tables, which were dropped while it waited.
        let index = segment_file::read_index(part.path()).map_err(|error| refusal_of(&error))?;
        take_in_blocks(shared, group, part.path(), &index, None)?;
    }
    give_name(shared, group, &index, part).map_err(|error| refusal_of(&error))?;
    Ok(index)
}

/// Puts a segment among the group's others.
fn give_name(shared: &Shared, group: &Group, index: &SegmentIndex, part: Part) -> Result<(), StoreError> {
    let position = index.position();
    let to = shared.disk.segment_path(&group.name, position.generation, position.sequence);
    match part.publish(&to) {
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
            same_segment(&to, index)
        }
        result => result,
    }
}

/// An earlier attempt got as far as the rename; what is there must be the same segment, whole.
fn same_segment(path: &Path, index: &SegmentIndex) -> Result<(), StoreError> {
    let (found, expected) = (segment_file::verify(path)?.trailer.hash, index.trailer.hash);
    if found == expected {
        return Ok(());
    }
    Err(StoreError::OtherSegment { path: path.to_owned(), expected, actual: found })
}

fn with_cause(error: &StoreError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

fn corrupt(reason: impl Into<String>) -> Refusal {
    let hint = "nothing of it was kept; it is to be sent again, and made again if that does not help";
    Refusal::new(RefusalKind::Corrupt, reason, hint)
}

fn lacking(source: &SegmentSource, why: &str) -> Refusal {
    let SegmentSource { group, sequence, .. } = source;
    let reason =
        format!("it refers to blocks of segment {sequence} of group '{group}' that are not here: {why}");
    let hint = "nothing of it was kept; the source forgets these blocks and sends them whole";
    Refusal::new(RefusalKind::Lacking, reason, hint)
}

fn diverged(reason: &str, head: Option<Position>) -> Refusal {
    let head = head.map_or_else(|| "nothing".to_owned(), |head| head.to_string());
    let hint = format!("the site has {head}; the source has to continue there and resync");
    Refusal::new(RefusalKind::Diverged, reason, hint)
}

fn limit_reached() -> Refusal {
    let hint =
        "raise the store's size limit or give the group its own store; the points that are listed stay whole";
    Refusal::new(RefusalKind::Full, "the store has reached its size limit", hint)
}

/// What the peer is told when the store itself is in trouble.
pub(super) fn refusal_of(error: &StoreError) -> Refusal {
    let full = matches!(error, StoreError::Io { source, .. } if is_full(source));
    let (kind, hint) = if full {
        (RefusalKind::Full, "make room on the recovery site's file system")
    } else {
        (RefusalKind::Retry, "look at the recovery site's log and its disk")
    };
    tracing::warn!(error = with_cause(error), "a segment was not taken");
    Refusal::new(kind, with_cause(error), hint)
}
