use super::*;

#[test]
fn location_answers_what_it_was_made_of() {
    for (segment, frame, sector, depth) in [(0, 0, 0, 0), (u32::MAX, u16::MAX, 8191, 7), (7, 300, 4097, 2)] {
        let location = Location::new(segment, frame, sector, depth).unwrap();
        assert_eq!(
            (location.segment(), location.frame(), location.sector(), location.depth()),
            (segment, frame, sector, depth)
        );
    }
    assert_eq!(Location::new(0, 0, 8192, 0), None);
    assert_eq!(Location::new(0, 0, 0, 8), None);
}

#[test]
fn v1_entry_is_parsed() {
    let entry = Entry {
        fingerprint: Fingerprint(0x0102_0304_0506_0708),
        location: Location::new(0xA1A2_A3A4, 0xB1B2, 1, 2).unwrap(),
    };
    let bytes = [8, 7, 6, 5, 4, 3, 2, 1, 0x0A, 0, 0xB2, 0xB1, 0xA4, 0xA3, 0xA2, 0xA1];
    assert_eq!(entry.to_bytes(), bytes);
    assert_eq!(Entry::from_bytes(bytes), entry);
}

#[test]
fn fingerprints_order_as_hashes_do() {
    let (mut low, mut high) = ([0xFF; 32], [0; 32]);
    (low[0], high[0]) = (0x1F, 0x20);
    assert!(Fingerprint::of(&low) < Fingerprint::of(&high));
    assert_eq!((Fingerprint::of(&low).shard(), Fingerprint::of(&high).shard()), (1, 2));
    assert_eq!(Fingerprint::of(&low).part_of(100), 99);
    assert_eq!(Fingerprint::of(&high).part_of(100), 0);
}
