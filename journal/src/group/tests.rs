use std::collections::BTreeMap;

use journal_format::Sequence;
use journal_format::segment::{ExtentContent, SegmentIndex, verify_segment};
use journal_nbd::{Export, Payload, ZeroMode};

use super::*;
use crate::clock::ManualClock;
use crate::leg::MemoryLeg;
use crate::storage::MemoryStorage;
use crate::tap::TapVolume;

const SIZES: [usize; 2] = [5 * 65536 + 512, 2 * 65536];

/// A protected site whose host can crash, and a recovery site that is always right.
struct Simulation {
    random: u64,
    storage: Arc<MemoryStorage>,
    clock: Arc<ManualClock>,
    legs: Vec<Arc<MemoryLeg>>,
    group: Arc<Group>,
    taps: Vec<TapVolume>,
    /// What the legs held at each cut.
    cuts: BTreeMap<Epoch, Vec<Vec<u8>>>,
    site: Site,
}

#[derive(Default)]
struct Site {
    head: Option<Position>,
    images: Vec<Vec<u8>>,
    points: Vec<Epoch>,
}

impl Site {
    fn receive(&mut self, bytes: &[u8]) -> SegmentIndex {
        let index = verify_segment(bytes).unwrap();
        let parent = self.head.map_or(Hash::ZERO, |head| head.hash);
        assert_eq!(index.header.parent, parent, "the chain is broken");
        self.images.resize(SIZES.len(), Vec::new());
        for (image, size) in self.images.iter_mut().zip(SIZES) {
            image.resize(size, 0);
        }
        for extent in &index.extents {
            let target = &mut self.images[usize::from(extent.volume)][extent.offset as usize..];
            let target = &mut target[..extent.length as usize];
            match extent.content {
                ExtentContent::Zero => target.fill(0),
                ExtentContent::Frame { frame, offset } => {
                    let frame = &index.frames[frame as usize];
                    let stored = &bytes[frame.offset as usize..][..frame.stored_bytes as usize];
                    let raw = frame.decode(stored).unwrap();
                    target.copy_from_slice(&raw[offset as usize..][..target.len()]);
                }
            }
        }
        self.head = Some(index.position());
        index
    }
}

