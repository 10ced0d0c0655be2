use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::export::tests::MemoryDisk;

const SIZE: u64 = 1 << 20;

fn session(read_only: bool) -> Session {
    Session::new("disk".to_owned(), Arc::new(MemoryDisk::new(SIZE as usize, read_only)), true, true)
}

fn request(kind: u16, flags: u16, offset: u64, length: u32) -> Request {
    Request { flags, kind, cookie: 7, offset, length }
}

fn check(kind: u16, flags: u16, offset: u64, length: u32, expected: Result<Command, Errno>) {
    assert_eq!(session(false).check(&request(kind, flags, offset, length)), expected);
}

#[test]
fn a_request_is_parsed() {
    let bytes =
        [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 16, 0];
    let parsed = Request::parse(&bytes).expect("request");
    let expected =
        Request { flags: 1, kind: 1, cookie: 0x0102_0304_0506_0708, offset: 0x1_0000_0200, length: 4096 };
    assert_eq!(parsed, expected);
    assert_eq!(parsed.encode(), bytes);
    assert_eq!(parsed.payload_bytes(), 4096);
}

#[test]
fn a_wrong_magic_number_is_no_request() {
    assert_eq!(Request::parse(&[0; REQUEST_BYTES]), None);
}

#[test]
fn good_requests_are_accepted() {
    let (later, before) = (Durable::Later, Durable::BeforeReply);
    check(command::READ, 0, 0, 512, Ok(Command::Read));
    check(command::READ, command_flag::DF | command_flag::FUA, SIZE - 512, 512, Ok(Command::Read));
    check(command::WRITE, 0, 512, 512, Ok(Command::Write { sync: later }));
    check(command::WRITE, command_flag::FUA, 0, SIZE as u32, Ok(Command::Write { sync: before }));
    check(command::FLUSH, 0, 0, 0, Ok(Command::Flush));
    check(command::TRIM, 0, 0, SIZE as u32, Ok(Command::Trim { sync: later }));
    let zeroes = Command::WriteZeroes { mode: ZeroMode::MayPunch, sync: later };
    check(command::WRITE_ZEROES, 0, 0, 4096, Ok(zeroes));
    let zeroes = Command::WriteZeroes { mode: ZeroMode::Allocate, sync: before };
    check(command::WRITE_ZEROES, command_flag::NO_HOLE | command_flag::FUA, 0, 4096, Ok(zeroes));
    check(command::BLOCK_STATUS, command_flag::REQ_ONE, 0, 512, Ok(Command::BlockStatus { extents_max: 1 }));
    check(command::DISC, 0, 0, 0, Ok(Command::Disconnect));
    check(command::WRITE, 0, 0, 0, Ok(Command::Nothing));
}

#[test]
fn what_is_beyond_the_end_is_refused() {
    check(command::READ, 0, SIZE, 512, Err(Errno::Inval));
    check(command::WRITE, 0, SIZE - 512, 1024, Err(Errno::NoSpc));
    check(command::WRITE_ZEROES, 0, SIZE, 512, Err(Errno::NoSpc));
    check(command::TRIM, 0, SIZE, 512, Err(Errno::Inval));
    check(command::BLOCK_STATUS, 0, SIZE - 512, 1024, Err(Errno::Inval));
    check(command::WRITE, 0, u64::MAX - 511, 1024, Err(Errno::NoSpc));
}

#[test]
fn what_is_not_aligned_is_refused() {
    for kind in [command::READ, command::WRITE, command::TRIM, command::WRITE_ZEROES, command::BLOCK_STATUS] {
        check(kind, 0, 1, 512, Err(Errno::Inval));
        check(kind, 0, 512, 511, Err(Errno::Inval));
    }
}

#[test]
fn what_is_too_long_is_refused() {
    let too_long = PAYLOAD_BYTES_MAX + 512;
    check(command::READ, 0, 0, too_long, Err(Errno::Inval));
    check(command::READ, command_flag::DF, 0, too_long, Err(Errno::Overflow));
    check(command::WRITE, 0, 0, too_long, Err(Errno::Inval));
}

#[test]
fn unknown_commands_and_flags_are_refused() {
    check(8, 0, 0, 512, Err(Errno::Inval));
    check(5, 0, 0, 512, Err(Errno::Inval));
    check(command::WRITE, command_flag::DF, 0, 512, Err(Errno::Inval));
    check(command::READ, 1 << 5, 0, 512, Err(Errno::Inval));
    check(command::TRIM, command_flag::NO_HOLE, 0, 512, Err(Errno::Inval));
    check(command::FLUSH, 0, 512, 0, Err(Errno::Inval));
    check(command::FLUSH, 0, 0, 512, Err(Errno::Inval));
}

#[test]
fn zeroes_that_would_be_written_out_are_refused_if_they_must_be_fast() {
    check(command::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 512, Err(Errno::NotSup));
}

#[test]
fn a_read_only_export_refuses_whatever_changes_it() {
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(session(true).check(&request(kind, 0, 0, 512)), Err(Errno::Perm));
    }
    assert_eq!(session(true).check(&request(command::FLUSH, 0, 0, 0)), Ok(Command::Flush));
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let plain =
        Session::new("disk".to_owned(), Arc::new(MemoryDisk::new(SIZE as usize, false)), false, false);
    assert_eq!(plain.check(&request(command::BLOCK_STATUS, 0, 0, 512)), Err(Errno::Inval));
    assert_eq!(plain.check(&request(command::READ, command_flag::DF, 0, 512)), Err(Errno::Inval));
}

proptest! {
    #[test]
    fn whatever_is_accepted_lies_within_the_export(
        flags in 0u16..64, kind in 0u16..10, offset: u64, length: u32, near in 0u64..2 * SIZE, short in 0u32..2 << 20,
    ) {
        for (offset, length) in [(offset, length), (near, short), (near & !511, short & !511)] {
            let checked = session(false).check(&request(kind, flags, offset, length));
            if !matches!(checked, Err(_) | Ok(Command::Disconnect | Command::Flush)) {
                prop_assert!(offset.is_multiple_of(512) && length.is_multiple_of(512));
                prop_assert!(offset + u64::from(length) <= SIZE);
                prop_assert!(length <= PAYLOAD_BYTES_MAX || kind != command::WRITE);
            }
        }
    }
}
