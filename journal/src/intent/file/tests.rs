use std::sync::Arc;

use super::*;
use crate::simulated::{Power, SimulatedStorage};

const SIZE: u64 = 2 * PAGE_REGIONS * REGION_BYTES + 512;
const SESSION: u64 = 5;

fn layout(size_bytes: u64) -> Layout {
    Layout::new(&"demo".parse().unwrap(), &"disk0".parse().unwrap(), size_bytes)
}

/// A map with regions 3 and 4000 marked.
fn stored() -> SimulatedStorage {
    let storage = SimulatedStorage::new(Arc::new(Power::default()));
    let mut bits = RegionSet::new(SIZE);
    bits.insert(3);
    bits.insert(4000);
    layout(SIZE).create(&storage, SESSION, &bits, &[1, 1, 1]).unwrap();
    storage
}

fn marked(storage: &SimulatedStorage) -> Vec<u64> {
    layout(SIZE).read(storage, SESSION).unwrap().bits.iter_from(0).collect()
}

fn change(storage: &SimulatedStorage, action: impl FnOnce(&mut Vec<u8>)) {
    storage.with_durable("disk0.intent", action);
}

#[test]
fn what_is_written_is_read() {
    let storage = stored();
    assert_eq!(marked(&storage), [3, 4000]);
    let read = layout(SIZE).read(&storage, SESSION).unwrap();
    assert_eq!((read.session, read.versions), (SESSION, vec![1, 1, 1]));
}

#[test]
fn row_no_file() {
    let storage = SimulatedStorage::new(Arc::new(Power::default()));
    assert_eq!(layout(SIZE).read(&storage, 0).unwrap_err(), Found::Absent);
}

#[test]
fn row_no_header_is_whole() {
    let storage = stored();
    change(&storage, |bytes| {
        bytes[20] ^= 1;
        bytes[SECTOR + 20] ^= 1;
    });
    assert_eq!(layout(SIZE).read(&storage, SESSION).unwrap_err(), Found::NoHeader);
}

#[test]
fn row_one_header_is_whole() {
    for damaged in [20, SECTOR + 20] {
        let storage = stored();
        change(&storage, |bytes| bytes[damaged] ^= 1);
        assert_eq!(marked(&storage), [3, 4000]);
    }
}

#[test]
fn row_of_another_version_region_or_identity() {
    let versions: [fn(&mut [u8]); 2] = [|header| header[24] = 2, |header| header[29] ^= 1];
    for version in versions {
        let storage = stored();
        change(&storage, |bytes| {
            for number in 0..2 {
                let header = &mut bytes[number * SECTOR..][..SECTOR];
                version(header);
                let sealed = layout(SIZE).seal(HEADER_NUMBER, header.try_into().unwrap());
                header.copy_from_slice(&sealed);
            }
        });
        assert_eq!(layout(SIZE).read(&storage, SESSION).unwrap_err(), Found::NoHeader);
    }
    let other = Layout::new(&"other".parse().unwrap(), &"disk0".parse().unwrap(), SIZE);
    assert_eq!(other.read(&stored(), SESSION).unwrap_err(), Found::NoHeader);
}

#[test]
fn row_another_size() {
    assert_eq!(layout(SIZE + 512).read(&stored(), SESSION).unwrap_err(), Found::OtherSize);
    let storage = stored();
    change(&storage, |bytes| bytes.truncate(SECTOR * 5));
    assert_eq!(layout(SIZE).read(&storage, SESSION).unwrap_err(), Found::OtherSize);
}

#[test]
fn row_an_old_file_was_put_back() {
    assert_eq!(layout(SIZE).read(&stored(), SESSION + 1).unwrap_err(), Found::Stale);
    assert!(layout(SIZE).read(&stored(), SESSION - 1).is_ok());
}

#[test]
fn row_both_copies_whole_those_set_in_either() {
    let storage = stored();
    let layout = layout(SIZE);
    let mut bits = RegionSet::new(SIZE);
    bits.insert(7);
    let sector = layout.page(0, 2, &page_bits(&bits, 0));
    let second = layout.copies(0)[1] as usize;
    change(&storage, |bytes| bytes[second..second + SECTOR].copy_from_slice(&sector));
    assert_eq!(marked(&storage), [3, 7, 4000], "the write of the first copy was lost");
}

#[test]
fn row_one_copy_whole() {
    for copy in 0..2 {
        let storage = stored();
        let at = layout(SIZE).copies(0)[copy] as usize;
        change(&storage, |bytes| bytes[at + 300] ^= 1);
        assert_eq!(marked(&storage), [3, 4000]);
    }
}

#[test]
fn row_no_copy_whole_all_of_the_page() {
    let storage = stored();
    let [first, second] = layout(SIZE).copies(0).map(|at| at as usize);
    change(&storage, |bytes| {
        bytes[first + 300] ^= 1;
        bytes[second + 17] ^= 1;
    });
    let expected: Vec<u64> = (0..PAGE_REGIONS).chain([4000]).collect();
    assert_eq!(marked(&storage), expected);
}

#[test]
fn a_page_that_was_written_in_the_place_of_another_is_not_taken() {
    let storage = stored();
    let layout = layout(SIZE);
    let sector = layout.page(0, 9, &[0; SECTOR - BITS_AT]);
    let place = layout.copies(1)[0] as usize;
    change(&storage, |bytes| bytes[place..place + SECTOR].copy_from_slice(&sector));
    assert_eq!(marked(&storage), [3, 4000]);
}

#[test]
fn every_flipped_bit_is_survived() {
    let storage = stored();
    let original = storage.read("disk0.intent", 0, 1 << 20).unwrap();
    for byte in 0..original.len() {
        let mut damaged = original.clone();
        damaged[byte] ^= 1 << (byte % 8);
        change(&storage, |bytes| *bytes = damaged);
        assert_eq!(marked(&storage), [3, 4000], "byte {byte}");
    }
}
