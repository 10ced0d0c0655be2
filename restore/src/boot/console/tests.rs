use super::{Search, TAIL_BYTES, Tail};

#[test]
fn a_text_is_found_wherever_the_stream_is_cut() {
    let stream = b"booting\r\nGUEST-READY now\r\n";
    for first in 0..stream.len() {
        for second in first..stream.len() {
            let mut search = Search::new(b"GUEST-READY".to_vec());
            let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
            assert!(pieces.iter().any(|piece| search.found_in(piece)), "cut at {first} and {second}");
        }
    }
}

#[test]
fn a_text_that_is_not_there_is_not_found() {
    let mut search = Search::new(b"READY".to_vec());
    assert!(!b"REAREADREADXY".chunks(2).any(|piece| search.found_in(piece)));
}

#[test]
fn only_the_end_of_the_console_is_kept() {
    let tail = Tail::default();
    (0..TAIL_BYTES).for_each(|_| tail.push(b"old"));
    tail.push(b"\x1b[2Jthe end\n");
    assert!(tail.text().ends_with("[2Jthe end\n"));
    assert!(tail.text().len() <= TAIL_BYTES);
}
