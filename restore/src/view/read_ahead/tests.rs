use super::*;

const MIB: u64 = 1 << 20;
const READ: u64 = 128 << 10;

#[test]
fn a_reader_that_goes_on_is_expected_farther_each_time_and_nothing_twice() {
    let mut ahead = ReadAhead::default();
    let mut expected_until = 0;
    let mut calls = 0;
    for number in 0..1000 {
        let read = number * READ..(number + 1) * READ;
        let expected = ahead.handle_read(0, read.clone());
        if expected.is_empty() {
            assert!(expected_until >= read.end);
            continue;
        }
        assert_eq!(expected.start, expected_until, "read {number}");
        assert!(expected.end >= read.end);
        expected_until = expected.end;
        calls += 1;
    }
    assert!(expected_until >= 1000 * READ + WINDOW_BYTES_MAX / 2);
    assert!(calls < 30, "{calls} calls for 125 MiB");
}

#[test]
fn reads_here_and_there_are_expected_as_they_are() {
    let mut ahead = ReadAhead::default();
    for number in 0..100 {
        let start = number * 1000 * MIB;
        assert_eq!(ahead.handle_read(0, start..start + 4096), start..start + 4096);
    }
}

#[test]
fn readers_of_several_volumes_are_told_apart() {
    let mut ahead = ReadAhead::default();
    for volume in 0..4 {
        ahead.handle_read(volume, 0..READ);
    }
    for volume in 0..4 {
        assert_eq!(ahead.handle_read(volume, READ..2 * READ), READ..2 * READ + MIB, "volume {volume}");
    }
}
