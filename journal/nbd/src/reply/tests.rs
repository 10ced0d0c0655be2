use super::*;

fn extent(length: u64, zero: bool) -> StatusExtent {
    StatusExtent { length, hole: zero, zero }
}

/// Length and flags of the descriptors in the answer to a status of 4096 bytes.
fn check_status(extents: &[StatusExtent], extents_max: usize, expected: &[(u32, u32)]) {
    let mut out = Vec::new();
    block_status(9, 4096, extents, extents_max, &mut out);
    let mut bytes = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9];
    bytes.extend((4 + 8 * expected.len() as u32).to_be_bytes());
    bytes.extend(1u32.to_be_bytes());
    bytes.extend(
        expected.iter().flat_map(|(length, flags)| [length.to_be_bytes(), flags.to_be_bytes()].concat()),
    );
    assert_eq!(out, bytes);
}

#[test]
fn success_is_a_simple_reply() {
    assert_eq!(done(0x0102), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
}

#[test]
fn an_error_is_told_in_the_style_of_the_connection() {
    let mut out = Vec::new();
    ReplyStyle::Simple.error(1, Errno::NoSpc, &mut out);
    assert_eq!(out, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 1]);
    out.clear();
    ReplyStyle::Structured.error(1, Errno::Inval, &mut out);
    let head = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 22];
    assert_eq!(out, [&head[..], &[0, 0, 0, 22, 0, 16], b"invalid argument"].concat());
}

#[test]
fn the_header_of_a_read_counts_its_data() {
    let mut header = [0; READ_HEADER_BYTES_MAX];
    ReplyStyle::Structured.read_header(1, 512, 4096, &mut header);
    let expected =
        [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 2, 0];
    assert_eq!(header, expected);
    let mut header = [0; SIMPLE_REPLY_BYTES];
    ReplyStyle::Simple.read_header(1, 512, 4096, &mut header);
    assert_eq!(header, done(1));
}

#[test]
fn a_hole_and_nothing_are_one_chunk() {
    let mut out = Vec::new();
    hole(1, 512, 4096, &mut out);
    let head = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 12];
    assert_eq!(out, [&head[..], &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0x10, 0]].concat());
    assert_eq!(none(1), [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn a_status_is_cut_to_what_was_asked_for_and_merged() {
    check_status(
        &[extent(1024, false), extent(1024, false), extent(8192, true)],
        100,
        &[(2048, 0), (2048, 3)],
    );
    check_status(&[extent(1024, true), extent(0, false), extent(512, true)], 100, &[(1536, 3)]);
    check_status(&[extent(512, true), extent(512, false), extent(512, true)], 1, &[(512, 3)]);
    check_status(&[extent(512, true), extent(512, false), extent(512, true)], 2, &[(512, 3), (512, 0)]);
    check_status(&[extent(u64::MAX, true)], 1, &[(4096, 3)]);
    check_status(&[], 1, &[(4096, 0)]);
}
