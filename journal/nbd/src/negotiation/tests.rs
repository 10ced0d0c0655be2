use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::export::tests::MemoryDisk;
use crate::request::Request;
use crate::wire::command;

/// Flags of a client that knows everything.
const HELLO: [u8; 4] = [0, 0, 0, 3];

fn exports() -> Exports {
    let exports = Exports::new();
    exports.add("a", Arc::new(MemoryDisk::new(1 << 20, false))).expect("free name");
    exports.add("b", Arc::new(MemoryDisk::new(512, true))).expect("free name");
    exports
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [&MAGIC_OPTION.to_be_bytes()[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data]
        .concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn go(name: &str, wanted: &[u16]) -> Vec<u8> {
    let count = (wanted.len() as u16).to_be_bytes();
    let wanted: Vec<u8> = wanted.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    [&string(name)[..], &count, &wanted].concat()
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = (queries.len() as u32).to_be_bytes();
    let queries: Vec<u8> = queries.iter().flat_map(|query| string(query)).collect();
    [&string(name)[..], &count, &queries].concat()
}

/// How a negotiation ended.
struct Ended {
    result: Result<Option<Session>, NegotiationError>,
    aborted: bool,
    out: Vec<u8>,
}

/// Plays the input to a negotiation, `step` bytes at a time.
fn play_in_steps(input: &[u8], step: usize) -> Ended {
    let exports = exports();
    let mut greeting = Vec::new();
    let mut negotiation = Negotiation::start(&mut greeting);
    let mut ended = Ended { result: Ok(None), aborted: false, out: Vec::new() };
    let (mut start, mut end) = (0, 0);
    loop {
        match negotiation.handle_input(&input[start..end], &exports, &mut ended.out) {
            Err(error) => ended.result = Err(error),
            Ok((_, Step::Opened(session))) => ended.result = Ok(Some(session)),
            Ok((_, Step::Aborted)) => ended.aborted = true,
            Ok((0, Step::More)) if end == input.len() => {}
            Ok((0, Step::More)) => {
                end = input.len().min(end + step);
                continue;
            }
            Ok((taken, Step::More)) => {
                start += taken;
                continue;
            }
        }
        return ended;
    }
}

fn play(options: &[Vec<u8>]) -> Ended {
    play_in_steps(&[&HELLO[..], &options.concat()].concat(), usize::MAX / 2)
}

/// Type and body of every reply in `out`.
fn replies(out: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut fields = Fields(out);
    let mut replies = Vec::new();
    while !fields.is_empty() {
        assert_eq!(fields.u64(), Some(MAGIC_OPTION_REPLY));
        fields.u32().expect("option");
        let kind = fields.u32().expect("type");
        replies.push((kind, fields.string().expect("body").to_vec()));
    }
    replies
}

fn kinds(out: &[u8]) -> Vec<u32> {
    replies(out).iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn the_greeting_is_that_of_fixed_newstyle() {
    let mut out = Vec::new();
    Negotiation::start(&mut out);
    assert_eq!(out, b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn go_opens_an_export() {
    let ended = play(&[option(option::GO, &go("a", &[info::NAME, info::DESCRIPTION]))]);
    let replies = replies(&ended.out);
    let bodies: Vec<&[u8]> = replies.iter().map(|(_, body)| &body[..]).collect();
    let block_sizes = [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0];
    let export = [0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0x09, 0x6d];
    assert_eq!(bodies, [&export[..], b"\0\x01a", b"\0\x02a disk in memory", &block_sizes, b""]);
    assert_eq!(
        kinds(&ended.out),
        [option_reply::INFO; 4].into_iter().chain([option_reply::ACK]).collect::<Vec<_>>()
    );
    let session = ended.result.ok().flatten().expect("session");
    assert_eq!((session.name(), session.size_bytes(), session.read_only()), ("a", 1 << 20, false));
    assert!(!session.structured());
}

#[test]
fn info_does_not_open_the_export() {
    let ended = play(&[option(option::INFO, &go("b", &[]))]);
    assert_eq!(kinds(&ended.out), [option_reply::INFO, option_reply::INFO, option_reply::ACK]);
    let flags = &replies(&ended.out)[0].1[10..];
    assert_eq!(flags, [0x01, 0x0f], "read-only: neither trim nor zeroes");
    assert!(matches!(ended.result, Ok(None)));
}

#[test]
fn an_unknown_export_is_an_error_of_go_and_the_end_of_export_name() {
    assert_eq!(kinds(&play(&[option(option::GO, &go("c", &[]))]).out), [option_reply::ERR_UNKNOWN]);
    let ended = play(&[option(option::EXPORT_NAME, b"c")]);
    assert_eq!(ended.result.err(), Some(NegotiationError::UnknownExport));
}

#[test]
fn export_name_is_answered_with_zeroes_only_where_they_are_wanted() {
    let with = [&[0, 0, 0, 1][..], &option(option::EXPORT_NAME, b"a")].concat();
    assert_eq!(play_in_steps(&with, 1000).out.len(), 8 + 2 + 124);
    assert_eq!(play(&[option(option::EXPORT_NAME, b"a")]).out, [0, 0, 0, 0, 0, 16, 0, 0, 0x09, 0x6d]);
}

#[test]
fn exports_are_listed() {
    let ended = play(&[option(option::LIST, b"")]);
    let expected = [
        (option_reply::SERVER, b"\0\0\0\x01aa disk in memory".to_vec()),
        (option_reply::SERVER, b"\0\0\0\x01ba disk in memory".to_vec()),
        (option_reply::ACK, Vec::new()),
    ];
    assert_eq!(replies(&ended.out), expected);
    assert_eq!(kinds(&play(&[option(option::LIST, b"x")]).out), [option_reply::ERR_INVALID]);
}

#[test]
fn base_allocation_is_selected_for_the_export_that_is_opened() {
    let structured = option(option::STRUCTURED_REPLY, b"");
    let set = option(option::SET_META_CONTEXT, &queries("a", &["x-y:z", "base:allocation"]));
    for (name, active) in [("a", true), ("b", false)] {
        let ended = play(&[structured.clone(), set.clone(), option(option::GO, &go(name, &[]))]);
        assert_eq!(
            replies(&ended.out)[1],
            (option_reply::META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec())
        );
        let session = ended.result.ok().flatten().expect("session");
        let status = Request { flags: 0, kind: command::BLOCK_STATUS, cookie: 0, offset: 0, length: 512 };
        assert_eq!(session.check(&status).is_ok(), active);
    }
}

#[test]
fn metadata_contexts_need_structured_replies() {
    let set = option(option::SET_META_CONTEXT, &queries("a", &["base:allocation"]));
    assert_eq!(kinds(&play(&[set]).out), [option_reply::ERR_INVALID]);
}

#[test]
fn metadata_contexts_are_listed() {
    let check = |asked: &[&str], expected: &[u32]| {
        let list = option(option::LIST_META_CONTEXT, &queries("a", asked));
        let ended = play(&[option(option::STRUCTURED_REPLY, b""), list]);
        assert_eq!(kinds(&ended.out)[1..], *expected, "{asked:?}");
    };
    check(&[], &[option_reply::META_CONTEXT, option_reply::ACK]);
    check(&["base:"], &[option_reply::META_CONTEXT, option_reply::ACK]);
    check(&["base:allocation"], &[option_reply::META_CONTEXT, option_reply::ACK]);
    check(&["base:other", "qemu:"], &[option_reply::ACK]);
}

#[test]
fn unknown_options_are_refused_and_the_negotiation_goes_on() {
    let start_tls = option(5, b"");
    let extended_headers = option(11, b"");
    let unknown = option(4711, &[0; 1000]);
    let ended = play(&[start_tls, extended_headers, unknown, option(option::GO, &go("a", &[]))]);
    assert_eq!(kinds(&ended.out)[..3], [option_reply::ERR_UNSUP; 3]);
    assert!(matches!(ended.result, Ok(Some(_))));
}

#[test]
fn an_option_that_is_too_long_is_skipped() {
    let long = option(option::GO, &vec![0; 70_000]);
    let ended = play(&[long, option(option::GO, &go("a", &[]))]);
    assert_eq!(kinds(&ended.out)[..2], [option_reply::ERR_TOO_BIG, option_reply::INFO]);
    assert!(matches!(ended.result, Ok(Some(_))));
    let absurd = [&MAGIC_OPTION.to_be_bytes()[..], &[0, 0, 0, 7], &[0xff; 4]].concat();
    assert_eq!(play(&[absurd]).result.err(), Some(NegotiationError::OptionLength { length: u32::MAX }));
}

#[test]
fn malformed_options_are_invalid() {
    let check = |number: u32, data: &[u8]| {
        let ended = play(&[option(option::STRUCTURED_REPLY, b""), option(number, data)]);
        assert_eq!(kinds(&ended.out)[1..], [option_reply::ERR_INVALID], "{number} {data:?}");
    };
    check(option::GO, b"");
    check(option::GO, &[&go("a", &[])[..], b"rest"].concat());
    check(option::GO, &go(&"x".repeat(4097), &[]));
    check(option::GO, &[0xff; 6]);
    check(option::GO, &[0, 0, 0, 1, 0xff, 0, 0]);
    check(option::STRUCTURED_REPLY, b"x");
    check(option::SET_META_CONTEXT, b"");
    check(option::SET_META_CONTEXT, &queries("a", &["base:"; 65]));
}

#[test]
fn a_client_of_another_protocol_is_not_talked_to() {
    let flags = play_in_steps(b"GET / HTTP/1.1\r\n", 100).result.err();
    assert!(matches!(flags, Some(NegotiationError::ClientFlags { .. })));
    assert_eq!(play(&[vec![0; 16]]).result.err(), Some(NegotiationError::Magic));
}

#[test]
fn nobody_negotiates_for_ever() {
    let options = vec![option(option::LIST, b""); OPTIONS_MAX as usize + 1];
    assert_eq!(play(&options).result.err(), Some(NegotiationError::TooManyOptions));
}

#[test]
fn abort_is_acknowledged() {
    let ended = play(&[option(option::ABORT, b"")]);
    assert!(ended.aborted);
    assert_eq!(kinds(&ended.out), [option_reply::ACK]);
}

proptest! {
    /// Whatever comes in, nothing panics, and the answer is bounded by what is asked.
    #[test]
    fn arbitrary_options_are_survived(
        options in prop::collection::vec((0u32..14, prop::collection::vec(any::<u8>(), 0..64)), 0..20),
        step in 1usize..50,
    ) {
        let input: Vec<u8> = options.iter().flat_map(|(number, data)| option(*number, data)).collect();
        let ended = play_in_steps(&[&HELLO[..], &input].concat(), step);
        prop_assert!(ended.out.len() <= 1000 * (1 + options.len()));
    }

    #[test]
    fn arbitrary_bytes_are_survived(input in prop::collection::vec(any::<u8>(), 0..200), step in 1usize..50) {
        play_in_steps(&input, step);
        let ended = play_in_steps(&[&HELLO[..], &MAGIC_OPTION.to_be_bytes(), &input].concat(), step);
        prop_assert!(ended.out.len() <= 4096);
    }

    /// Cutting the input into pieces changes nothing.
    #[test]
    fn pieces_do_not_matter(step in 1usize..100) {
        let set = option(option::SET_META_CONTEXT, &queries("a", &["base:allocation"]));
        let options = [option(option::STRUCTURED_REPLY, b""), set, option(option::GO, &go("a", &[]))].concat();
        let whole = play_in_steps(&[&HELLO[..], &options].concat(), 10_000);
        let pieces = play_in_steps(&[&HELLO[..], &options].concat(), step);
        prop_assert_eq!(whole.out, pieces.out);
        prop_assert!(matches!(pieces.result, Ok(Some(_))));
    }
}
