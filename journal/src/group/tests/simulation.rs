//! A protected site whose process and whose host can die at any step, and a recovery site that is always right.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use journal_format::segment::{BuildOptions, ExtentContent, SegmentIndex, VolumeKind, verify_segment};
use journal_format::{BLOCK_BYTES, Epoch, Hash, Position, Sequence, VolumeName};
use journal_nbd::{Arena, Export, Payload, ZeroMode};

use crate::clock::ManualClock;
use crate::compare::{Compared, Comparer, RegionState};
use crate::error::JournalError;
use crate::group::{CutRequest, Group, GroupSettings, SiteHead, SweepStep, VolumeSettings};
use crate::regions::REGION_BYTES;
use crate::simulated::{DiskFaults, Power, Random, SimulatedLeg, SimulatedStorage};
use crate::storage::Storage;
use crate::tap::TapVolume;

pub(super) const SIZES: [usize; 2] = [3 * 65536 + 512, 2 * 65536];
const SECTOR: usize = 512;

/// The recovery site.
#[derive(Clone, Default)]
pub(super) struct Site {
    pub(super) head: Option<Position>,
    pub(super) images: Vec<Vec<u8>>,
    pub(super) points: Vec<Epoch>,
    /// What it held at an earlier head: answers may be as old.
    earlier: Option<(Option<Position>, Vec<Vec<u8>>)>,
    pub(super) received_bytes: u64,
}

/// Applies a segment to images.
fn apply(images: &mut Vec<Vec<u8>>, bytes: &[u8], index: &SegmentIndex) {
    images.resize(SIZES.len(), Vec::new());
    for (image, size) in images.iter_mut().zip(SIZES) {
        image.resize(size, 0);
    }
    for extent in &index.extents {
        let target =
            &mut images[usize::from(extent.volume)][extent.offset as usize..][..extent.length as usize];
        match extent.content {
            ExtentContent::Zero => target.fill(0),
            ExtentContent::Reference(_) => unreachable!("nothing is known here"),
            ExtentContent::Frame { frame, offset } => {
                let frame = &index.frames[frame as usize];
                let stored = &bytes[frame.offset as usize..][..frame.stored_bytes as usize];
                let raw = frame.decode(stored).unwrap();
                target.copy_from_slice(&raw[offset as usize..][..target.len()]);
            }
        }
    }
}

impl Site {
    fn receive(&mut self, bytes: &[u8]) -> SegmentIndex {
        let index = verify_segment(bytes).expect("a damaged segment was sent");
        let parent = self.head.map_or(Hash::ZERO, |head| head.hash);
        assert_eq!(index.header.parent, parent, "the chain is broken");
        self.earlier = Some((self.head, self.images.clone()));
        apply(&mut self.images, bytes, &index);
        self.head = Some(index.position());
        self.received_bytes += bytes.len() as u64;
        index
    }
}

/// The way to the site, on which the guest may write meanwhile and which may answer with what was true a while ago.
struct Link {
    site: Arc<Mutex<Site>>,
    group: Weak<Group>,
    legs: Vec<Arc<SimulatedLeg>>,
    cuts: Arc<Mutex<Cuts>>,
    random: Mutex<Random>,
}

/// What the legs held at each cut.
type Cuts = BTreeMap<Epoch, Vec<Vec<u8>>>;

fn cut(group: &Group, legs: &[Arc<SimulatedLeg>], cuts: &Mutex<Cuts>) {
    note_cut(group, legs, cuts);
    drop(group.cut(CutRequest::default()));
}

fn note_cut(group: &Group, legs: &[Arc<SimulatedLeg>], cuts: &Mutex<Cuts>) {
    let contents = legs.iter().map(|leg| leg.content()).collect();
    cuts.lock().unwrap_or_else(PoisonError::into_inner).insert(group.status().open_epoch, contents);
}

