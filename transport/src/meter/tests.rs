use super::*;

#[test]
fn a_bucket_gives_its_rate_and_no_more_than_a_burst() {
    let begun = Instant::now();
    let mut bucket = Bucket::new(Some(1_000_000), BURST, begun);
    let mut taken = 0;
    for step in 0..100_000_u64 {
        let now = begun + Duration::from_micros(step * 100);
        if bucket.ready_at(now).is_none() {
            bucket.take(now, 14_800);
            taken += 14_800;
        }
    }
    assert!((9_950_000..10_050_000).contains(&taken), "{taken} bytes in 10 s");
}

#[test]
fn a_bucket_without_a_rate_is_always_ready_and_owes_nothing_later() {
    let now = Instant::now();
    let mut bucket = Bucket::new(None, BURST, now);
    bucket.take(now, 1 << 40);
    assert_eq!(bucket.ready_at(now), None);
    bucket.set_rate(Some(1000), now);
    assert_eq!(bucket.ready_at(now), None);
    bucket.take(now, 1000);
    assert_eq!(bucket.ready_at(now), Some(now + Duration::from_secs(1)));
}
