use super::*;

fn wanted(key: &str, start: u64, end: u64) -> Wanted {
    Wanted { key: Path::from(key), hash: Hash::of(format!("{key} {start}").as_bytes()), range: start..end }
}

fn check(frames: Vec<Wanted>, expect: &[(&str, Range<u64>, usize)]) {
    let spans = spans(frames);
    let found: Vec<_> =
        spans.iter().map(|span| (span.frames[0].key.to_string(), span.range(), span.frames.len())).collect();
    let expect: Vec<_> =
        expect.iter().map(|(key, range, frames)| ((*key).to_owned(), range.clone(), *frames)).collect();
    assert_eq!(found, expect);
}

#[test]
fn frames_that_lie_together_are_fetched_together_whatever_their_order() {
    check(
        vec![wanted("a", 300, 400), wanted("b", 0, 50), wanted("a", 100, 200), wanted("a", 200, 300)],
        &[("a", 100..400, 3), ("b", 0..50, 1)],
    );
}

#[test]
fn a_gap_is_fetched_along_if_it_is_small() {
    let far = 100 + GAP_BYTES_MAX;
    check(vec![wanted("a", 0, 100), wanted("a", far, far + 10)], &[("a", 0..far + 10, 2)]);
    check(
        vec![wanted("a", 0, 100), wanted("a", far + 1, far + 10)],
        &[("a", 0..100, 1), ("a", far + 1..far + 10, 1)],
    );
}

#[test]
fn a_span_has_a_limit() {
    const MIB: u64 = 1 << 20;
    let frames = (0..20).map(|number| wanted("a", number * MIB, (number + 1) * MIB)).collect();
    check(frames, &[("a", 0..8 * MIB, 8), ("a", 8 * MIB..16 * MIB, 8), ("a", 16 * MIB..20 * MIB, 4)]);
}
