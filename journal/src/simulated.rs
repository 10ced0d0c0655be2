//! A host in memory whose power can be cut: a disk for the journal and legs, which keep what was written and what is durable apart.
//!
//! Between two syncs nothing is ordered: at a power cut every sector has, by chance, its durable content, that of any write
//! since, or a torn mix. Directory operations are durable when the directory was synced. All calls count as steps, and the power can be
//! cut at any of them: from then on nothing has an effect and everything fails, until [`Power::restore`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal_nbd::{Errno, StatusExtent, ZeroMode};

use crate::leg::{Leg, LegStamp};
use crate::storage::{NewFile, Storage, UpdateFile};

const SECTOR: usize = 512;

/// xorshift: a seed says everything.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// Bytes on a medium.
#[derive(Clone, Default)]
struct Medium {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Contents that each sector was given since the last sync.
    unsynced: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Medium {
    fn of(bytes: Vec<u8>) -> Self {
        Medium { durable: bytes.clone(), current: bytes, unsynced: BTreeMap::new() }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.current.len() < end {
            self.current.resize(end, 0);
        }
        self.current[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let content = self.sector(sector).to_vec();
            self.unsynced.entry(sector).or_default().push(content);
        }
    }

    fn sector(&self, sector: usize) -> &[u8] {
        let start = sector * SECTOR;
        &self.current[start..self.current.len().min(start + SECTOR)]
    }

    fn sync(&mut self) {
        self.durable.resize(self.current.len(), 0);
        for sector in std::mem::take(&mut self.unsynced).into_keys() {
            let start = sector * SECTOR;
            let end = self.current.len().min(start + SECTOR);
            self.durable[start..end].copy_from_slice(&self.current[start..end]);
        }
    }

    fn lose_power(&mut self, random: &mut Random) {
        for (sector, contents) in std::mem::take(&mut self.unsynced) {
            let start = sector * SECTOR;
            let choice = random.below(contents.len() as u64 + 1) as usize;
            let Some(content) = contents.get(choice) else { continue };
            let kept = if random.one_in(8) { content.len() / 2 } else { content.len() };
            if self.durable.len() < start + kept {
                self.durable.resize(start + kept, 0);
            }
            self.durable[start..start + kept].copy_from_slice(&content[..kept]);
        }
        self.current = self.durable.clone();
    }
}

/// The power of a host, shared by its disks.
#[derive(Default)]
pub(crate) struct Power {
    state: Mutex<PowerState>,
}

#[derive(Default)]
struct PowerState {
    /// Steps until it is cut; `None`: never.
    steps_left: Option<u64>,
    off: bool,
}

impl Power {
    /// Cuts the power after so many further steps.
    pub(crate) fn cut_after(&self, steps: u64) {
        self.lock().steps_left = Some(steps);
    }

    pub(crate) fn is_off(&self) -> bool {
        self.lock().off
    }

    /// Switches it on again.
    pub(crate) fn restore(&self) {
        *self.lock() = PowerState::default();
    }