fn open(
    storage: &Arc<MemoryStorage>,
    clock: &Arc<ManualClock>,
    legs: &[Arc<MemoryLeg>],
    budget: u64,
) -> Arc<Group> {
    let volumes = legs.iter().enumerate().map(|(number, leg)| VolumeSettings {
        name: format!("disk{number}").parse().unwrap(),
        kind: VolumeKind::Disk,
        leg: leg.clone(),
        accept_resize: false,
    });
    let settings = GroupSettings {
        name: "demo".parse().unwrap(),
        volumes: volumes.collect(),
        definition: None,
        memory_budget_bytes: budget,
        journal_limit_bytes: 1 << 20,
        build: BuildOptions { level: 1, frame_bytes: 16 << 10 },
    };
    Group::open(settings, storage.clone(), clock.clone(), Arena::default(), Box::new(|_| {})).unwrap()
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let storage = Arc::new(MemoryStorage::default());
        let clock = Arc::new(ManualClock::default());
        let legs: Vec<_> = SIZES.iter().map(|&size| Arc::new(MemoryLeg::new(vec![7; size]))).collect();
        let group = open(&storage, &clock, &legs, 300_000);
        let mut simulation = Simulation {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            storage,
            clock,
            legs,
            group,
            taps: Vec::new(),
            cuts: BTreeMap::new(),
            site: Site::default(),
        };
        simulation.make_taps();
        simulation
    }

    fn make_taps(&mut self) {
        self.taps = (0..SIZES.len()).map(|volume| TapVolume::new(self.group.clone(), volume)).collect();
    }

    fn next(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    fn write(&mut self) {
        let volume = self.next(SIZES.len() as u64) as usize;
        let sectors = SIZES[volume] as u64 / 512;
        let at = self.next(sectors);
        let count = 1 + self.next((sectors - at).min(64));
        let (offset, length) = (at * 512, count * 512);
        match self.next(6) {
            0 => self.taps[volume].write_zeroes(offset, length, ZeroMode::MayPunch).unwrap(),
            1 => self.taps[volume].trim(offset, length).unwrap(),
            _ => {
                let seed = self.next(256) as u8;
                let data = (0..length).map(|at| seed.wrapping_add((at / 7) as u8)).collect();
                self.taps[volume].write(offset, Payload::from_vec(data)).unwrap();
            }
        }
    }

    fn cut(&mut self) {
        let epoch = self.group.status().open_epoch;
        self.clock.advance(1_000_000);
        drop(self.group.cut(CutRequest::default()));
        self.cuts.insert(epoch, self.legs.iter().map(|leg| leg.content()).collect());
    }

    /// Ships up to `limit` segments and gives receipts for them.
    fn ship(&mut self, limit: usize) {
        let from = match self.group.site_head(self.site.head).unwrap() {
            SiteHead::Continue(from) | SiteHead::Rebased(from) => from,
        };
        for stored in self.group.pending(from, limit) {
            let name = Group::segment_name(stored.position.sequence);
            let bytes = self.storage.read(&name, 0, stored.size_bytes as usize).unwrap();
            let index = self.site.receive(&bytes);
            if let Some(point) = &index.meta.point {
                let expected = &self.cuts[&point.epoch];
                assert!(
                    &self.site.images == expected,
                    "point {} differs from the legs at its cut",
                    point.epoch
                );
                self.site.points.push(point.epoch);
            }
            self.group.receipt(index.position()).unwrap();
        }
    }

    fn crash(&mut self) {
        // A cut that was taken but not sealed was reported to nobody; its epoch is given again.
        let sealed = self.group.head().map_or(Epoch(0), |head| head.epoch);
        self.cuts.retain(|&epoch, _| epoch <= sealed);
        let budget = 1 << self.next(20);
        self.group = open(&self.storage, &self.clock, &self.legs, budget.max(70_000));
        self.make_taps();
    }

    fn step(&mut self) {
        match self.next(40) {
            0..20 => self.write(),
            20..24 => self.cut(),
            24..28 => drop(self.group.seal_next()),
            28..34 => drop(self.group.sweep_step()),
            34..36 => self.ship(3),
            36 => self.storage.set_free_bytes(Some(100_000)),
            37..39 => self.storage.set_free_bytes(None),
            _ => self.crash_sometimes(),
        }
    }

    fn crash_sometimes(&mut self) {
        self.storage.set_free_bytes(None);
        if self.next(4) == 0 {
            self.crash();
        }
    }

    /// Reads, cuts, seals and ships once.
    fn round(&mut self) {
        while self.group.sweep_step() == SweepStep::Progress {}
        self.cut();
        while self.group.seal_next() {}
        self.ship(100);
    }

    /// Lets everything come to rest; the last state must be a point.
    fn settle(&mut self) {
        self.storage.set_free_bytes(None);
        (0..200).for_each(|_| self.round());
        let newest = self.cuts.keys().next_back().copied();
        assert_eq!(self.site.points.last().copied(), newest, "the last cut did not become a point");
    }
}

#[test]
fn invariant_3_every_point_equals_the_legs_at_its_cut() {
    let mut points = 0;
    for seed in 0..150 {
        let mut simulation = Simulation::new(seed);
        for _ in 0..400 {
            simulation.step();
        }
        simulation.settle();
        points += simulation.site.points.len();
    }
    assert!(points > 1000, "the simulation made only {points} points");
}

/// A group whose first resync is done and shipped.
fn settled() -> Simulation {
    let mut simulation = Simulation::new(1);
    while simulation.site.points.is_empty() {
        simulation.round();
    }
    simulation
}

#[test]
fn an_existing_leg_is_synced_before_the_first_point() {
    let mut simulation = Simulation::new(1);
    simulation.write();
    simulation.cut();
    assert!(simulation.group.seal_next());
    simulation.ship(10);
    assert!(simulation.site.points.is_empty());
    simulation.round();
    assert!(simulation.site.points.is_empty(), "more was swept than the budget allows");
    simulation.settle();
}

