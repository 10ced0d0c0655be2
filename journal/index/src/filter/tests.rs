use super::*;

fn fingerprint(seed: u64) -> Fingerprint {
    Fingerprint::of(blake3::hash(&seed.to_le_bytes()).as_bytes())
}

fn filled(entries: u64) -> Filter {
    // All in one shard, as they come.
    let mut filter = Filter::for_entries(entries);
    (0..entries).for_each(|seed| filter.insert(fingerprint(seed)));
    filter
}

#[test]
fn what_was_inserted_is_found() {
    for entries in [1, 61, 63, 5000] {
        let filter = filled(entries);
        assert!((0..entries).all(|seed| filter.contains(fingerprint(seed))));
    }
}

fn check_foreign(entries: u64, expected: std::ops::Range<usize>) {
    let filter = filled(entries);
    let passed = (0..100_000).filter(|seed| filter.contains(fingerprint(1 << 40 | seed))).count();
    assert!(expected.contains(&passed), "{passed} of 100000");
}

#[test]
fn few_foreign_keys_pass() {
    check_foreign(SMALL_ENTRIES as u64, 600..1000);
    check_foreign(SMALL_ENTRIES as u64 + 1, 1800..2300);
}

#[test]
fn filter_survives_its_bytes() {
    let filter = filled(1000);
    assert_eq!(filter.block_count(), 21);
    assert_eq!(Filter::from_bytes(&filter.bytes().collect::<Vec<_>>()), filter);
}
