use super::*;

const CONSOLE: &str = "\x1b[HGRUB starts the guest\r\n\
    [    4.9] EXT4-fs (vda1): recovery complete\r\n\
    GUEST-READY boot=2 records=40 torn=0 holes=0 last_ms=1000 tail=0 pages=1024 pages_bad=0 replayed=1 fs_errors=0 \
    uptime_ms=5000\r\n\
    RECORD 41 2000 00000000000000ab\r\n\
    RECORD 42 2020 00000000000000ac\r\n\
    RECORD 43 2720 00000000000000ad\r\n";

#[test]
fn a_console_gives_readiness_and_records() {
    let life = Life::parse(CONSOLE);
    assert_eq!(life.ready.map(|ready| (ready.boot, ready.records)), Some((2, 40)));
    assert_eq!(life.last_number(), 43);
    assert_eq!(life.failure, None);
}

#[test]
fn a_line_that_is_still_being_printed_does_not_count() {
    for cut in [1, 2, 10] {
        assert_eq!(Life::parse(&CONSOLE[..CONSOLE.len() - cut]).last_number(), 42, "{cut} bytes less");
    }
}

#[test]
fn pauses_are_measured_from_the_given_record_on() {
    let life = Life::parse(CONSOLE);
    assert_eq!(life.longest_pause_ms(41), 700);
    assert_eq!(life.longest_pause_ms(43), 0);
}

#[test]
fn a_guest_that_gives_up_says_why() {
    for line in ["GUEST-FAILED no disk", "[    1.0] Kernel panic - not syncing: no init"] {
        assert_eq!(Life::parse(&format!("boot\r\n{line}\r\nmore\r\n")).failure.as_deref(), Some(line));
    }
}

#[test]
fn a_console_that_is_not_there_yet_is_empty() {
    let life = Life::read(Path::new("/nonexistent/console.log")).expect("this is no error");
    assert_eq!(life, Life::default());
}
