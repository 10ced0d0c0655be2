use super::*;

const RTT: Duration = Duration::from_millis(50);

#[test]
fn a_connection_that_asks_nothing_is_not_silent() {
    let begun = Instant::now();
    let mut silence = Silence::default();
    silence.note(begun, 5, 5);
    silence.note(begun, 5, 6);
    silence.note(begun + Duration::from_secs(60), 5, 6);
    assert!(!silence.is_silent(begun + Duration::from_secs(60), RTT));
}

#[test]
fn silence_is_a_second_or_four_round_trips_without_an_answer() {
    let begun = Instant::now();
    let mut silence = Silence::default();
    silence.note(begun, 1, 1);
    silence.note(begun, 2, 1);
    silence.note(begun + Duration::from_millis(900), 3, 1);
    assert!(!silence.is_silent(begun + Duration::from_millis(900), RTT));
    assert!(silence.is_silent(begun + Duration::from_millis(1000), RTT));
    assert!(!silence.is_silent(begun + Duration::from_millis(2300), Duration::from_millis(600)));
    assert!(silence.is_silent(begun + Duration::from_millis(2400), Duration::from_millis(600)));
    silence.note(begun + Duration::from_millis(2500), 3, 2);
    assert!(!silence.is_silent(begun + Duration::from_millis(2500), RTT));
}