#[test]
fn a_cut_that_follows_a_lost_one_is_no_point() {
    let mut simulation = settled();
    simulation.write();
    simulation.cut();
    simulation.write();
    simulation.cut();
    simulation.storage.set_free_bytes(Some(0));
    assert!(simulation.group.seal_next());
    simulation.storage.set_free_bytes(None);
    assert!(simulation.group.seal_next());
    simulation.ship(10);
    assert_eq!(simulation.site.points.len(), 1, "a point without the lost changes was listed");
    assert_eq!(simulation.group.status().counters.lost_cuts, 1);
    simulation.settle();
}

#[test]
fn an_orderly_end_needs_a_medium_that_can_tell() {
    let simulation = settled();
    simulation.group.close().unwrap();
    let again = open(&simulation.storage, &simulation.clock, &simulation.legs, 300_000);
    // Memory has no time stamps: nobody can vouch for it.
    assert!(again.status().counters.dirty_bytes > 0);
}

#[test]
fn a_site_that_lost_its_store_gets_everything_again() {
    let mut simulation = settled();
    simulation.write();
    simulation.cut();
    assert!(simulation.group.seal_next());
    simulation.ship(10);
    simulation.site = Site::default();
    simulation.ship(10);
    simulation.settle();
}

#[test]
fn a_site_with_a_newer_generation_fences_the_writer() {
    let simulation = settled();
    let head = simulation.site.head.unwrap();
    let newer = Position { generation: journal_format::Generation(2), ..head };
    let error = simulation.group.site_head(Some(newer)).unwrap_err();
    assert_eq!(error.kind(), journal_format::ErrorKind::Fenced);
}

#[test]
fn a_cut_is_answered_when_it_is_sealed() {
    let mut simulation = settled();
    simulation.write();
    let bookmark = Some("before-upgrade".parse().unwrap());
    let ticket = simulation.group.cut(CutRequest { bookmark: bookmark.clone() });
    assert!(ticket.try_recv().is_err());
    assert!(simulation.group.seal_next());
    let sealed = ticket.try_recv().unwrap().unwrap();
    assert!(sealed.is_point);
    let stored = simulation.group.pending(sealed.position.sequence, 1)[0];
    let name = Group::segment_name(stored.position.sequence);
    let bytes = simulation.storage.read(&name, 0, stored.size_bytes as usize).unwrap();
    assert_eq!(verify_segment(&bytes).unwrap().meta.point.unwrap().bookmark, bookmark);
}

#[test]
fn a_leg_of_another_size_is_refused() {
    let simulation = settled();
    let mut legs = simulation.legs.clone();
    legs[1] = Arc::new(MemoryLeg::new(vec![0; 512]));
    let volumes = legs.iter().enumerate().map(|(number, leg)| VolumeSettings {
        name: format!("disk{number}").parse().unwrap(),
        kind: VolumeKind::Disk,
        leg: leg.clone(),
        accept_resize: false,
    });
    let settings = GroupSettings {
        name: "demo".parse().unwrap(),
        volumes: volumes.collect(),
        definition: None,
        memory_budget_bytes: 1 << 20,
        journal_limit_bytes: 1 << 20,
        build: BuildOptions::default(),
    };
    let result =
        Group::open(settings, simulation.storage, simulation.clock, Arena::default(), Box::new(|_| {}));
    assert!(matches!(result, Err(JournalError::LegSize { actual: 512, .. })));
}

#[test]
fn trimming_keeps_the_newest_segment() {
    let mut simulation = settled();
    for _ in 0..3 {
        simulation.write();
        simulation.cut();
        assert!(simulation.group.seal_next());
    }
    simulation.ship(10);
    assert_eq!(simulation.group.pending(Sequence(1), 10).len(), 1);
}

#[test]
fn a_refused_segment_is_replaced_by_a_resync() {
    let mut simulation = settled();
    simulation.write();
    simulation.cut();
    assert!(simulation.group.seal_next());
    let refused = simulation.group.head().unwrap();
    simulation.storage.flip_bit(&Group::segment_name(refused.sequence), 8 * 200);
    simulation.group.distrust();
    let answer = simulation.group.site_head(simulation.site.head).unwrap();
    assert_eq!(answer, SiteHead::Rebased(refused.sequence));
    simulation.settle();
}
