//! How much of a line is used.

use wan_lab::profile::{BurstLoss, Rate, Reorder, Share};

use super::*;

fn profile(rtt: u64, loss: f64) -> LinkProfile {
    let mut profile = LinkProfile::symmetric("line", Rate::mbit(megabits()), Duration::from_millis(rtt / 2));
    profile.up.loss = Share::percent(loss * 100.0);
    profile
}

/// Share of a line that is used, in a connection that has settled.
async fn used(profile: &LinkProfile, seconds: f64) -> f64 {
    let line = Line::new(profile, 5);
    let outbox = MemoryOutbox::new("a");
    let rtt = profile.round_trip();
    let bytes = (megabits() as f64 / 8.0 * (seconds + 5.0 + 20.0 * rtt.as_secs_f64())) as usize;
    outbox.seal((0..bytes.div_ceil(8)).map(|_| 8 * MIB));
    let link = line.ship(line.options(), &[&outbox]);
    tokio::time::sleep(Duration::from_secs(3) + 16 * rtt).await;
    let used = line.rate(seconds).await / ceiling();
    eprintln!("{:?}", link.handle().stats());
    drop(link);
    used
}

#[tokio::test(start_paused = true)]
async fn a_line_is_used_whatever_its_round_trip_and_losses() {
    let (rtts, losses, seconds): (&[u64], &[f64], f64) = if is_full() {
        // Below 10 ms the virtual clock, whose timers have a millisecond, is what is measured.
        (&[10, 20, 100, 300, 600], &[0.0, 0.001, 0.01, 0.03, 0.05], 20.0)
    } else {
        (&[20, 600], &[0.0, 0.01], 8.0)
    };
    for &rtt in rtts {
        for &loss in losses {
            let used = used(&profile(rtt, loss), seconds).await;
            eprintln!("rtt {rtt} ms, loss {loss}: {used:.3} of what the line can carry");
            let target = if loss == 0.0 { 0.95 } else { 0.91 - loss };
            assert!(used >= target, "rtt {rtt} ms, loss {loss}: {used:.3} of what the line can carry");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bursts_jitter_and_reordering_are_no_obstacle() {
    let mut bursts = profile(100, 0.0);
    bursts.up.burst_loss = Some(BurstLoss { share: Share::percent(1.0), mean_packets: 20.0 });
    let mut late = profile(100, 0.0);
    late.up.reorder = Some(Reorder { share: Share::percent(10.0), extra: Duration::from_millis(8) });
    for (what, profile) in [("bursts", bursts), ("reordering", late)] {
        let used = used(&profile, 6.0).await;
        eprintln!("{what}: {used:.3}");
        assert!(used >= 0.85, "{what}: {used:.3} of what the line can carry");
    }
}
