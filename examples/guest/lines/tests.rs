use super::*;

const READY_LINE: &str = "GUEST-READY boot=2 records=812 torn=0 holes=0 last_ms=1795000000000 tail=40 pages=1024 \
                          pages_bad=0 replayed=1 fs_errors=0 uptime_ms=2310";

#[test]
fn a_record_line_survives_the_round_trip() {
    let line = RecordLine { number: 12, unix_ms: 1_795_000_000_000, checksum: 0xab };
    assert_eq!(line.to_string(), "RECORD 12 1795000000000 00000000000000ab");
    assert_eq!(RecordLine::parse(&line.to_string()), Some(line));
}

#[test]
fn a_cut_or_mixed_record_line_does_not_count() {
    for line in ["RECORD 12 1795000000000 00000000000000a", "RECORD 12", "RECORD 12 17 ab [ 2.1] virtio", ""]
    {
        assert_eq!(RecordLine::parse(line), None, "{line}");
    }
}

#[test]
fn a_ready_line_survives_the_round_trip() {
    let ready = ReadyLine::parse(READY_LINE).expect("the line is whole");
    assert_eq!((ready.boot, ready.records, ready.tail, ready.replayed), (2, 812, 40, 1));
    assert!(ready.is_whole());
    assert_eq!(ready.to_string(), READY_LINE);
}

#[test]
fn a_cut_ready_line_does_not_count() {
    assert_eq!(ReadyLine::parse(READY_LINE.strip_suffix(" uptime_ms=2310").expect("it ends so")), None);
}

#[test]
fn any_damage_makes_a_guest_not_whole() {
    for (from, to) in [("torn=0", "torn=1"), ("holes=0", "holes=2"), ("pages_bad=0", "pages_bad=1")] {
        let ready = ReadyLine::parse(&READY_LINE.replace(from, to)).expect("the line is whole");
        assert!(!ready.is_whole(), "{to}");
    }
}
