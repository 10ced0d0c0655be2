use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use journal_format::segment::{SegmentIndex, VolumeKind, verify_segment};
use journal_format::{BLOCK_BYTES, ErrorKind};
use journal_index::IndexError;
use tempfile::TempDir;

use super::{ExportedSeed, SeedError, SeedFolder, SeedLeg, SeedSettings, export_seed};
use crate::clock::ManualClock;
use crate::leg::FileLeg;
use crate::simulated::Random;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A leg and the folder of its seed.
struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new(content: &[u8]) -> Fixture {
        let fixture = Fixture { folder: tempfile::tempdir().unwrap() };
        fs::write(fixture.leg(), content).unwrap();
        fixture
    }

    fn leg(&self) -> PathBuf {
        self.folder.path().join("leg.raw")
    }

    fn seed(&self) -> PathBuf {
        self.folder.path().join("seed")
    }

    fn segment(&self, sequence: u64) -> PathBuf {
        self.seed().join(format!("{sequence:020}.seg"))
    }

    fn index(&self, sequence: u64) -> SegmentIndex {
        verify_segment(&fs::read(self.segment(sequence)).unwrap()).unwrap()
    }

    fn write(&self, block: usize, content: &[u8]) {
        let leg = fs::OpenOptions::new().write(true).open(self.leg()).unwrap();
        leg.write_all_at(content, (block * BLOCK) as u64).unwrap();
    }

    fn export(&self) -> Result<ExportedSeed, SeedError> {
        let leg = Arc::new(FileLeg::open_for_reading(&self.leg()).unwrap());
        let volume = SeedLeg { name: "disk0".parse().unwrap(), kind: VolumeKind::Disk, leg };
        let group = "demo".parse().unwrap();
        let settings = SeedSettings { group, volumes: vec![volume], build: Default::default() };
        export_seed(&settings, &self.seed(), &ManualClock::default(), &|_, _| {})
    }

    /// Exports and answers how many segments were written.
    fn segments(&self) -> u64 {
        self.export().unwrap().segments
    }
}

fn noise(seed: u64, blocks: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..blocks * BLOCK).map(|_| random.below(256) as u8).collect()
}

fn content_bytes(index: &SegmentIndex) -> u64 {
    index.extents.iter().map(|extent| extent.length).sum()
}

#[test]
fn zeroes_and_what_is_behind_the_last_block_are_left_out() {
    let content = [noise(1, 1), vec![0; BLOCK], noise(2, 1), vec![9; 512]].concat();
    let fixture = Fixture::new(&content);
    let exported = fixture.export().unwrap();
    assert_eq!((exported.segments, exported.size_bytes), (1, content.len() as u64));
    let index = fixture.index(1);
    assert_eq!(content_bytes(&index), 2 * BLOCK_BYTES);
    assert_eq!(index.header.group.as_str(), "demo-seed");
    assert_eq!(index.meta.point, None);
}

#[test]
fn a_leg_of_zeroes_makes_no_segment() {
    let fixture = Fixture::new(&vec![0; 300 * BLOCK]);
    assert_eq!(fixture.segments(), 0);
    assert_eq!(fixture.segments(), 0);
}

#[test]
fn blocks_that_come_again_are_carried_once() {
    let fixture = Fixture::new(&noise(3, 1).repeat(300));
    let exported = fixture.export().unwrap();
    assert!(exported.written_bytes < 3 * BLOCK_BYTES, "{exported:?}");
}

#[test]
fn a_second_export_continues_the_chain_with_what_is_new() {
    let fixture = Fixture::new(&noise(4, 8));
    assert_eq!(fixture.segments(), 1);
    fixture.write(2, &noise(5, 1));
    fixture.write(6, &noise(6, 1));
    assert_eq!(fixture.segments(), 1);
    let (first, second) = (fixture.index(1), fixture.index(2));
    assert_eq!(second.header.parent, first.trailer.hash);
    assert!(second.header.first_epoch > first.header.last_epoch);
    assert_eq!(content_bytes(&second), 2 * BLOCK_BYTES);
}

#[test]
fn a_lost_index_is_learnt_from_the_segments() {
    let fixture = Fixture::new(&noise(7, 8));
    assert_eq!(fixture.segments(), 1);
    fs::remove_dir_all(fixture.seed().join("known.blocks")).unwrap();
    assert_eq!(fixture.segments(), 0);
}

#[test]
fn what_is_in_removed_segments_is_written_again() {
    let fixture = Fixture::new(&noise(8, 8));
    assert_eq!(fixture.segments(), 1);
    fixture.write(0, &noise(9, 2));
    assert_eq!(fixture.segments(), 1);
    fs::remove_file(fixture.segment(2)).unwrap();
    assert_eq!(fixture.segments(), 1);
    assert_eq!(content_bytes(&fixture.index(2)), 2 * BLOCK_BYTES);
}

#[test]
fn a_segment_that_was_being_written_is_removed() {
    let fixture = Fixture::new(&noise(10, 2));
    fixture.export().unwrap();
    let leftover = fixture.seed().join("00000000000000000002.seg.tmp");
    fs::write(&leftover, b"half").unwrap();
    assert_eq!(fixture.segments(), 0);
    assert!(!leftover.exists());
}

#[test]
fn a_damaged_or_missing_segment_is_named() {
    let fixture = Fixture::new(&noise(11, 2));
    for seed in 12..15 {
        fixture.export().unwrap();
        fixture.write(0, &noise(seed, 1));
    }
    let whole = fs::read(fixture.segment(2)).unwrap();
    let mut damaged = whole.clone();
    damaged[70] ^= 1;
    fs::write(fixture.segment(2), &damaged).unwrap();
    let error = fixture.export().unwrap_err();
    assert!(matches!(&error, SeedError::Damaged { path, .. } if *path == fixture.segment(2)), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    fs::remove_file(fixture.segment(2)).unwrap();
    let error = fixture.export().unwrap_err();
    assert!(matches!(&error, SeedError::Missing { path } if *path == fixture.segment(2)), "{error}");
    fs::write(fixture.segment(2), whole).unwrap();
    assert_eq!(fixture.segments(), 1);
}

#[test]
fn a_folder_with_other_things_is_left_alone() {
    let fixture = Fixture::new(&noise(16, 1));
    fs::create_dir_all(fixture.seed().join("lost+found")).unwrap();
    fs::write(fixture.seed().join("photo"), b"").unwrap();
    assert!(matches!(fixture.export(), Err(SeedError::NotEmpty { .. })));
    fs::remove_file(fixture.seed().join("photo")).unwrap();
    assert_eq!(fixture.segments(), 1);
}

#[test]
fn one_export_has_the_folder() {
    let fixture = Fixture::new(&noise(17, 1));
    let _other =
        SeedFolder::open(&fixture.seed(), &"demo".parse().unwrap(), &[], Default::default()).unwrap();
    assert!(matches!(fixture.export(), Err(SeedError::Index(IndexError::Locked { .. }))));
}