    /// One step of a disk; fails when the power is off.
    fn step(&self) -> io::Result<()> {
        let mut state = self.lock();
        match &mut state.steps_left {
            Some(0) => state.off = true,
            Some(left) => *left -= 1,
            None => {}
        }
        if state.off { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, PowerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ways in which a disk fails besides losing power.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskFaults {
    /// Bytes that can still be written to new files; `None`: no limit.
    pub(crate) free_bytes: Option<u64>,
    /// Changes in place fail.
    pub(crate) update_fails: bool,
    /// Syncs of changes in place fail.
    pub(crate) sync_fails: bool,
}

/// The journal's disk.
#[derive(Clone)]
pub(crate) struct SimulatedStorage {
    power: Arc<Power>,
    inner: Arc<Mutex<Files>>,
}

#[derive(Default)]
struct Files {
    media: Vec<Medium>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    faults: DiskFaults,
}

impl SimulatedStorage {
    pub(crate) fn new(power: Arc<Power>) -> Self {
        SimulatedStorage { power, inner: Arc::default() }
    }

    pub(crate) fn set_faults(&self, faults: DiskFaults) {
        self.lock().faults = faults;
    }

    /// What a power cut leaves.
    pub(crate) fn lose_power(&self, random: &mut Random) {
        let mut files = self.lock();
        for medium in &mut files.media {
            medium.lose_power(random);
        }
        // A directory that was not synced has its old state or its new one; both are tried.
        if random.one_in(2) {
            files.names = files.durable_names.clone();
        } else {
            files.durable_names = files.names.clone();
        }
    }

    /// Changes one bit of a file, durably.
    pub(crate) fn flip_bit(&self, name: &str, bit: usize) {
        self.with_durable(name, |bytes| {
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        });
    }

    /// Changes what a file holds, durably.
    pub(crate) fn with_durable(&self, name: &str, action: impl FnOnce(&mut Vec<u8>)) {
        let mut files = self.lock();
        let Some(&id) = files.names.get(name) else { return };
        let medium = &mut files.media[id];
        action(&mut medium.durable);
        medium.current = medium.durable.clone();
        medium.unsynced.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn id(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for SimulatedStorage {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.power.step()?;
        let files = self.lock();
        Ok(files
            .names
            .iter()
            .map(|(name, &id)| (name.clone(), files.media[id].current.len() as u64))
            .collect())
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let files = self.lock();
        let bytes = &files.media[files.id(name)?].current;
        let start = bytes.len().min(offset as usize);
        Ok(bytes[start..bytes.len().min(start + length)].to_vec())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create(name)?;
        file.append(bytes)?;
        file.finish(&[])
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile>> {
        self.power.step()?;
        let temporary = format!("{name}.tmp");
        let mut files = self.lock();
        files.media.push(Medium::default());
        let id = files.media.len() - 1;
        files.names.insert(temporary.clone(), id);
        Ok(Box::new(SimulatedFile { storage: self.clone(), name: name.to_owned(), temporary, id }))
    }

    fn update(&self, name: &str) -> io::Result<Box<dyn UpdateFile>> {
        self.power.step()?;
        let id = self.lock().id(name)?;
        Ok(Box::new(SimulatedUpdate { storage: self.clone(), id }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.power.step()?;
        self.lock().names.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.power.step()?;
        let mut files = self.lock();
        let id = files.id(from)?;
        files.names.remove(from);
        files.names.insert(to.to_owned(), id);
        drop(files);
        self.power.step()?;
        let mut files = self.lock();
        files.durable_names = files.names.clone();
        Ok(())
    }
}

struct SimulatedFile {
    storage: SimulatedStorage,
    name: String,
    temporary: String,
    id: usize,
}

impl NewFile for SimulatedFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.storage.power.step()?;
        let mut files = self.storage.lock();
        if let Some(free) = &mut files.faults.free_bytes {
            *free = free.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::StorageFull)?;
        }
        let medium = &mut files.media[self.id];
        let end = medium.current.len();
        medium.write(end, bytes);
        Ok(())
    }

    fn finish(self: Box<Self>, beginning: &[u8]) -> io::Result<()> {
        self.storage.power.step()?;
        let mut files = self.storage.lock();
        if !beginning.is_empty() {
            files.media[self.id].write(0, beginning);
        }
        drop(files);
        self.storage.power.step()?;
        self.storage.lock().media[self.id].sync();
        self.storage.rename(&self.temporary, &self.name)
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        if !self.storage.power.is_off() {
            self.storage.lock().names.remove(&self.temporary);
        }
    }
}

struct SimulatedUpdate {
    storage: SimulatedStorage,
    id: usize,
}

impl UpdateFile for SimulatedUpdate {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.storage.power.step()?;
        let mut files = self.storage.lock();
        if files.faults.update_fails {
            return Err(io::Error::other("a planned fault"));
        }
        files.media[self.id].write(offset as usize, bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.storage.power.step()?;
        let mut files = self.storage.lock();
        if files.faults.sync_fails {
            return Err(io::Error::other("a planned fault"));
        }
        files.media[self.id].sync();
        Ok(())
    }
}

/// A leg whose power can be cut.
pub(crate) struct SimulatedLeg {
    power: Arc<Power>,
    medium: Mutex<Medium>,
    written: Mutex<i64>,
    /// What it held when a flush was last answered, but for the sectors that were written since.
    flushed: Mutex<(Vec<u8>, BTreeSet<usize>)>,
    /// The next write gets half of its bytes onto the disk and fails.
    fails: AtomicBool,
}

impl SimulatedLeg {
    /// A disk with this content.
    pub(crate) fn new(power: Arc<Power>, bytes: Vec<u8>) -> Self {
        let flushed = Mutex::new((bytes.clone(), BTreeSet::new()));
        let medium = Mutex::new(Medium::of(bytes));
        SimulatedLeg { power, medium, written: Mutex::new(0), flushed, fails: AtomicBool::new(false) }
    }

    /// Its content now.
    pub(crate) fn content(&self) -> Vec<u8> {
        self.lock().current.clone()
    }

    /// What a power cut leaves; a flush that was answered has to have been worth its name.
    pub(crate) fn lose_power(&self, random: &mut Random) {
        self.lock().lose_power(random);
        let now = self.content();
        let mut flushed = self.flushed();
        let (content, written) = &mut *flushed;
        for (sector, (before, after)) in content.chunks(SECTOR).zip(now.chunks(SECTOR)).enumerate() {
            assert!(before == after || written.contains(&sector), "a flushed write is gone: sector {sector}");
        }
        (*content, *written) = (now, BTreeSet::new());
    }

    /// Takes in that a flush was answered.
    pub(crate) fn note_flushed(&self) {
        *self.flushed() = (self.content(), BTreeSet::new());
    }

    fn flushed(&self) -> MutexGuard<'_, (Vec<u8>, BTreeSet<usize>)> {
        self.flushed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn fail_next_write(&self) {
        self.fails.store(true, Ordering::SeqCst);
    }

    /// Somebody else writes to it.
    pub(crate) fn write_behind_our_back(&self, offset: usize, bytes: &[u8]) {
        self.lock().write(offset, bytes);
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn powered(&self) -> Result<(), Errno> {
        self.power.step().map_err(|_| Errno::Io)
    }
}

impl Leg for SimulatedLeg {
    fn path(&self) -> Option<&std::path::Path> {
        None
    }

    fn size_bytes(&self) -> u64 {
        self.lock().current.len() as u64
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
        self.read(offset, buffer).map(|()| true)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.powered()?;
        buffer.copy_from_slice(&self.lock().current[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.powered()?;
        let first = offset as usize / SECTOR;
        self.flushed().1.extend(first..first + data.len().div_ceil(SECTOR));
        if self.fails.swap(false, Ordering::SeqCst) {
            self.lock().write(offset as usize, &data[..data.len() / 1024 * 512]);
            return Err(Errno::Io);
        }
        self.lock().write(offset as usize, data);
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, _mode: ZeroMode) -> Result<(), Errno> {
        self.write(offset, &vec![0; length as usize])
    }

    fn flush(&self) -> Result<(), Errno> {
        self.powered()?;
        self.lock().sync();
        Ok(())
    }

    fn block_status(&self, _offset: u64, length: u64, extents: &mut Vec<StatusExtent>) -> Result<(), Errno> {
        extents.push(StatusExtent { length, hole: false, zero: false });
        Ok(())
    }

    fn reads_as_zero(&self, _offset: u64, _length: u64) -> bool {
        false
    }

    fn zeroes_fast(&self, _mode: ZeroMode) -> bool {
        true
    }

    fn stamp(&self) -> Option<LegStamp> {
        let modified_ns = *self.written.lock().unwrap_or_else(PoisonError::into_inner);
        Some(LegStamp { size_bytes: self.size_bytes(), modified_ns, identity: (0, 0) })
    }
}
