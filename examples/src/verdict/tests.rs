use super::*;
use crate::lines::RecordLine;

/// Returns the life of a guest that announced the given records, one each 20 ms.
fn wrote(numbers: std::ops::RangeInclusive<u64>) -> Life {
    let record = |number| RecordLine { number, unix_ms: 1_000_000 + number * 20, checksum: 0 };
    Life { records: numbers.map(record).collect(), ..Life::default() }
}

/// Returns the life of a guest that found `records` records and went on.
fn found(records: u64, replace: (&str, &str)) -> Life {
    let line = format!(
        "GUEST-READY boot=2 records={records} torn=0 holes=0 last_ms={} tail=0 pages=1024 pages_bad=0 replayed=1 \
         fs_errors=0 uptime_ms=5000\r\n",
        1_000_000 + records * 20
    );
    Life {
        records: wrote(records + 1..=records + 9).records,
        ..Life::parse(&line.replace(replace.0, replace.1))
    }
}

#[track_caller]
fn refused(before: &Life, after: &Life, expected: &str) {
    let error = judge(before, after, 8.0, "p").expect_err("this must not pass");
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn the_loss_is_counted_in_records_and_in_the_guests_time() {
    let verdict = judge(&wrote(1..=500), &found(480, ("", "")), 8.5, "p1").expect("0.4 s are allowed");
    assert_eq!((verdict.records_written, verdict.records_after_boot, verdict.records_lost), (500, 480, 20));
    assert_eq!(
        serde_json::to_string(&verdict).expect("it is plain"),
        r#"{"records_written":500,"records_after_boot":480,"records_lost":20,"seconds_lost":0.4,"boot_seconds":8.5,"point":"p1"}"#
    );
}

#[test]
fn a_record_that_was_durable_but_not_announced_is_no_loss() {
    let verdict = judge(&wrote(1..=500), &found(501, ("", "")), 8.5, "p").expect("nothing is lost");
    assert_eq!((verdict.records_lost, verdict.seconds_lost), (0, 0.0));
}

#[test]
fn too_great_a_loss_fails() {
    refused(&wrote(1..=500), &found(390, ("", "")), "2.2 s of writes are lost");
}

#[test]
fn any_damage_fails() {
    for (from, to) in [("torn=0", "torn=1"), ("holes=0", "holes=1"), ("pages_bad=0", "pages_bad=3")] {
        refused(&wrote(1..=500), &found(480, (from, to)), "found damage");
    }
}

#[test]
fn another_record_under_the_same_number_fails() {
    refused(
        &wrote(1..=500),
        &found(480, ("last_ms=1009600", "last_ms=1009601")),
        "not the one that was announced",
    );
}

#[test]
fn a_guest_that_does_not_go_on_where_it_stopped_fails() {
    let after = Life { records: wrote(499..=505).records, ..found(480, ("", "")) };
    refused(&wrote(1..=500), &after, "went on with record 499");
}

#[test]
fn a_guest_that_never_was_ready_fails() {
    refused(&wrote(1..=500), &Life::default(), "did not say that it is ready");
    refused(&Life::default(), &found(480, ("", "")), "announced no record");
}
