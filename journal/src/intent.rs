//! The intent maps of a group: which regions of its volumes the recovery site may not have, on stable storage. The one thing that
//! tracking rests on after a crash; `FORMAT.md` states the file, what opening takes from it, and why it is enough.
//!
//! A write to a region that is not marked waits until the mark is durable ([`IntentMaps::mark`]). Marks that are asked for at
//! the same time share one sync; marks are set ahead, so that sequential and scattered writers rarely wait. Nobody
//! waits longer than the patience: a disk that fails or hangs makes tracking *untracked* (everything counts as written after a crash)
//! until new maps are made.

mod ahead;
mod file;
mod state;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use journal_format::{GroupName, VolumeName, with_causes};
use serde::Serialize;
use tracing::{error, info, warn};

pub(crate) use self::file::{Found, map_name};
use self::file::{Layout, PAGE_REGIONS};
use self::state::{Map, State, Work, Written, marked_page, take_work};
use crate::clock::Clock;
use crate::faults::{self, Bug};
use crate::regions::{REGION_BYTES, RegionSet, regions_of};
use crate::storage::Storage;

/// Says, while it exists, that the maps do not count.
const UNTRACKED_FILE: &str = "untracked";

/// How long a write waits for its mark at most, unless told otherwise.
pub const MARK_PATIENCE: Duration = Duration::from_secs(1);

/// A page of an intent map as the pair's other host is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedPage {
    /// Number of the volume in the group.
    pub volume: u16,
    /// Number of the page.
    pub page: u32,
    /// Counts the changes of the page.
    pub version: u64,
    /// One bit for each of 3904 regions.
    pub bits: Vec<u8>,
}

/// Takes marks to the pair's other host.
pub trait MarkReplica: Send + Sync {
    /// Sends pages; what it returns waits until they are durable there, or until it was decided to go on alone.
    fn send<'a>(&'a self, pages: &[MarkedPage]) -> Box<dyn FnOnce() + Send + 'a>;
}

/// What a crash would leave of tracking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracking {
    /// The maps on disk name everything.
    #[default]
    Durable,
    /// The maps could not be written; a note on disk says so, and after a crash everything is compared.
    Untracked,
    /// Not even that could be written: tracking is lost with the process.
    InMemory,
}

/// Figures of marking.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct MarkCounters {
    /// What a crash would leave.
    pub tracking: Tracking,
    /// Marked regions, in bytes.
    pub marked_bytes: u64,
    /// Regions that would be compared after a crash now, in bytes: marks that were taken away stay on disk for a while.
    pub after_crash_bytes: u64,
    /// Writes that waited for a mark since the start.
    pub mark_waits: u64,
    /// The longest of these waits in seconds.
    pub mark_wait_max_seconds: f64,
    /// No write waits longer than this, in seconds.
    pub mark_wait_bound_seconds: f64,
    /// Syncs of the maps since the start.
    pub mark_syncs: u64,
}

/// The intent maps of a group.
pub(crate) struct IntentMaps {
    group: GroupName,
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    patience: Duration,
    replica: Mutex<Option<Arc<dyn MarkReplica>>>,
    state: Mutex<State>,
    changed: Condvar,
    committing: Mutex<()>,
}

/// What opening found.
pub(crate) struct OpenedMaps {
    pub(crate) maps: IntentMaps,
    /// For each volume what its map said.
    pub(crate) found: Vec<Found>,
    /// Session that stood in every map that could be used; `None` if they differ, or if there was none.
    pub(crate) session: Option<u64>,
}

