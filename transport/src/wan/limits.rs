//! Limits, and whose turn it is.

use std::collections::HashMap;

use wan_lab::Way;
use wan_lab::profile::Rate;

use super::*;
use crate::LinkLimits;
use crate::testing::group;

fn line() -> Line {
    Line::new(&LinkProfile::symmetric("line", Rate::mbit(megabits()), Duration::from_millis(25)), 3)
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_a_link_counts_every_byte_and_changes_at_once() {
    let line = line();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([8 * MIB; 8]);
    let link = line.ship(line.options(), &[&outbox]);
    for limit in [1_000_000, 125_000, 1_500_000] {
        link.handle().set_limits(&LinkLimits { link: Some(limit), groups: HashMap::new() });
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = line.net.counters(Way::Up).offered.bytes;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let sent = (line.net.counters(Way::Up).offered.bytes - before) as f64 / 10.0;
        let ratio = sent / limit as f64;
        eprintln!("limit {limit}: {ratio:.4}");
        assert!((0.97..=1.03).contains(&ratio), "{ratio:.4} of the limit of {limit} bytes per second");
    }
    drop(link);
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_a_group_holds_and_leaves_the_rest_to_others() {
    let line = line();
    let (limited, free) = (MemoryOutbox::new("a"), MemoryOutbox::new("b"));
    limited.seal([4 * MIB; 16]);
    free.seal([4 * MIB; 40]);
    let limits = LinkLimits { link: None, groups: HashMap::from([(group("a"), 500_000)]) };
    let link = line.ship(LinkOptions { limits, ..line.options() }, &[&limited, &free]);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = line.lab.inbox.0.read(|state| state.received_of.clone());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let after = line.lab.inbox.0.read(|state| state.received_of.clone());
    let rate = |name: &str| (after[&group(name)] - before[&group(name)]) as f64 / 10.0;
    // Payload, without headers and what is sent again.
    let ratio = rate("a") * 1480.0 / 1418.0 / 500_000.0;
    eprintln!("group: {ratio:.4}, the other {:.3}", rate("b") / ceiling());
    assert!((0.97..=1.03).contains(&ratio), "{ratio:.4} of the group's limit");
    assert!(rate("b") > 0.7 * ceiling(), "the other group got {:.0} bytes per second", rate("b"));
    drop(link);
}

#[tokio::test(start_paused = true)]
async fn the_group_that_would_break_its_target_first_goes_first() {
    let line = line();
    let (urgent, patient) = (MemoryOutbox::new("a"), MemoryOutbox::new("b"));
    urgent.set_due(1000);
    patient.set_due(2000);
    patient.seal([4 * MIB; 20]);
    let link = line.ship(line.options(), &[&urgent, &patient]);
    tokio::time::sleep(Duration::from_secs(4)).await;
    urgent.seal([4 * MIB; 16]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = line.lab.inbox.0.read(|state| state.received_of.clone());
    tokio::time::sleep(Duration::from_secs(6)).await;
    let after = line.lab.inbox.0.read(|state| state.received_of.clone());
    let got = |name: &str| (after[&group(name)] - before[&group(name)]) as f64;
    let share = got("b") / (got("a") + got("b"));
    eprintln!("the patient group got {share:.3}");
    assert!((0.02..0.10).contains(&share), "the patient group got {share:.3}");
    drop(link);
}

#[tokio::test(start_paused = true)]
async fn control_does_not_wait_behind_segments() {
    let line = line();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([8 * MIB; 20]);
    let link = line.ship(line.options(), &[&outbox]);
    tokio::time::sleep(Duration::from_secs(21)).await;
    assert_eq!(line.lab.inbox.0.read(|state| state.opened.len()), 1);
    let sent = outbox.state.read(|state| state.heartbeats_at.clone());
    let arrived = line.lab.inbox.0.read(|state| state.heartbeats_at.clone());
    let late = sent.iter().zip(&arrived).map(|(sent, arrived)| *arrived - *sent).max().unwrap();
    eprintln!("the slowest of {} heartbeats took {late:?}", arrived.len());
    assert!(arrived.len() >= 10, "{} heartbeats arrived", arrived.len());
    assert!(late < Duration::from_millis(100), "the slowest heartbeat took {late:?} on a way of 25 ms");
    drop(link);
}
