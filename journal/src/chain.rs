//! The journal on disk: the sealed segments of a group from the last receipt on, and `journal.json`. What is written when, and
//! what opening does after a crash, is stated in `FORMAT.md`, section "The journal of the protected site".

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use journal_format::segment::{HEADER_BYTES, SegmentIndex, TRAILER_BYTES, Trailer};
use journal_format::{Epoch, FormatError, Generation, GroupName, Hash, Position, Sequence, VolumeName};
use serde::{Deserialize, Serialize};

use crate::error::JournalError;
use crate::leg::LegStamp;
use crate::storage::Storage;

const STATE_FILE: &str = "journal.json";
const STATE_FORMAT: &str = "thirdsite-journal";
const STATE_VERSION: u32 = 1;

/// A sealed segment in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSegment {
    /// The position that it ends at.
    pub position: Position,
    /// Hash of the segment before it.
    pub parent: Hash,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// A volume as `journal.json` knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KnownVolume {
    pub(crate) name: VolumeName,
    pub(crate) size_bytes: u64,
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
    limit_bytes: u64,
}

/// What opening a journal found.
pub(crate) struct Opened {
    pub(crate) chain: Chain,
    /// Volumes that the journal knows; empty if it is new.
    pub(crate) known: Vec<KnownVolume>,
    /// The clean record, if it is there and fits the chain.
    pub(crate) clean: Option<CleanRecord>,
    /// Segments that were set aside.
    pub(crate) damaged: Vec<String>,
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
        let mut chain = Chain {
            group,
            generation,
            storage,
            segments: BTreeMap::new(),
            head: None,
            acknowledged: None,
            limit_bytes,
        };
        let damaged = chain.load(&segments)?;
        let clean = state.clean.filter(|clean| damaged.is_empty() && clean.head == chain.head);
        Ok(Opened { chain, known: state.volumes, clean, damaged })
    }

    /// Takes up the segments as far as they form a chain and sets the others aside.
    fn load(&mut self, segments: &BTreeMap<Sequence, u64>) -> Result<Vec<String>, JournalError> {
        let mut damaged = Vec::new();
        for (&sequence, &size_bytes) in segments {
            let name = segment_name(sequence);
            let continues = |parent: Hash| match self.head {
                Some(head) => sequence == head.sequence.next() && parent == head.hash,
                None => true,
            };
            let stored = if damaged.is_empty() { self.read_stored(&name, size_bytes)? } else { None };
            match stored.filter(|stored| stored.position.sequence == sequence && continues(stored.parent)) {
                Some(stored) => self.register(stored),
                None => {
                    let aside = format!("{name}.damaged");
                    let action = "setting a damaged segment aside";
                    let renamed = self.storage.rename(&name, &aside);
                    renamed.map_err(|source| storage_error(&self.group, action, source))?;
                    damaged.push(aside);
                }
            }
        }
        Ok(damaged)
    }

    /// Reads all of a segment but its payload; `None` if that is damaged.
    fn read_stored(&self, name: &str, size_bytes: u64) -> Result<Option<StoredSegment>, JournalError> {
        let read = |offset: u64, length: u64| {
            let bytes = self.storage.read(name, offset, length as usize);
            bytes.map_err(|source| storage_error(&self.group, &format!("reading {name}"), source))
        };
        let header = read(0, HEADER_BYTES as u64)?;
        let trailer = read(size_bytes.saturating_sub(TRAILER_BYTES as u64), TRAILER_BYTES as u64)?;
        let Ok(trailer) = Trailer::decode(&trailer, &header, size_bytes) else { return Ok(None) };
        let tail = read(trailer.index_offset, size_bytes - trailer.index_offset)?;
        let index: Result<SegmentIndex, FormatError> = SegmentIndex::decode(&header, &tail, size_bytes);
        let stored = |index: SegmentIndex| {
            let parent = index.header.parent;
            StoredSegment { position: index.position(), parent, size_bytes }
        };
        Ok(index.ok().filter(|index| index.header.group == self.group).map(stored))
    }

    /// Notes volumes and, at an orderly end, the clean record.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub(crate) fn save_state(
        &self,
        volumes: Vec<KnownVolume>,
        clean: Option<CleanRecord>,
    ) -> Result<(), JournalError> {
        let state = State { volumes, clean, generation: self.generation, ..new_state(self.group.clone()) };
        let bytes = serde_json::to_vec_pretty(&state).expect("the state has only fields that JSON can hold");
        self.storage
            .write(STATE_FILE, &bytes)
            .map_err(|source| storage_error(&self.group, "writing journal.json", source))
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
        let newest = self.segments.keys().next_back().copied();
        let covered: Vec<Sequence> = self
            .segments
            .range(..=position.sequence)
            .map(|(&sequence, _)| sequence)
            .filter(|&sequence| Some(sequence) != newest)
            .collect();
        covered.into_iter().try_for_each(|sequence| self.remove(sequence))
    }

    /// Goes on from the site's head. What was sealed and never confirmed is dropped: the caller has everything marked dirty.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub(crate) fn rebase(&mut self, head: Option<Position>) -> Result<(), JournalError> {
        let sequences: Vec<Sequence> = self.segments.keys().copied().collect();
        sequences.into_iter().try_for_each(|sequence| self.remove(sequence))?;
        self.head = head;
        self.acknowledged = head;
        Ok(())
    }

    fn remove(&mut self, sequence: Sequence) -> Result<(), JournalError> {
        let removed = self.storage.remove(&segment_name(sequence));
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

/// File name of a segment.
pub(crate) fn segment_name(sequence: Sequence) -> String {
    format!("{:020}.seg", sequence.0)
}

fn sequence_of(name: &str) -> Option<Sequence> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 20)?;
    digits.parse().ok().map(Sequence)
}

fn new_state(group: GroupName) -> State {
    State {
        format: STATE_FORMAT.to_owned(),
        version: STATE_VERSION,
        group,
        generation: Generation(1),
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
