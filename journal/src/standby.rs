//! The journal of the host of a pair that is not active: it holds what the active host's journal holds, as far as that is needed to take
//! over: marks of the intent maps, sealed segments without a receipt, and how far receipts go.
//!
//! What lies on disk is a journal like any other. Taking over raises its generation and opens it as after a crash.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal_format::segment::VolumeKind;
use journal_format::{Generation, GroupName, Hash, Position, Sequence, Timestamp, VolumeName};
use tracing::{info, warn};

use crate::chain::{Chain, KnownVolume, StoredSegment, segment_name, storage_error};
use crate::clock::Clock;
use crate::error::JournalError;
use crate::intent::{IntentMaps, MARK_PATIENCE, MarkedPage};
use crate::leg::Leg;
use crate::storage::{NewFile, Storage};

/// Files of segments that wait for the one before them.
const AHEAD_SUFFIX: &str = "ahead";

/// What a standby needs to know of its group.
pub struct StandbySettings {
    /// Name of the group.
    pub name: GroupName,
    /// Names, kinds and legs of the volumes on this host, in the order of the active host.
    pub volumes: Vec<(VolumeName, VolumeKind, Arc<dyn Leg>)>,
    /// Limit of the sealed segments on disk, in bytes.
    pub journal_limit_bytes: u64,
}

/// The journal of a group on the standby host.
pub struct Standby {
    name: GroupName,
    volumes: Vec<KnownVolume>,
    legs: Vec<Arc<dyn Leg>>,
    storage: Arc<dyn Storage>,
    maps: IntentMaps,
    state: Mutex<State>,
}

struct State {
    chain: Chain,
    /// Where the active host's segments begin, if it has said so and none is here yet.
    base: Option<(Sequence, Hash)>,
    /// Segments that wait for the one before them.
    ahead: BTreeMap<Sequence, StoredSegment>,
    /// The newest version of each page that the active host has told.
    told: BTreeMap<(u16, u32), MarkedPage>,
    next_file: u64,
}

/// A segment on its way in.
pub struct StandbySegment {
    standby: Arc<Standby>,
    segment: StoredSegment,
    name: String,
    file: Box<dyn NewFile>,
}

impl Standby {
    /// Opens the journal of a group as a standby's.
    ///
    /// # Errors
    /// [`JournalError`] if the journal is not this group's or cannot be used.
    pub fn open(
        settings: StandbySettings,
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Standby>, JournalError> {
        let StandbySettings { name, volumes, journal_limit_bytes } = settings;
        let failed = |action: &str, source| storage_error(&name, action, source);
        for (file, _) in storage.list().map_err(|source| failed("listing its folder", source))? {
            if file.ends_with(AHEAD_SUFFIX) {
                storage.remove(&file).map_err(|source| failed("removing a waiting segment", source))?;
            }
        }
        let opened = Chain::open(name.clone(), storage.clone(), journal_limit_bytes)?;
        let sizes: Vec<(VolumeName, u64)> =
            volumes.iter().map(|(name, _, leg)| (name.clone(), leg.size_bytes())).collect();
        let maps =
            IntentMaps::open(&name, storage.clone(), clock, &sizes, opened.session, MARK_PATIENCE).maps;
        let known = sizes
            .into_iter()
            .map(|(name, size_bytes)| KnownVolume { name, size_bytes, joining: false })
            .collect();
        let state = State {
            chain: opened.chain,
            base: None,
            ahead: BTreeMap::new(),
            told: BTreeMap::new(),
            next_file: 0,
        };
        let legs = volumes.into_iter().map(|(_, _, leg)| leg).collect();
        let standby = Standby { name, volumes: known, legs, storage, maps, state: Mutex::new(state) };
        standby.save(&standby.lock())?;
        info!(group = %standby.name, generation = %standby.generation(), "standing by");
        Ok(Arc::new(standby))
    }

    fn save(&self, state: &State) -> Result<(), JournalError> {
        state.chain.save_state(self.maps.session(), self.volumes.clone(), None)
    }

    /// The group's name.
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// Names and sizes of the volumes, to be compared with those of the active host.
    pub fn volumes(&self) -> impl Iterator<Item = (&VolumeName, u64)> {
        self.volumes.iter().map(|volume| (&volume.name, volume.size_bytes))
    }

    /// The newest generation that this host knows of.
    pub fn generation(&self) -> Generation {
        self.lock().chain.generation()
    }

    /// Takes in, durably, that a generation exists.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub fn note_generation(&self, generation: Generation) -> Result<(), JournalError> {
        let mut state = self.lock();
        if generation <= state.chain.generation() {
            return Ok(());
        }
        state.chain.raise_generation(generation);
        self.save(&state)
    }

