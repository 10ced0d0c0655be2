//! The journal on disk: the sealed segments of a group from the last receipt on, and `journal.json`. What is written when, and
//! what opening does after a crash, is stated in `FORMAT.md`, section "The journal of the protected site".

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use journal_format::segment::{HEADER_BYTES, Header, SegmentIndex, TRAILER_BYTES, Trailer};
pub(crate) use journal_format::segment::{file_name as segment_name, sequence_of};
use journal_format::{Epoch, FormatError, Generation, GroupName, Hash, Position, Sequence, VolumeName};
use serde::{Deserialize, Serialize};

use crate::error::JournalError;
use crate::faults;
use crate::leg::LegStamp;
use crate::regions::REGION_BYTES;
use crate::storage::Storage;

const STATE_FILE: &str = "journal.json";
const STATE_FORMAT: &str = "thirdsite-journal";
const STATE_VERSION: u32 = 3;

/// A sealed segment in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSegment {
    /// The position that it ends at.
    pub position: Position,
    /// Hash of the segment before it.
    pub parent: Hash,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Whether a further part of the same epoch follows.
    pub more_parts: bool,
}

/// A volume as `journal.json` knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KnownVolume {
    pub(crate) name: VolumeName,
    pub(crate) size_bytes: u64,
    /// Points do not hold it yet.
    pub(crate) joining: bool,
}

/// Written at an orderly end: nothing is dirty, everything captured is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CleanRecord {
    pub(crate) head: Option<Position>,
    /// In the order of the volumes; `None` where the medium cannot tell whether it was changed.
    pub(crate) legs: Vec<Option<LegStamp>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: String,
    version: u32,
    group: GroupName,
    generation: Generation,
    session: u64,
    volumes: Vec<KnownVolume>,
    clean: Option<CleanRecord>,
}

/// The chain of sealed segments.
pub(crate) struct Chain {
    group: GroupName,
    generation: Generation,
    storage: Arc<dyn Storage>,
    segments: BTreeMap<Sequence, StoredSegment>,
    head: Option<Position>,
    acknowledged: Option<Position>,
    /// Every change of an epoch up to this one is in what receipts cover.
    covered_epoch: Epoch,
    /// What changed up to this sequence is not known here: an answer of the site must not be older.
    base: Sequence,
    limit_bytes: u64,
}

/// What opening a journal found.
pub(crate) struct Opened {
    pub(crate) chain: Chain,
    /// Volumes that the journal knows; empty if it is new.
    pub(crate) known: Vec<KnownVolume>,
    /// Session of the last opening; `None` if the journal is new.
    pub(crate) session: Option<u64>,
    /// The clean record, if it is there and fits the chain.
    pub(crate) clean: Option<CleanRecord>,
    /// What the segments changed: volume, range in bytes, epoch.
    pub(crate) changes: Vec<SealedChange>,
    /// Segments that were set aside.
    pub(crate) damaged: Vec<String>,
}

/// What follows from the recovery site's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChainStep {
    /// The site has a newer generation.
    Fenced { site: Generation },
    /// Send from this sequence on.
    Continue(Sequence),
    /// Drop what is behind this position of our chain; what was changed since is dirty.
    DropBehind(Position),
    /// Go on from the site's head; what is marked is dirty.
    GoOnMarked,
    /// Go on from the site's head; everything is dirty.
    GoOnEverything,
}

/// A range that a waiting segment changes, in whole regions.
pub(crate) struct SealedChange {
    pub(crate) volume: VolumeName,
    pub(crate) range: Range<u64>,
    pub(crate) epoch: Epoch,
}

