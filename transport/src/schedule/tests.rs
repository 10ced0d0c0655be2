use super::*;

const CHUNK: u64 = 64 << 10;

fn waiter(id: u64, due: Option<i64>) -> Waiter {
    Waiter { id, sequence: Sequence(id), due: due.map(Timestamp), bytes: CHUNK }
}

/// Bytes that each group gets when all wait all the time and the line takes `rate` bytes per second.
fn shares(schedule: &mut Schedule, dues: &[Option<i64>], rate: f64, seconds: f64) -> Vec<f64> {
    let begun = Instant::now();
    let mut got = vec![0.0; dues.len()];
    let mut waiting = vec![false; dues.len()];
    let mut time = 0.0;
    while time < seconds {
        for (group, due) in dues.iter().enumerate() {
            if !std::mem::replace(&mut waiting[group], true) {
                schedule.enter(group, waiter(group as u64, *due));
            }
        }
        match schedule.next(begun + Duration::from_secs_f64(time)) {
            Next::Grant(group) => {
                waiting[group as usize] = false;
                got[group as usize] += CHUNK as f64;
                time += CHUNK as f64 / rate;
            }
            Next::Wait(at) => time = (at - begun).as_secs_f64().max(time + 1e-6),
            Next::Idle => unreachable!("all wait"),
        }
    }
    got
}

#[test]
fn whoever_breaks_its_target_first_goes_first_and_nobody_starves() {
    let mut schedule = Schedule::new(3, Instant::now());
    let got = shares(&mut schedule, &[Some(2000), Some(1000), None], 10e6, 20.0);
    let all: f64 = got.iter().sum();
    assert!((0.89..0.91).contains(&(got[1] / all)), "{got:?}");
    assert!((0.045..0.055).contains(&(got[0] / all)), "{got:?}");
    assert!((0.045..0.055).contains(&(got[2] / all)), "{got:?}");
}

#[test]
fn many_starving_groups_leave_half_to_the_urgent_one() {
    let mut dues = vec![Some(2000); 40];
    dues[7] = Some(1000);
    let mut schedule = Schedule::new(dues.len(), Instant::now());
    let got = shares(&mut schedule, &dues, 10e6, 60.0);
    assert!(got[7] / got.iter().sum::<f64>() > 0.45, "{got:?}");
    assert!(got.iter().all(|bytes| *bytes > 0.0), "{got:?}");
}

#[test]
fn a_limit_holds_and_the_rest_goes_to_others() {
    let mut schedule = Schedule::new(2, Instant::now());
    schedule.set_overhead(1.0);
    schedule.set_limit(0, Some(1_000_000), Instant::now());
    let got = shares(&mut schedule, &[Some(1), Some(2)], 10e6, 10.0);
    assert!((0.98e7..1.02e7).contains(&got[0]), "{got:?}");
    assert!(got[1] > 8.9e7, "{got:?}");
}

#[test]
fn within_a_group_the_oldest_segment_goes_first() {
    let now = Instant::now();
    let mut schedule = Schedule::new(1, now);
    for id in [3, 1, 2] {
        schedule.enter(0, waiter(id, None));
    }
    assert_eq!(
        [(); 4].map(|()| schedule.next(now)),
        [Next::Grant(1), Next::Grant(2), Next::Grant(3), Next::Idle]
    );
}
