use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn changed(payload_bytes: u64) -> OpenEpoch {
    OpenEpoch { changed: true, payload_bytes }
}

const IDLE: OpenEpoch = OpenEpoch { changed: false, payload_bytes: 0 };

#[test]
fn an_idle_group_is_never_cut() {
    let mut timer = CutTimer::new(SECOND, 100, Duration::ZERO);
    assert!((0..100).all(|second| !timer.poll(SECOND * second, IDLE)));
}

#[test]
fn cuts_are_an_interval_apart() {
    let mut timer = CutTimer::new(SECOND, 100, Duration::ZERO);
    let cuts: Vec<u32> = (0..40).filter(|&tenth| timer.poll(SECOND / 10 * tenth, changed(1))).collect();
    assert_eq!(cuts, [0, 10, 20, 30]);
}

#[test]
fn the_first_change_after_a_pause_is_cut_at_once() {
    let mut timer = CutTimer::new(SECOND, 100, Duration::ZERO);
    assert!(timer.poll(SECOND, changed(1)));
    assert!(!timer.poll(SECOND * 50, IDLE));
    assert!(timer.poll(SECOND * 51, changed(1)));
    assert!(!timer.poll(SECOND * 51 + SECOND / 2, changed(1)));
}

#[test]
fn a_large_epoch_is_cut_before_its_time() {
    let mut timer = CutTimer::new(SECOND, 100, Duration::ZERO);
    assert!(timer.poll(SECOND, changed(1)));
    assert!(!timer.poll(SECOND + SECOND / 10, changed(99)));
    assert!(timer.poll(SECOND + SECOND / 5, changed(100)));
}

#[test]
fn a_timer_that_was_held_up_cuts_once() {
    let mut timer = CutTimer::new(SECOND, 100, Duration::ZERO);
    assert!(timer.poll(SECOND * 100, changed(1)));
    assert!(!timer.poll(SECOND * 100 + SECOND / 2, changed(1)));
    assert_eq!(timer.wait(SECOND * 100 + SECOND / 2), SECOND / 4);
    assert_eq!(timer.wait(SECOND * 100 + SECOND * 9 / 10), SECOND / 10);
}
