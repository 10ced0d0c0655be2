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

#[test]
fn at_most_three_percent_of_foreign_keys_pass() {
    let filter = filled(100_000);
    let passed = (1_000_000..1_100_000).filter(|&seed| filter.contains(fingerprint(seed))).count();
    assert!(passed < 3000, "{passed} of 100000");
    assert!(passed > 500, "{passed} of 100000 is too good to be true");
}

#[test]
fn filter_survives_its_bytes() {
    let filter = filled(1000);
    assert_eq!(filter.block_count(), 17);
    assert_eq!(Filter::from_bytes(&filter.bytes().collect::<Vec<_>>()), filter);
}
