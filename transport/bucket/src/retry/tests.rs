use std::cell::Cell;

use super::*;

fn policy() -> RetryPolicy {
    RetryPolicy::default()
}

/// The longest pauses of the first `count` failures.
fn longest_pauses(count: usize) -> Vec<u64> {
    let mut tries = Tries::new(policy());
    let pause = |_| match tries.handle_failure(Duration::ZERO, true, None, u64::MAX) {
        Decision::Again(pause) => u64::try_from(pause.as_millis()).expect("it fits"),
        Decision::GiveUp => panic!("given up"),
    };
    (0..count).map(pause).collect()
}

#[test]
fn pauses_double_up_to_the_longest() {
    let near = [99, 199, 399, 799, 1599, 3199, 6399, 12_799, 19_999, 19_999];
    assert_eq!(longest_pauses(10), near);
    assert_eq!(longest_pauses(100).last(), Some(&19_999), "no overflow");
}

#[test]
fn pauses_are_anything_from_nothing_to_their_bound() {
    let pause = |random| Tries::new(policy()).handle_failure(Duration::ZERO, true, None, random);
    assert_eq!(pause(0), Decision::Again(Duration::ZERO));
    assert_eq!(pause(u64::MAX / 2 + 1), Decision::Again(Duration::from_millis(50)));
}

#[test]
fn what_the_server_asks_for_is_the_least_that_is_waited() {
    let asked = Some(Duration::from_secs(60));
    let pause = |random| Tries::new(policy()).handle_failure(Duration::ZERO, true, asked, random);
    assert_eq!(pause(0), Decision::Again(Duration::from_secs(60)));
    assert_eq!(pause(1 << 63), Decision::Again(Duration::from_millis(60_050)));
}

#[test]
fn what_cannot_be_waited_for_is_given_up_at_once() {
    let late = |elapsed, asked| Tries::new(policy()).handle_failure(elapsed, true, asked, 0);
    assert_eq!(late(Duration::from_secs(599), None), Decision::Again(Duration::ZERO));
    assert_eq!(late(Duration::from_secs(600), None), Decision::GiveUp);
    assert_eq!(late(Duration::from_secs(1), Some(Duration::from_secs(599))), Decision::GiveUp);
    assert_eq!(late(Duration::ZERO, Some(Duration::MAX)), Decision::GiveUp);
}

#[test]
fn what_does_not_pass_is_not_tried_again() {
    let mut tries = Tries::new(policy());
    assert_eq!(tries.handle_failure(Duration::ZERO, false, None, 0), Decision::GiveUp);
    assert_eq!(tries.failed(), 1);
}

#[test]
fn the_time_for_a_request_grows_with_its_bytes() {
    assert_eq!(policy().request_timeout(0), Duration::from_secs(30));
    assert_eq!(policy().request_timeout(8 << 20), Duration::from_secs(30 + 128));
    assert_eq!(policy().request_timeout(1), Duration::from_secs(31));
}

fn request() -> Request {
    Request { kind: RequestKind::Put, place: "s3://bucket/object".into(), bytes: 64 * 1024 }
}

fn failure(cause: Cause) -> BucketError {
    BucketError::new("put", "s3://bucket/object", cause)
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_ends_is_cut_off_and_tried_until_the_deadline() {
    let meter = Meter::new();
    let retrier = Retrier::new(policy(), meter.clone());
    let begun = Instant::now();
    let attempts = Cell::new(0);
    let error = retrier
        .run(&request(), |_| {
            attempts.set(attempts.get() + 1);
            std::future::pending::<Result<(), BucketError>>()
        })
        .await
        .expect_err("given up");
    assert_eq!(error.cause, Cause::TimedOut { after: Duration::from_secs(31) });
    assert_eq!(error.tries, attempts.get());
    assert!(error.over <= begun.elapsed() && error.over > Duration::from_secs(500), "{:?}", error.over);
    // One more may have begun just before the deadline.
    assert!(begun.elapsed() < policy().deadline + Duration::from_secs(31));
    let traffic = meter.traffic();
    assert_eq!((traffic.puts, traffic.errors), (u64::from(error.tries), u64::from(error.tries)));
    assert_eq!(traffic.bytes_sent, u64::from(error.tries) * 64 * 1024);
    assert_eq!(traffic.retries, u64::from(error.tries) - 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_succeeds_once_the_server_does() {
    let retrier = Retrier::new(policy(), Meter::new());
    let begun = Instant::now();
    let answer = retrier
        .run(&request(), async |failed| {
            let mut busy = failure(Cause::Busy { status: 503, code: "SlowDown".into() });
            busy.retry_after_seconds = Some(5);
            if failed < 4 { Err(busy) } else { Ok(failed) }
        })
        .await;
    assert_eq!(answer.expect("the fifth try"), 4);
    assert!(begun.elapsed() >= Duration::from_secs(20), "each of four pauses is at least what was asked for");
}

#[tokio::test(start_paused = true)]
async fn the_last_error_is_the_answer() {
    let retrier = Retrier::new(policy(), Meter::new());
    let error = retrier
        .run(&request(), async |failed| {
            Err::<(), _>(failure(if failed < 2 { Cause::Lost } else { Cause::Denied }))
        })
        .await
        .expect_err("denied");
    assert_eq!((error.cause, error.tries), (Cause::Denied, 3));
}
