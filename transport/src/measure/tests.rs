use std::time::Duration;

use super::{Load, MeasureOptions, measure_link};
use crate::LinkError;
use crate::testing::{Lab, MemoryOutbox};

fn options(lab: &Lab) -> MeasureOptions {
    MeasureOptions { bytes_max: 4 << 20, pings: 5, ..MeasureOptions::new(lab.link_options()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_is_measured_beside_the_groups_and_nothing_is_kept() {
    let lab = Lab::new();
    let server = lab.serve();
    let outbox = MemoryOutbox::new("a");
    outbox.seal([1000; 3]);
    let link = lab.ship(&[&outbox]);
    outbox.until_confirmed(3).await;
    let before = lab.inbox.0.read(|state| state.received_bytes);
    let sites = vec![lab.site.fingerprint()];
    let measured = measure_link(options(&lab), lab.source.clone(), sites, |_, _| {}).await.unwrap();
    assert_eq!(measured.arrived_bytes, 4 << 20);
    assert!(measured.rate > 0.0 && measured.rtt_min > Duration::ZERO, "{measured:?}");
    assert!(measured.rtt_min <= measured.rtt_mean && measured.rtt_mean <= measured.rtt_p99, "{measured:?}");
    assert_eq!((measured.pings_lost, measured.survives_new_port), (0, Some(true)));
    // The groups' connection is the one that it was.
    outbox.seal([1000; 2]);
    outbox.until_confirmed(5).await;
    assert_eq!(lab.inbox.0.read(|state| state.received_bytes), before + 2000);
    assert!(outbox.state.read(|state| state.errors().next().is_none()));
    assert_eq!(server.status().borrow().peers.len(), 1);
    link.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_enrolled_sources_measure() {
    let lab = Lab::new();
    let server = lab.serve();
    let stranger = lab.identity("stranger");
    let sites = vec![lab.site.fingerprint()];
    let refused = measure_link(options(&lab), stranger, sites, |_, _| {}).await;
    assert!(matches!(refused, Err(LinkError::NotEnrolled { .. })), "{refused:?}");
    server.shutdown().await;
}

#[test]
fn the_rate_is_that_of_the_second_half() {
    let at = |seconds, bytes| (Duration::from_secs(seconds), bytes);
    let load = Load(vec![at(1, 10), at(2, 10), at(4, 100), at(5, 500), at(8, 1500)]);
    assert!((load.rate() - 500.0).abs() < 1e-9, "{}", load.rate());
    assert!(Load::default().rate().abs() < 1e-9);
}