    /// Newest segment that is here without a gap.
    pub fn head(&self) -> Option<Position> {
        self.lock().chain.head()
    }

    /// Takes in where the active host's segments begin. What does not lead there is dropped: receipts cover it, or its timeline
    /// was left.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub fn begin(&self, next: Sequence, parent: Hash) -> Result<(), JournalError> {
        let mut state = self.lock();
        let leads = match state.chain.head() {
            None => false,
            Some(head) if head.sequence.next() == next => head.hash == parent,
            Some(head) => {
                let same =
                    |segment: &StoredSegment| segment.position.sequence == next && segment.parent == parent;
                head.sequence >= next && state.chain.pending(next, 1).first().is_some_and(same)
            }
        };
        if !leads {
            state.chain.rebase(None)?;
            state.base = Some((next, parent));
        }
        self.attach(&mut state)
    }

    /// Adds marks of the active host; they are durable when this returns.
    pub fn mark(&self, pages: Vec<MarkedPage>) {
        self.maps.adopt(&pages);
        let mut state = self.lock();
        for page in pages {
            let key = (page.volume, page.page);
            if state.told.get(&key).is_none_or(|told| told.version < page.version) {
                state.told.insert(key, page);
            }
        }
    }

    /// Forgets what was told before: the active host begins anew.
    pub fn forget_told(&self) {
        self.lock().told.clear();
    }

    /// Takes away marks that the active host has taken away, once this host's legs are flushed: what they got must not be lost
    /// with the power of this host.
    pub fn clear_marks(&self) {
        let pages: Vec<MarkedPage> = self.lock().told.values().cloned().collect();
        let beyond: Vec<(usize, Vec<u64>)> =
            pages.iter().map(|page| (usize::from(page.volume), self.maps.beyond(page))).collect();
        if beyond.iter().all(|(_, regions)| regions.is_empty()) {
            return;
        }
        for leg in &self.legs {
            if let Err(error) = leg.flush() {
                warn!(group = %self.name, %error, "a leg cannot be flushed; its marks stay");
                return;
            }
        }
        let state = self.lock();
        for (page, (volume, regions)) in pages.iter().zip(&beyond) {
            // What was told meanwhile is looked at the next time.
            if state.told.get(&(page.volume, page.page)) == Some(page) {
                self.maps.clear(*volume, regions);
            }
        }
        drop(state);
        self.maps.commit();
    }

    /// A segment is offered: `None` if it is here.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub fn receive(self: &Arc<Self>, segment: StoredSegment) -> Result<Option<StandbySegment>, JournalError> {
        let sequence = segment.position.sequence;
        let mut state = self.lock();
        let here = state.chain.pending(sequence, 1).first().copied();
        let here = here.filter(|here| here.position.sequence == sequence);
        if here.is_some_and(|here| here.position == segment.position) {
            return Ok(None);
        }
        if here.is_none() && state.chain.head().is_some_and(|head| sequence <= head.sequence) {
            // Receipts cover it.
            return Ok(None);
        }
        if here.is_some() {
            self.leave_timeline(&mut state, sequence)?;
        }
        let name = format!("{sequence:020}-{}.{AHEAD_SUFFIX}", state.next_file);
        state.next_file += 1;
        drop(state);
        let file = self.storage.create(&name);
        let file = file.map_err(|source| storage_error(&self.name, "receiving a segment", source))?;
        Ok(Some(StandbySegment { standby: Arc::clone(self), segment, name, file }))
    }

    /// The active host has another segment in this place: it and those behind it belong to a timeline that was left.
    fn leave_timeline(&self, state: &mut State, sequence: Sequence) -> Result<(), JournalError> {
        let before = Sequence(sequence.0 - 1);
        let previous = state.chain.pending(before, 1).first().copied();
        match previous.filter(|previous| previous.position.sequence == before) {
            Some(previous) => state.chain.drop_behind(previous.position),
            None => state.chain.rebase(None),
        }
    }

    /// Takes in that receipts of the recovery site cover a position.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub fn covered(&self, position: Position) -> Result<(), JournalError> {
        let mut state = self.lock();
        // Not here yet, or never: it arrives, or is left out by the next beginning.
        if state.chain.contains(position) { state.chain.trim(position) } else { Ok(()) }
    }

    /// Attaches what waits, as far as it follows.
    fn attach(&self, state: &mut State) -> Result<(), JournalError> {
        loop {
            let next = match (state.chain.head(), state.base) {
                (Some(head), _) => (head.sequence.next(), head.hash),
                (None, Some(base)) => base,
                (None, None) => return Ok(()),
            };
            let Some(segment) = state.ahead.get(&next.0).copied() else { return Ok(()) };
            state.ahead.remove(&next.0);
            if segment.parent != next.1 {
                continue;
            }
            let renamed = self.storage.rename(&ahead_name(next.0), &segment_name(next.0));
            renamed.map_err(|source| storage_error(&self.name, "keeping a segment", source))?;
            state.chain.register(segment);
        }
    }

    /// Whether no write can have reached the active host's legs behind the marks that are here. Until `lease_end` the active host has
    /// promised to write nothing that is not marked here; a leg that was not written since has seen nothing else.
    pub fn is_fresh(&self, now: Timestamp, lease_end: Option<Timestamp>) -> bool {
        let Some(lease_end) = lease_end else { return false };
        let untouched =
            |leg: &Arc<dyn Leg>| leg.stamp().is_some_and(|stamp| stamp.modified_ns <= lease_end.0);
        now <= lease_end || self.legs.iter().all(untouched)
    }

    /// Makes the journal one that writes the next generation; it is then opened as after a crash. Unless the marks are
    /// `fresh`, everything is marked. Returns the generation.
    ///
    /// # Errors
    /// [`JournalError::Storage`].
    pub fn take_over(&self, fresh: bool) -> Result<Generation, JournalError> {
        if !fresh {
            (0..self.volumes.len()).for_each(|volume| self.maps.mark_all(volume));
        }
        let mut state = self.lock();
        let generation = Generation(state.chain.generation().0 + 1);
        state.chain.raise_generation(generation);
        self.save(&state)?;
        info!(group = %self.name, %generation, fresh, head = state.chain.head().map(tracing::field::display), "taken over");
        Ok(generation)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StandbySegment {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// What the medium answers.
    pub fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.append(bytes)
    }

    /// Makes the segment durable and answers the head then.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] if it is not what was announced; [`JournalError::Storage`].
    pub fn commit(self) -> Result<Option<Position>, JournalError> {
        let StandbySegment { standby, segment, name, file } = self;
        let failed = |source| storage_error(&standby.name, "keeping a segment", source);
        file.finish(&[]).map_err(failed)?;
        let index = Chain::whole_index(&*standby.storage, &standby.name, &segment, &name)?;
        let Some(more_parts) = index.map(|index| index.header.more_parts) else {
            standby.storage.remove(&name).map_err(failed)?;
            return Err(JournalError::Damaged { group: standby.name.clone(), name });
        };
        let mut state = standby.lock();
        let sequence = segment.position.sequence;
        standby.storage.rename(&name, &ahead_name(sequence)).map_err(failed)?;
        state.ahead.insert(sequence, StoredSegment { more_parts, ..segment });
        standby.attach(&mut state)?;
        Ok(state.chain.head())
    }
}

fn ahead_name(sequence: Sequence) -> String {
    format!("{sequence:020}.{AHEAD_SUFFIX}")
}

#[cfg(test)]
mod tests;