impl Chain {
    /// Opens or begins the journal of a group.
    ///
    /// # Errors
    /// [`JournalError::State`] if the folder holds something else; [`JournalError::Storage`].
    pub(crate) fn open(
        group: GroupName,
        storage: Arc<dyn Storage>,
        limit_bytes: u64,
    ) -> Result<Opened, JournalError> {
        let failed = |action: &str, source| storage_error(&group, action, source);
        let files = storage.list().map_err(|source| failed("listing its folder", source))?;
        for (name, _) in files.iter().filter(|(name, _)| name.ends_with(".tmp")) {
            storage.remove(name).map_err(|source| failed("removing a temporary file", source))?;
        }
        let segments: BTreeMap<Sequence, u64> =
            files.iter().filter_map(|(name, size)| Some((sequence_of(name)?, *size))).collect();
        let state = match storage.read(STATE_FILE, 0, 1 << 20) {
            Ok(bytes) => Some(decode_state(&group, &bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed("reading journal.json", source)),
        };
        let state = match (state, segments.is_empty()) {
            (Some(state), _) => state,
            (None, true) => new_state(group.clone()),
            (None, false) => {
                let reason =
                    "is missing, yet there are segments: they are not of a journal that can be continued";
                return Err(JournalError::State { group, reason: reason.to_owned() });
            }
        };
        let generation = state.generation;
        let session = (state.session > 0).then_some(state.session);
        let mut chain = Chain {
            group,
            generation,
            storage,
            segments: BTreeMap::new(),
            head: None,
            acknowledged: None,
            covered_epoch: Epoch(0),
            base: Sequence(0),
            limit_bytes,
        };
        let (damaged, changes) = chain.load(&segments)?;
        chain.base = chain.covered_sequence();
        let clean = state.clean.filter(|clean| damaged.is_empty() && clean.head == chain.head);
        Ok(Opened { chain, known: state.volumes, session, clean, changes, damaged })
    }

    /// Takes up the segments as far as they form a chain and sets the others aside; answers these, and what the former changed.
    fn load(
        &mut self,
        segments: &BTreeMap<Sequence, u64>,
    ) -> Result<(Vec<String>, Vec<SealedChange>), JournalError> {
        let (mut damaged, mut changes) = (Vec::new(), Vec::new());
        for (&sequence, &size_bytes) in segments {
            let name = segment_name(sequence);
            let index = if damaged.is_empty() {
                read_index(&*self.storage, &self.group, &name, size_bytes)?
            } else {
                None
            };
            let continues = |index: &SegmentIndex| match self.head {
                Some(head) => sequence == head.sequence.next() && index.header.parent == head.hash,
                None => index.header.sequence == sequence,
            };
            match index.filter(continues) {
                Some(index) => {
                    note_changes(&index, &mut changes);
                    self.register(stored(&index, size_bytes));
                }
                None => damaged.push(self.set_aside(sequence)?),
            }
        }
        Ok((damaged, changes))
    }

    /// Takes a damaged segment's file out of the chain's way.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub(crate) fn set_aside(&self, sequence: Sequence) -> Result<String, JournalError> {
        let name = segment_name(sequence);
        let aside = format!("{name}.damaged");
        let renamed = self.storage.rename(&name, &aside);
        renamed.map_err(|source| storage_error(&self.group, "setting a damaged segment aside", source))?;
        Ok(aside)
    }

    /// The index of a segment, which lies under `name`, if every byte of it is what was sealed.
    ///
    /// # Errors
    /// [`JournalError::Storage`] if it cannot be read.
    pub(crate) fn whole_index(
        storage: &dyn Storage,
        group: &GroupName,
        segment: &StoredSegment,
        name: &str,
    ) -> Result<Option<SegmentIndex>, JournalError> {
        let index = read_index(storage, group, name, segment.size_bytes)?;
        let Some(index) = index.filter(|index| index.position() == segment.position) else { return Ok(None) };
        for frame in &index.frames {
            let stored = storage.read(name, frame.offset, frame.stored_bytes as usize);
            let stored = stored.map_err(|source| storage_error(group, &format!("reading {name}"), source))?;
            if frame.verify_stored(&stored).is_err() {
                return Ok(None);
            }
        }
        Ok(Some(index))
    }