impl IntentMaps {
    /// Opens the maps of volumes, named and with sizes in bytes, and begins a session. `known_session` is that of `journal.json`, if the journal
    /// knows the volumes. Never fails: what cannot be read is marked, what cannot be written leaves tracking in memory.
    pub(crate) fn open(
        group: &GroupName,
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        volumes: &[(VolumeName, u64)],
        known_session: Option<u64>,
        patience: Duration,
    ) -> OpenedMaps {
        let untracked = storage.read(UNTRACKED_FILE, 0, 1).is_ok();
        let mut found = Vec::new();
        let (mut maps, mut sessions) = (Vec::new(), Vec::new());
        for (name, size_bytes) in volumes {
            let layout = Layout::new(group, name, *size_bytes);
            let read = layout.read(&*storage, known_session.unwrap_or(0));
            let read = if untracked { Err(Found::Untracked) } else { read };
            let map = match read {
                Ok(read) => {
                    sessions.push(read.session);
                    found.push(Found::Whole);
                    Map { versions: read.versions, ..Map::new(group, name, read.bits) }
                }
                Err(why) => {
                    found.push(why);
                    Map::new(group, name, RegionSet::full(*size_bytes))
                }
            };
            maps.push(map);
        }
        let newest = sessions.iter().copied().max().unwrap_or(0).max(known_session.unwrap_or(0));
        let same = sessions.windows(2).all(|pair| pair[0] == pair[1]);
        let state = State {
            maps,
            session: newest + 1,
            begun: 0,
            finished: 0,
            tracking: Tracking::Durable,
            has_writer: false,
            stopping: false,
            waits: 0,
            wait_max: Duration::ZERO,
            syncs: 0,
        };
        let maps = IntentMaps {
            group: group.clone(),
            storage,
            clock,
            patience,
            replica: Mutex::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            committing: Mutex::default(),
        };
        if let Err(error) = maps.begin_session(&found) {
            maps.give_up(&error);
        } else if untracked {
            maps.remove_untracked();
        }
        let session = same.then(|| sessions.first().copied()).flatten();
        OpenedMaps { maps, found, session }
    }

    /// Writes the session into every header; makes the maps that could not be used anew.
    fn begin_session(&self, found: &[Found]) -> io::Result<()> {
        let mut state = self.lock();
        let session = state.session;
        for (map, found) in state.maps.iter_mut().zip(found) {
            let name = map_name(&map.name);
            if *found != Found::Whole {
                map.layout.create(&*self.storage, session, &map.bits, &map.versions)?;
            }
            let mut file = self.storage.update(&name)?;
            if *found == Found::Whole {
                map.layout.write_headers(&mut *file, session)?;
                file.sync()?;
            }
            map.file = Some(file);
        }
        Ok(())
    }

    /// Number of this opening.
    pub(crate) fn session(&self) -> u64 {
        self.lock().session
    }

    /// Marks only what is written from now on.
    #[cfg(test)]
    pub(crate) fn mark_nothing_ahead(&self) {
        self.lock().maps.iter_mut().for_each(|map| map.ahead = ahead::Ahead::none());
    }

    /// What is marked in a volume.
    pub(crate) fn marked(&self, volume: usize) -> RegionSet {
        self.lock().maps[volume].bits.clone()
    }

    /// Sends marks to the pair's other host from now on, or no longer.
    pub(crate) fn set_replica(&self, replica: Option<Arc<dyn MarkReplica>>) {
        *self.replica.lock().unwrap_or_else(PoisonError::into_inner) = replica;
    }

    /// Every page as it is now, for a host of the pair that joins.
    pub(crate) fn all_pages(&self) -> Vec<MarkedPage> {
        let state = self.lock();
        let pages = state.maps.iter().enumerate().flat_map(|(volume, map)| {
            (0..map.layout.pages()).map(move |page| marked_page(volume, map, page))
        });
        pages.collect()
    }

    /// Marks what a write will touch, and some more, and returns when that is durable or the patience is over. Answers what may be
    /// taken for marked.
    pub(crate) fn mark(&self, volume: usize, range: &Range<u64>) -> Range<u64> {
        let mut state = self.lock();
        let commit = state.begun + 1;
        let map = &mut state.maps[volume];
        let missing = !map.bits.covers(range);
        let regions = if missing {
            map.ahead.around(regions_of(range), map.bits.regions(), self.clock.now())
        } else {
            regions_of(range)
        };
        let mut due = 0;
        for region in regions.clone() {
            if !map.bits.contains(region) {
                map.bits.insert(region);
                map.changed((region / PAGE_REGIONS) as u32, commit);
            }
        }
        if !regions.is_empty() {
            let pages = regions.start / PAGE_REGIONS..=(regions.end - 1) / PAGE_REGIONS;
            due = pages.map(|page| map.due[page as usize]).max().unwrap_or(0);
        }
        let marked = regions.start * REGION_BYTES..(regions.end * REGION_BYTES).min(map.bits.size_bytes());
        if faults::planted(Bug::SkipIntentMark) {
            return marked;
        }
        if state.finished < due && state.tracking == Tracking::Durable {
            self.wait_for(state, due);
        }
        marked
    }

