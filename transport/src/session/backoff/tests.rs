use super::*;

const MIN: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(2);

fn pauses(backoff: &mut Backoff, count: usize) -> Vec<Duration> {
    (0..count).map(|_| backoff.pause()).collect()
}

#[test]
fn pauses_double_up_to_the_maximum_and_jitter_takes_off_at_most_half() {
    let mut shortest = Duration::MAX;
    let mut longest = Duration::ZERO;
    for seed in 0..1000 {
        let mut backoff = Backoff::new(MIN, MAX, seed);
        for whole_ms in [100, 200, 400, 800, 1600, 2000, 2000, 2000] {
            let (pause, whole) = (backoff.pause(), Duration::from_millis(whole_ms));
            assert!(
                whole / 2 <= pause && pause <= whole,
                "seed {seed}: {pause:?} instead of up to {whole:?}"
            );
            if whole == MAX {
                (shortest, longest) = (shortest.min(pause), longest.max(pause));
            }
        }
    }
    // The whole range is used, so that sources which lost a site together come back apart.
    assert!(shortest < MAX.mul_f64(0.51) && longest > MAX.mul_f64(0.99), "{shortest:?} to {longest:?}");
}

#[test]
fn seed_decides_the_jitter() {
    let of = |seed| pauses(&mut Backoff::new(MIN, MAX, seed), 8);
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
}

#[test]
fn reset_begins_again_at_the_minimum_with_other_jitter() {
    let mut backoff = Backoff::new(MIN, MAX, 3);
    let before = pauses(&mut backoff, 6);
    backoff.reset();
    let after = pauses(&mut backoff, 6);
    assert!(after[0] <= MIN && after[5] > MIN * 8, "{after:?}");
    assert_ne!(before, after, "the jitter does not repeat");
}