    /// Notes session, volumes and, at an orderly end, the clean record.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub(crate) fn save_state(
        &self,
        session: u64,
        volumes: Vec<KnownVolume>,
        clean: Option<CleanRecord>,
    ) -> Result<(), JournalError> {
        let state =
            State { volumes, clean, session, generation: self.generation, ..new_state(self.group.clone()) };
        let bytes = serde_json::to_vec_pretty(&state).expect("the state has only fields that JSON can hold");
        self.storage
            .write(STATE_FILE, &bytes)
            .map_err(|source| storage_error(&self.group, "writing journal.json", source))
    }

    /// Raises the generation that is written; saved with the next [`Chain::save_state`].
    pub(crate) fn raise_generation(&mut self, generation: Generation) {
        self.generation = self.generation.max(generation);
    }

    pub(crate) fn group(&self) -> &GroupName {
        &self.group
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        self.storage.clone()
    }

    /// Newest position that is sealed here or, after a rebase, that the next segment continues.
    pub(crate) fn head(&self) -> Option<Position> {
        self.head
    }

    /// Newest position under a receipt since the start.
    pub(crate) fn acknowledged(&self) -> Option<Position> {
        self.acknowledged
    }

    /// Newest position that receipts are known to cover, by them or because the chain here begins behind it.
    pub(crate) fn covered_sequence(&self) -> Sequence {
        let before_oldest = self.oldest().map_or(Sequence(0), |oldest| Sequence(oldest.0 - 1));
        self.acknowledged.map_or(before_oldest, |position| position.sequence.max(before_oldest))
    }

    /// Every change of an epoch up to this one is in what receipts cover.
    pub(crate) fn covered_epoch(&self) -> Epoch {
        self.covered_epoch
    }

    /// Newest epoch whose changes are all in an answer that the site gave as of `head`; `None` if it is older than what is known here
    /// of the chain.
    pub(crate) fn answered_epoch(&self, head: Option<Position>) -> Option<Epoch> {
        let sequence = head.map_or(Sequence(0), |head| head.sequence);
        let epoch = head.map_or(Epoch(0), |head| self.whole_epoch(head));
        (sequence >= self.base).then_some(epoch)
    }

    /// Newest epoch that is whole at a position. An epoch in several parts is whole when its last part is there; of segments that
    /// are not here any more nobody knows whether they were that.
    pub(crate) fn whole_epoch(&self, position: Position) -> Epoch {
        let segment = self.segments.get(&position.sequence).filter(|segment| segment.position == position);
        let is_last_part = segment.is_some_and(|segment| !segment.more_parts);
        if is_last_part { position.epoch } else { Epoch(position.epoch.0.saturating_sub(1)) }
    }

    /// Size of all segments in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.size_bytes).sum()
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Segments that no receipt covers: how many, and their size in bytes.
    pub(crate) fn backlog(&self) -> (u64, u64) {
        let covered = self.acknowledged.map_or(Sequence(0), |position| position.sequence);
        let waiting = self.segments.range(covered.next()..);
        waiting.fold((0, 0), |(count, bytes), (_, segment)| (count + 1, bytes + segment.size_bytes))
    }

    /// Whether `size_bytes` more are within the limit.
    ///
    /// # Errors
    /// [`JournalError::Limit`] if not.
    pub(crate) fn check_room(&self, size_bytes: u64) -> Result<(), JournalError> {
        let bytes = self.bytes() + size_bytes;
        if bytes <= self.limit_bytes {
            return Ok(());
        }
        Err(JournalError::Limit { group: self.group.clone(), bytes, limit: self.limit_bytes })
    }

    /// Takes up a segment whose file is durable. Its parent is the head.
    pub(crate) fn register(&mut self, stored: StoredSegment) {
        self.segments.insert(stored.position.sequence, stored);
        self.head = Some(stored.position);
    }

    /// Segments from `from` on, oldest first, at most `limit`.
    pub(crate) fn pending(&self, from: Sequence, limit: usize) -> Vec<StoredSegment> {
        self.segments.range(from..).take(limit).map(|(_, segment)| *segment).collect()
    }

    /// Whether this chain went through `position`, or begins right behind it.
    pub(crate) fn contains(&self, position: Position) -> bool {
        let sealed = self.segments.get(&position.sequence).map(|segment| segment.position);
        let first = self.segments.values().next();
        let precedes = first.is_some_and(|first| {
            first.parent == position.hash && first.position.sequence == position.sequence.next()
        });
        sealed == Some(position) || self.head == Some(position) || precedes
    }

    /// Sequence of the oldest segment.
    pub(crate) fn oldest(&self) -> Option<Sequence> {
        self.segments.keys().next().copied()
    }

    /// Removes what a receipt covers, except the newest segment, which says where the chain goes on after a restart.
    ///
    /// # Errors
    /// [`JournalError::Diverged`] if this chain never was at `position`; [`JournalError::Storage`].
    pub(crate) fn trim(&mut self, position: Position) -> Result<(), JournalError> {
        if !self.contains(position) {
            return Err(JournalError::Diverged { group: self.group.clone(), site: position });
        }
        if self.acknowledged.is_none_or(|old| old.sequence < position.sequence) {
            self.acknowledged = Some(position);
        }
        self.covered_epoch = self.covered_epoch.max(self.whole_epoch(position));
        let newest = self.segments.keys().next_back().copied();
        let covered: Vec<Sequence> = self
            .segments
            .range(..=position.sequence)
            .map(|(&sequence, _)| sequence)
            .filter(|&sequence| Some(sequence) != newest)
            .collect();
        covered.into_iter().try_for_each(|sequence| self.remove(sequence))
    }

    /// Gives up the segments behind a position of this chain. The caller has made dirty what they changed.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub(crate) fn drop_behind(&mut self, position: Position) -> Result<(), JournalError> {
        let behind: Vec<Sequence> =
            self.segments.range(position.sequence.next()..).map(|(&at, _)| at).collect();
        // The newest first, so that a crash in between leaves a chain.
        behind.into_iter().rev().try_for_each(|sequence| self.remove(sequence))?;
        self.head = Some(position);
        Ok(())
    }

    /// Goes on from the site's head. What was sealed and never confirmed is dropped: the caller has made it dirty.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub(crate) fn rebase(&mut self, head: Option<Position>) -> Result<(), JournalError> {
        let sequences: Vec<Sequence> = self.segments.keys().copied().collect();
        sequences.into_iter().rev().try_for_each(|sequence| self.remove(sequence))?;
        self.head = head;
        self.acknowledged = head;
        self.base = head.map_or(Sequence(0), |head| head.sequence);
        self.covered_epoch = head.map_or(Epoch(0), |head| self.whole_epoch(head));
        Ok(())
    }

    /// What follows from the site's head; the table in `FORMAT.md`. `trusted` is false if the site refused a segment of this chain, or
    /// one was found damaged.
    pub(crate) fn step_to(&self, head: Option<Position>, trusted: bool) -> ChainStep {
        match head {
            Some(site) if site.generation > self.generation => ChainStep::Fenced { site: site.generation },
            Some(site) if self.contains(site) && trusted => ChainStep::Continue(site.sequence.next()),
            Some(site) if self.contains(site) => ChainStep::DropBehind(site),
            None if trusted && (self.head.is_none() || self.oldest() == Some(Sequence(1))) => {
                ChainStep::Continue(Sequence(1))
            }
            Some(site) if site.generation < self.generation && site.sequence >= self.covered_sequence() => {
                ChainStep::GoOnMarked
            }
            _ => ChainStep::GoOnEverything,
        }
    }

    fn remove(&mut self, sequence: Sequence) -> Result<(), JournalError> {
        let removed = match self.storage.remove(&segment_name(sequence)) {
            // It was set aside.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        faults::step("trim.removed");
        removed.map_err(|source| storage_error(&self.group, "removing a segment", source))?;
        self.segments.remove(&sequence);
        Ok(())
    }

    /// Where the next segment stands: its sequence and its parent.
    pub(crate) fn next(&self) -> (Sequence, Hash) {
        match self.head {
            Some(head) => (head.sequence.next(), head.hash),
            None => (Sequence(1), Hash::ZERO),
        }
    }

    /// First epoch that no segment of the chain carries.
    pub(crate) fn next_epoch(&self) -> Epoch {
        self.head.map_or(Epoch(1), |head| head.epoch.next())
    }
}