impl Comparer for Link {
    fn compare(
        &self,
        volume: &VolumeName,
        _size_bytes: u64,
        offset: u64,
        regions: &[Hash],
    ) -> Option<Compared> {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let number = usize::from(volume.as_str() == "disk1");
        if random.one_in(8) {
            return None;
        }
        if random.one_in(3) {
            let group = self.group.upgrade()?;
            let tap = TapVolume::new(group.clone(), number);
            let at = offset + 512 * random.below(64);
            if at < SIZES[number] as u64 {
                // The guest's write may fail: the power may be off.
                let _ = tap.write(at, Payload::from_vec(vec![random.below(256) as u8; SECTOR]));
            }
            if random.one_in(2) {
                cut(&group, &self.legs, &self.cuts);
            }
        }
        let site = self.site.lock().unwrap_or_else(PoisonError::into_inner);
        let (head, images) = match &site.earlier {
            Some((head, images)) if random.one_in(4) => (*head, images),
            _ => (site.head, &site.images),
        };
        let empty = vec![0; SIZES[number]];
        let image = images.get(number).unwrap_or(&empty);
        let states = regions.iter().enumerate().map(|(region, hash)| {
            let start = offset as usize + region * REGION_BYTES as usize;
            let bytes = &image[start..SIZES[number].min(start + REGION_BYTES as usize)];
            if Hash::of(bytes) == *hash {
                RegionState::Equal
            } else {
                RegionState::Blocks(bytes.chunks(BLOCK_BYTES as usize).map(Hash::of).collect())
            }
        });
        Some(Compared { head, regions: states.collect() })
    }
}

pub(super) fn settings(legs: &[Arc<SimulatedLeg>], budget: u64) -> GroupSettings {
    let volumes = legs.iter().enumerate().map(|(number, leg)| VolumeSettings {
        name: format!("disk{number}").parse().unwrap(),
        kind: VolumeKind::Disk,
        leg: leg.clone(),
        accept_resize: false,
    });
    GroupSettings {
        name: "demo".parse().unwrap(),
        volumes: volumes.collect(),
        definition: None,
        memory_budget_bytes: budget,
        journal_limit_bytes: 400_000,
        build: BuildOptions { level: -5, frame_bytes: 16 << 10 },
        known: None,
        mark_patience: crate::intent::MARK_PATIENCE,
        resync_rate_bytes: None,
    }
}

/// A host, its group and the recovery site.
pub(super) struct Simulation {
    pub(super) random: Random,
    pub(super) power: Arc<Power>,
    pub(super) storage: SimulatedStorage,
    pub(super) clock: Arc<ManualClock>,
    pub(super) legs: Vec<Arc<SimulatedLeg>>,
    pub(super) group: Arc<Group>,
    pub(super) taps: Vec<TapVolume>,
    cuts: Arc<Mutex<Cuts>>,
    site: Arc<Mutex<Site>>,
    pub(super) crashes: u64,
}

impl Simulation {
    pub(super) fn new(seed: u64) -> Simulation {
        let power = Arc::new(Power::default());
        let storage = SimulatedStorage::new(power.clone());
        let clock = Arc::new(ManualClock::default());
        let leg = |&size: &usize| Arc::new(SimulatedLeg::new(power.clone(), vec![7; size]));
        let legs: Vec<_> = SIZES.iter().map(leg).collect();
        let opened = Group::open(
            settings(&legs, 300_000),
            Arc::new(storage.clone()),
            clock.clone(),
            Arena::default(),
            Box::new(|_, _| {}),
        );
        let mut simulation = Simulation {
            random: Random::new(seed),
            power,
            storage,
            clock,
            legs,
            group: opened.unwrap(),
            taps: Vec::new(),
            cuts: Arc::default(),
            site: Arc::default(),
            crashes: 0,
        };
        simulation.connect();
        simulation
    }

    /// Opens the group as a new process does.
    pub(super) fn open(&self, budget: u64) -> Result<Arc<Group>, JournalError> {
        let storage = Arc::new(self.storage.clone());
        let settings = settings(&self.legs, budget);
        Group::open(settings, storage, self.clock.clone(), Arena::default(), Box::new(|_, _| {}))
    }

