use super::*;

fn log(numbers: &[u64]) -> Vec<u8> {
    let record = |number| Record { number, boot: 1, unix_ms: 1_000 + number };
    numbers.iter().flat_map(|number| record(*number).encode()).collect()
}

#[track_caller]
fn check(log: &[u8], expect: Scan) {
    let mut scan = Scan::default();
    log.chunks(RECORD_BYTES).for_each(|slot| scan.add(slot));
    assert_eq!(scan, expect);
}

#[test]
fn a_record_survives_the_round_trip() {
    let record = Record { number: 7, boot: 2, unix_ms: 1_795_000_000_000 };
    assert_eq!(Record::decode(&record.encode()), Some(record));
}

#[test]
fn every_flipped_bit_of_a_record_is_noticed() {
    let whole = Record { number: 7, boot: 2, unix_ms: 1_795_000_000_000 }.encode();
    for bit in 0..RECORD_BYTES * 8 {
        let mut damaged = whole;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Record::decode(&damaged), None, "bit {bit}");
    }
}

#[test]
fn an_empty_log_has_no_records() {
    check(&[], Scan::default());
}

#[test]
fn a_whole_log_is_counted() {
    check(&log(&[1, 2, 3]), Scan { records: 3, last_ms: 1_003, valid_bytes: 600, ..Scan::default() });
}

#[test]
fn a_torn_last_record_is_tail_and_not_torn() {
    let mut bytes = log(&[1, 2, 3]);
    bytes.truncate(450);
    check(&bytes, Scan { records: 2, last_ms: 1_002, valid_bytes: 400, tail_bytes: 50, ..Scan::default() });
}

#[test]
fn zeros_at_the_end_are_tail() {
    let mut bytes = log(&[1]);
    bytes.resize(600, 0);
    check(&bytes, Scan { records: 1, last_ms: 1_001, valid_bytes: 200, tail_bytes: 400, ..Scan::default() });
}

#[test]
fn a_damaged_record_before_a_whole_one_is_torn_and_no_hole() {
    let mut bytes = log(&[1, 2, 3]);
    bytes[200..400].fill(0);
    check(&bytes, Scan { records: 3, torn: 1, last_ms: 1_003, valid_bytes: 600, ..Scan::default() });
}

#[test]
fn missing_and_repeated_numbers_are_holes() {
    check(&log(&[1, 4]), Scan { records: 4, holes: 2, last_ms: 1_004, valid_bytes: 400, ..Scan::default() });
    check(
        &log(&[1, 2, 2]),
        Scan { records: 2, holes: 1, last_ms: 1_002, valid_bytes: 600, ..Scan::default() },
    );
}