/// Reads all of a segment but its payload; `None` if that is damaged.
fn read_index(
    storage: &dyn Storage,
    group: &GroupName,
    name: &str,
    size_bytes: u64,
) -> Result<Option<SegmentIndex>, JournalError> {
    let read = |offset: u64, length: u64| {
        let bytes = storage.read(name, offset, length as usize);
        bytes.map_err(|source| storage_error(group, &format!("reading {name}"), source))
    };
    let header = read(0, HEADER_BYTES as u64)?;
    let trailer = read(size_bytes.saturating_sub(TRAILER_BYTES as u64), TRAILER_BYTES as u64)?;
    let Ok(trailer) = Trailer::decode(&trailer, &header, size_bytes) else { return Ok(None) };
    let tail = read(trailer.index_offset, size_bytes - trailer.index_offset)?;
    let index: Result<SegmentIndex, FormatError> = SegmentIndex::decode(&header, &tail, size_bytes);
    Ok(index.ok().filter(|index| index.header.group == *group))
}

fn stored(index: &SegmentIndex, size_bytes: u64) -> StoredSegment {
    let Header { parent, more_parts, .. } = index.header;
    StoredSegment { position: index.position(), parent, size_bytes, more_parts }
}

/// Notes what a segment changes, neighbours joined: only regions count.
fn note_changes(index: &SegmentIndex, changes: &mut Vec<SealedChange>) {
    let epoch = index.header.last_epoch;
    for extent in &index.extents {
        let volume = &index.meta.volumes[usize::from(extent.volume)].name;
        let range = extent.offset / REGION_BYTES * REGION_BYTES..extent.end().next_multiple_of(REGION_BYTES);
        match changes.last_mut() {
            Some(last) if last.volume == *volume && last.epoch == epoch && range.start <= last.range.end => {
                last.range.end = last.range.end.max(range.end);
            }
            _ => changes.push(SealedChange { volume: volume.clone(), range, epoch }),
        }
    }
}

fn new_state(group: GroupName) -> State {
    State {
        format: STATE_FORMAT.to_owned(),
        version: STATE_VERSION,
        group,
        generation: Generation(1),
        session: 0,
        volumes: Vec::new(),
        clean: None,
    }
}

fn decode_state(group: &GroupName, bytes: &[u8]) -> Result<State, JournalError> {
    let invalid = |reason: String| JournalError::State { group: group.clone(), reason };
    let state: State =
        serde_json::from_slice(bytes).map_err(|error| invalid(format!("cannot be read: {error}")))?;
    if state.format != STATE_FORMAT || state.version != STATE_VERSION {
        return Err(invalid(format!("is of format {} version {}", state.format, state.version)));
    }
    if &state.group != group {
        return Err(invalid(format!("belongs to group '{}'", state.group)));
    }
    Ok(state)
}

pub(crate) fn storage_error(group: &GroupName, action: &str, source: io::Error) -> JournalError {
    JournalError::Storage { group: group.clone(), action: action.to_owned(), source }
}

#[cfg(test)]
mod tests;