    pub(super) fn site(&self) -> MutexGuard<'_, Site> {
        self.site.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&mut self) {
        self.group.intents().mark_nothing_ahead();
        self.taps = (0..SIZES.len()).map(|volume| TapVolume::new(self.group.clone(), volume)).collect();
        let random = Mutex::new(Random::new(self.random.below(1 << 40)));
        let group = Arc::downgrade(&self.group);
        let (site, legs, cuts) = (self.site.clone(), self.legs.clone(), self.cuts.clone());
        self.group.set_comparer(Some(Arc::new(Link { site, group, legs, cuts, random })));
    }

    pub(super) fn write(&mut self) {
        if self.random.one_in(3) {
            // Few places and few contents: what is there now was there before.
            let (at, fill) = (4096 * self.random.below(3), self.random.below(2) as u8);
            let _ = self.taps[1].write(at, Payload::from_vec(vec![fill; 4096]));
            return;
        }
        let volume = self.random.below(SIZES.len() as u64) as usize;
        let sectors = (SIZES[volume] / SECTOR) as u64;
        let at = self.random.below(sectors);
        let longest = if self.random.one_in(8) { 200 } else { 8 };
        let count = 1 + self.random.below((sectors - at).min(longest));
        let (offset, length) = (at * SECTOR as u64, count * SECTOR as u64);
        let seed = self.random.below(256) as u8;
        let result = match self.random.below(8) {
            0 => self.taps[volume].write_zeroes(offset, length, ZeroMode::MayPunch),
            1 => self.taps[volume].trim(offset, length),
            _ => {
                let data = (0..length).map(|at| seed.wrapping_add((at / 7) as u8)).collect();
                self.taps[volume].write(offset, Payload::from_vec(data))
            }
        };
        // Answered or not, the leg may hold it.
        let _ = result;
    }

    fn flush(&mut self) {
        let volume = self.random.below(SIZES.len() as u64) as usize;
        if self.taps[volume].flush().is_ok() {
            self.legs[volume].note_flushed();
        }
    }

    pub(super) fn cut(&mut self) {
        self.clock.advance(1_000_000);
        cut(&self.group, &self.legs, &self.cuts);
    }

    /// Asks for a resync, which begins with a cut.
    pub(super) fn request_resync(&mut self, full: bool) {
        self.note_cut();
        self.group.request_resync(full);
    }

    /// Takes what the legs hold now for what a cut now has to hold.
    pub(super) fn note_cut(&self) {
        note_cut(&self.group, &self.legs, &self.cuts);
    }

    fn cuts(&self) -> MutexGuard<'_, Cuts> {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ships up to `limit` segments and gives receipts for them.
    pub(super) fn ship(&mut self, limit: usize) {
        if self.power.is_off() {
            return;
        }
        let head = self.site().head;
        let from = match self.group.site_head(head) {
            Ok(SiteHead::Continue(from) | SiteHead::Rebased(from)) => from,
            Err(error) => {
                assert!(self.power.is_off(), "{error}");
                return;
            }
        };
        for stored in self.group.pending(from, limit) {
            match self.group.check_segment(stored.position.sequence) {
                Ok(()) => {}
                Err(JournalError::Damaged { .. }) => return,
                Err(_) => return assert!(self.power.is_off()),
            }
            let name = Group::segment_name(stored.position.sequence);
            let bytes = self.storage.read(&name, 0, stored.size_bytes as usize).unwrap();
            let index = self.site().receive(&bytes);
            if let Some(point) = &index.meta.point {
                let expected = &self.cuts()[&point.epoch];
                let mut site = self.site();
                assert!(&site.images == expected, "point {} differs from the legs at its cut", point.epoch);
                site.points.push(point.epoch);
            }
            // The receipt of a host that has lost its power is lost.
            let _ = self.group.receipt(index.position());
        }
    }

    /// The agent dies, with its host or alone, and is started again.
    pub(super) fn crash(&mut self, host: bool) {
        self.crashes += 1;
        if host {
            self.storage.lose_power(&mut self.random);
            self.legs.iter().for_each(|leg| leg.lose_power(&mut self.random));
        }
        self.power.restore();
        self.storage.set_faults(DiskFaults::default());
        // A cut that was taken but not sealed was reported to nobody; its epoch is given again.
        let budget = 70_000 + self.random.below(300_000);
        self.group = self.open(budget).expect("a crash leaves a journal that opens");
        let sealed = self.group.head().map_or(Epoch(0), |head| head.epoch);
        self.cuts().retain(|&epoch, _| epoch <= sealed);
        self.connect();
        self.check_marks();
    }

    /// Invariant: wherever the leg differs from what site and journal hold together, it is dirty, and marked.
    pub(super) fn check_marks(&self) {
        let site = self.site();
        let mut images = site.images.clone();
        images.resize(SIZES.len(), Vec::new());
        images.iter_mut().zip(SIZES).for_each(|(image, size)| image.resize(size, 0));
        let from = site.head.map_or(Sequence(1), |head| head.sequence.next());
        for stored in self.group.pending(from, 1000) {
            let name = Group::segment_name(stored.position.sequence);
            let bytes = self.storage.read(&name, 0, stored.size_bytes as usize).unwrap();
            let Ok(index) = verify_segment(&bytes) else { break };
            apply(&mut images, &bytes, &index);
        }
        for (volume, (leg, image)) in self.legs.iter().zip(&images).enumerate() {
            let leg = leg.content();
            for (region, (leg, image)) in
                leg.chunks(REGION_BYTES as usize).zip(image.chunks(REGION_BYTES as usize)).enumerate()
            {
                let dirty = self.group.capture().is_dirty(volume, region as u64);
                assert!(leg == image || dirty, "region {region} of volume {volume} differs and is not dirty");
                let marked = self.group.intents().marked(volume).contains(region as u64);
                assert!(!dirty || marked, "region {region} of volume {volume} is dirty and not marked");
            }
        }
    }

    fn damage(&mut self) {
        let head = self.group.head().map_or(0, |head| head.sequence.0);
        let acknowledged = self.group.acknowledged().map_or(0, |position| position.sequence.0);
        if head > acknowledged {
            let sequence = acknowledged + 1 + self.random.below(head - acknowledged);
            let bit = 8 * self.random.below(300) as usize;
            self.storage.flip_bit(&Group::segment_name(Sequence(sequence)), bit);
        }
    }

    fn faults(&mut self) {
        let chance = self.random.below(6);
        let faults = DiskFaults {
            free_bytes: (chance == 0).then(|| self.random.below(60_000)),
            update_fails: chance == 1,
            sync_fails: chance == 2,
        };
        self.storage.set_faults(faults);
        if chance == 3 {
            self.legs[self.random.below(2) as usize].fail_next_write();
        }
        if faults == DiskFaults::default() {
            self.group.intents().repair();
        }
    }

    pub(super) fn step(&mut self) {
        match self.random.below(64) {
            0..24 => self.write(),
            24..28 => self.flush(),
            28..34 => self.cut(),
            34..40 => drop(self.group.seal_next()),
            40..46 => drop(self.group.sweep_step()),
            46..52 => self.ship(3),
            52..56 => drop(self.group.clear_marks()),
            56..58 => drop(self.group.intents().commit()),
            58..60 => self.faults(),
            60 => self.damage(),
            61 => self.clock.advance(3_000_000_000),
            _ => {}
        }
    }

    /// Works for a while, then dies at some step of its disks, or without one.
    pub(super) fn life(&mut self) {
        let host = self.random.one_in(2);
        let steps = 10 + self.random.below(50);
        if host {
            let disk_steps = 1 + self.random.below(120);
            self.power.cut_after(disk_steps);
        }
        for _ in 0..steps {
            if self.power.is_off() {
                break;
            }
            self.step();
        }
        self.crash(host);
    }

    /// Compares, cuts, seals and ships once.
    pub(super) fn round(&mut self) {
        self.clock.advance(1_000_000_000);
        for _ in 0..8 {
            self.group.sweep_step();
        }
        self.cut();
        while self.group.seal_next() {}
        self.ship(100);
    }

    /// Lets everything come to rest; the last state must be a point.
    pub(super) fn settle(&mut self) {
        self.storage.set_faults(DiskFaults::default());
        assert!(self.group.intents().repair(), "the intent maps cannot be repaired");
        for _ in 0..200 {
            self.round();
            let newest = self.cuts().keys().next_back().copied();
            if self.group.sweep_step() == SweepStep::Idle && self.site().points.last().copied() == newest {
                return;
            }
        }
        panic!("the last cut did not become a point");
    }
}

