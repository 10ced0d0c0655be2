use super::*;
use crate::health::LatenessSummary;
use crate::model::Direction;
use crate::profile::{Change, LinkState, Rate};

/// A run of 20 s at 90 % of 100 Mbit/s, out from 5 to 8 s, back at 8.5 s.
fn report() -> (LinkProfile, Report) {
    let mut profile = LinkProfile::symmetric("test & <more>", Rate::mbit(100), Duration::from_millis(20));
    let at = |seconds, state| Change { time: Duration::from_secs(seconds), ..Change::link(state) };
    profile.script = vec![at(5, LinkState::Down), at(8, LinkState::Up)];
    let samples = (1..=80).map(|number| {
        let seconds = f64::from(number) / 4.0;
        let out = seconds > 5.0 && seconds < 8.5;
        Sample {
            seconds,
            goodput_mbit: if out { 0.0 } else { 90.0 },
            lag_seconds: if out { seconds - 5.0 } else { 0.1 },
            rpo_seconds: if out { seconds - 4.0 } else { 1.1 },
            site_rpo_seconds: if out { seconds - 4.0 } else { 1.0 },
            lost_packets: u64::from(out) * 7,
            queue_bytes: 50_000,
        }
    });
    let summary = LatenessSummary { p50: Duration::ZERO, p99: Duration::ZERO, max: Duration::ZERO };
    let mut direction = Direction::new(&profile, Way::Up, 1);
    direction.offer(0, 1500);
    let end = RunEnd {
        engine: "relay".to_owned(),
        seed: 1,
        length: Duration::from_secs(20),
        arrived_bytes: 191_250_000,
        confirmed_bytes: 180_000_000,
        counters: [*direction.counters(); 2],
        cpu_seconds: vec![],
        health: Health {
            overload_packets: 0,
            realtime: false,
            lateness: [summary; 2],
            round_trip: profile.round_trip(),
        },
    };
    let report = Report::new(&profile, end, samples.collect());
    (profile, report)
}

#[test]
fn sums_leave_outages_out_of_the_capacity_and_say_how_soon_data_came_again() {
    let (_, report) = report();
    assert_eq!(report.goodput_mbit, 76.5);
    assert_eq!(report.capacity_mbit, Some(85.0));
    assert_eq!((report.lag_p50_seconds, report.lag_max_seconds), (0.1, 3.25));
    assert_eq!(
        (report.rpo_seconds.p50, report.site_rpo_seconds.p50, report.rpo_seconds.max),
        (1.1, 1.0, 4.25)
    );
    assert_eq!(report.recoveries.len(), 1);
    assert_eq!(report.recoveries[0].seconds, Some(0.5));
    assert_eq!((report.up.offered, report.void), (1, None));
}

#[test]
fn the_picture_has_axes_legend_and_outages_and_escapes_names() {
    let (profile, report) = report();
    let svg = report.plot(&profile).to_svg();
    for part in
        ["Goodput, Mbit/s", "Lag, s", "link's rate", "class=\"band\"", ">down<", "test &amp; &lt;more&gt;"]
    {
        assert!(svg.contains(part), "{part} is missing");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn a_run_without_a_sample_can_be_drawn() {
    let (profile, mut report) = report();
    report.samples.clear();
    report.seconds = 0.0;
    let svg = report.plot(&profile).to_svg();
    assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"));
}