    fn wait_for<'a>(&'a self, mut state: MutexGuard<'a, State>, due: u64) {
        let began = Instant::now();
        if state.has_writer {
            self.changed.notify_all();
            let waiting = |state: &mut State| state.finished < due && state.tracking == Tracking::Durable;
            let waited = self.changed.wait_timeout_while(state, self.patience, waiting);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.finished < due && state.tracking == Tracking::Durable {
                state.tracking = Tracking::InMemory;
                error!(group = %self.group, patience_seconds = self.patience.as_secs_f64(), "the journal's disk does not answer: the VM goes on, but tracking would not survive a crash");
            }
        } else {
            drop(state);
            self.commit();
            state = self.lock();
        }
        state.waits += 1;
        state.wait_max = state.wait_max.max(began.elapsed());
    }

    /// Adds what pages of the pair's other host have marked, durably.
    pub(crate) fn adopt(&self, pages: &[MarkedPage]) {
        let mut state = self.lock();
        let commit = state.begun + 1;
        for page in pages {
            let Some(map) = state.maps.get_mut(usize::from(page.volume)) else { continue };
            for region in file::regions_of_page(page, map.bits.regions()) {
                if !map.bits.contains(region) {
                    map.bits.insert(region);
                    map.changed(page.page, commit);
                }
            }
        }
        drop(state);
        self.commit();
    }

    /// Marked regions of a volume that `page` does not have.
    pub(crate) fn beyond(&self, page: &MarkedPage) -> Vec<u64> {
        let state = self.lock();
        let Some(map) = state.maps.get(usize::from(page.volume)) else { return Vec::new() };
        let theirs: BTreeSet<u64> = file::regions_of_page(page, map.bits.regions()).collect();
        let first = u64::from(page.page) * PAGE_REGIONS;
        let ours = map.bits.iter_from(first).take_while(|&region| region < first + PAGE_REGIONS);
        ours.filter(|region| !theirs.contains(region)).collect()
    }

    /// Marks everything, durably.
    pub(crate) fn mark_all(&self, volume: usize) {
        let size_bytes = {
            let mut state = self.lock();
            let commit = state.begun + 1;
            let map = &mut state.maps[volume];
            map.bits.mark_all();
            (0..map.layout.pages()).for_each(|page| map.changed(page, commit));
            map.bits.size_bytes()
        };
        self.mark(volume, &(0..size_bytes));
    }

    /// Takes marks away. The caller holds what keeps new writes from relying on them, and knows that receipts cover them.
    pub(crate) fn clear(&self, volume: usize, regions: &[u64]) {
        let mut state = self.lock();
        let commit = state.begun + 1;
        let map = &mut state.maps[volume];
        for &region in regions {
            map.bits.remove(region);
            map.changed((region / PAGE_REGIONS) as u32, commit);
        }
    }

    /// Writes what changed and makes it durable. Returns whether there was anything.
    pub(crate) fn commit(&self) -> bool {
        let _alone = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        if state.tracking != Tracking::Durable || state.maps.iter().all(|map| map.pending.is_empty()) {
            return false;
        }
        let (number, work) = take_work(&mut state);
        drop(state);
        let replica = self.replica.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let replicated = replica.as_ref().map(|replica| {
            let pages: Vec<MarkedPage> = work.iter().flat_map(|work| work.pages.iter().cloned()).collect();
            replica.send(&pages)
        });
        let written = self.write(work);
        if let Some(replicated) = replicated {
            replicated();
        }
        let mut state = self.lock();
        match written {
            Ok(files) => {
                files.into_iter().for_each(|written| state.keep(written));
                state.finished = number;
                state.syncs += 1;
                drop(state);
            }
            Err(error) => {
                drop(state);
                self.give_up(&error);
            }
        }
        faults::step("intent.synced");
        self.changed.notify_all();
        true
    }

    fn write(&self, work: Vec<Work>) -> io::Result<Vec<Written>> {
        let mut files = Vec::new();
        for Work { volume, layout, file, pages } in work {
            let mut file = file.ok_or_else(|| io::Error::other("the map is not open"))?;
            for page in &pages {
                layout.write_page(&mut *file, page)?;
            }
            faults::step("intent.written");
            if !faults::planted(Bug::SkipIntentSync) {
                file.sync()?;
            }
            let on_disk = pages.iter().map(|page| (page.page, file::count(&page.bits))).collect();
            files.push(Written { volume, file, on_disk });
        }
        Ok(files)
    }

    /// The maps on disk do not count any more.
    fn give_up(&self, error: &io::Error) {
        let noted = self.storage.write(UNTRACKED_FILE, b"");
        let mut state = self.lock();
        state.maps.iter_mut().for_each(|map| map.file = None);
        state.tracking = if noted.is_ok() { Tracking::Untracked } else { Tracking::InMemory };
        let tracking = state.tracking;
        drop(state);
        error!(group = %self.group, ?tracking, error = with_causes(error), "the intent map could not be written; the VM goes on, and after a crash everything is compared with the recovery site");
        self.changed.notify_all();
    }

    /// Makes new maps after a failure. Returns whether tracking is durable.
    pub(crate) fn repair(&self) -> bool {
        let _alone = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.tracking() == Tracking::Durable {
            return true;
        }
        match self.make_new() {
            Ok(()) => {
                self.remove_untracked();
                info!(group = %self.group, "new intent maps are written; tracking survives a crash again");
                true
            }
            Err(error) => {
                if self.tracking() == Tracking::InMemory && self.storage.write(UNTRACKED_FILE, b"").is_ok() {
                    self.lock().tracking = Tracking::Untracked;
                }
                warn!(group = %self.group, %error, "the intent maps still cannot be written");
                false
            }
        }
    }

    fn make_new(&self) -> io::Result<()> {
        let volumes = self.lock().maps.len();
        for volume in 0..volumes {
            let (layout, session, bits, versions, name) = {
                let mut state = self.lock();
                let session = state.session;
                let map = &mut state.maps[volume];
                map.pending.clear();
                (map.layout.clone(), session, map.bits.clone(), map.versions.clone(), map_name(&map.name))
            };
            layout.create(&*self.storage, session, &bits, &versions)?;
            let file = self.storage.update(&name)?;
            let on_disk = (0..layout.pages()).map(|page| (page, file::count(&file::page_bits(&bits, page))));
            self.lock().keep(Written { volume, file, on_disk: on_disk.collect() });
        }
        // What was marked meanwhile follows in place; the last look is under the lock that marking needs.
        loop {
            let mut state = self.lock();
            if state.maps.iter().all(|map| map.pending.is_empty()) {
                state.tracking = Tracking::Durable;
                state.finished = state.begun;
                return Ok(());
            }
            let (_, work) = take_work(&mut state);
            drop(state);
            for written in self.write(work)? {
                self.lock().keep(written);
            }
        }
    }

    fn remove_untracked(&self) {
        match self.storage.remove(UNTRACKED_FILE) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(group = %self.group, %error, "the note that the maps do not count could not be removed; the next start compares everything");
            }
            _ => {}
        }
    }

    /// What a crash would leave.
    pub(crate) fn tracking(&self) -> Tracking {
        self.lock().tracking
    }

    pub(crate) fn counters(&self) -> MarkCounters {
        let state = self.lock();
        MarkCounters {
            tracking: state.tracking,
            marked_bytes: state.maps.iter().map(|map| map.bits.bytes()).sum(),
            after_crash_bytes: state.maps.iter().map(|map| map.after_crash_bytes(state.tracking)).sum(),
            mark_waits: state.waits,
            mark_wait_max_seconds: state.wait_max.as_secs_f64(),
            mark_wait_bound_seconds: self.patience.as_secs_f64(),
            mark_syncs: state.syncs,
        }
    }

    /// Commits and repairs until [`IntentMaps::stop`]; run by a thread of its own, so that a disk that hangs holds up nobody else.
    pub(crate) fn run_writer(&self) {
        const REPAIR_PAUSE: Duration = Duration::from_secs(1);
        self.lock().has_writer = true;
        loop {
            let state = self.lock();
            if state.stopping {
                break;
            }
            let idle = |state: &mut State| {
                let pending = state.maps.iter().any(|map| !map.pending.is_empty());
                let has_work = pending && state.tracking == Tracking::Durable;
                !(state.stopping || has_work)
            };
            let (state, timeout) = self
                .changed
                .wait_timeout_while(state, REPAIR_PAUSE, idle)
                .unwrap_or_else(PoisonError::into_inner);
            let broken = state.tracking != Tracking::Durable;
            drop(state);
            if !broken {
                self.commit();
            } else if timeout.timed_out() {
                self.repair();
            }
        }
        self.lock().has_writer = false;
        self.commit();
        self.changed.notify_all();
    }

    /// Ends the thread; whoever marks from now on commits itself.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