/// How many seeds the full run takes for each one of the short run.
pub(super) fn scale() -> u64 {
    if std::env::var("THIRDSITE_TEST_SCALE").is_ok_and(|scale| scale == "full") { 10 } else { 1 }
}

/// Lives and dies with so many seeds from `first` on.
pub(super) fn run_seeds(first: u64, count: u64) -> (u64, u64) {
    let (mut points, mut crashes) = (0, 0);
    for seed in first..first + count {
        let result = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed);
            for _ in 0..1 + seed % 4 {
                simulation.life();
            }
            simulation.settle();
            let points = simulation.site().points.len() as u64;
            (points, simulation.crashes)
        });
        match result {
            Ok((new_points, new_crashes)) => (points, crashes) = (points + new_points, crashes + new_crashes),
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    (points, crashes)
}

/// 4 × 2500 runs, of 1 to 4 crashes each, half of them power cuts in which unsynced sectors are kept, dropped and torn by chance.
macro_rules! power_loss {
    ($($name:ident: $part:expr),*) => {$(
        #[test]
        fn $name() {
            let count = 2500 * scale();
            let (points, crashes) = run_seeds($part * count, count);
            println!("{count} runs, {crashes} crashes, {points} points");
            assert!(points > count && crashes > count);
        }
    )*};
}

power_loss! {
    whatever_a_crash_leaves_nothing_that_differs_is_unmarked_1: 0,
    whatever_a_crash_leaves_nothing_that_differs_is_unmarked_2: 1,
    whatever_a_crash_leaves_nothing_that_differs_is_unmarked_3: 2,
    whatever_a_crash_leaves_nothing_that_differs_is_unmarked_4: 3
}
