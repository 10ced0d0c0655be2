use super::*;
use crate::profile::{BurstLoss, Jitter, Queue, Rate, Reorder, Share};

const PACKET: u32 = 1500;
const SECOND: u64 = 1_000_000_000;

fn up(settings: DirectionSettings, seed: u64) -> Direction {
    let profile = LinkProfile { up: settings, ..LinkProfile::perfect("test") };
    Direction::new(&profile, Way::Up, seed)
}

/// Offers packets one by one without a bottleneck, one per microsecond, and returns the verdicts.
fn offer_many(settings: DirectionSettings, seed: u64, packets: u64) -> (Vec<Verdict>, Counters) {
    let mut direction = up(settings, seed);
    let verdicts = (0..packets).map(|number| direction.offer(number * 1000, PACKET)).collect();
    (verdicts, *direction.counters())
}

fn arrival(verdict: Verdict) -> Option<u64> {
    match verdict {
        Verdict::Deliver { at_ns, .. } => Some(at_ns),
        _ => None,
    }
}

#[test]
fn a_busy_bottleneck_loses_no_nanosecond_over_a_million_packets() {
    // 7 bit/s more than 200 Mbit/s: no packet takes a whole number of nanoseconds.
    let rate = Rate::bits_per_second(200_000_007);
    let settings = DirectionSettings {
        rate: Some(rate),
        delay: Duration::from_millis(50),
        queue: Queue::Bytes(u64::MAX),
        ..DirectionSettings::default()
    };
    let mut direction = up(settings, 1);
    let last = (0..1_000_000).filter_map(|_| arrival(direction.offer(0, PACKET))).last().expect("arrives");
    let exact = 1_000_000_u128 * u128::from(PACKET) * 8 * u128::from(SECOND) / u128::from(rate.bits());
    assert_eq!(u128::from(last), exact + 50_000_000);
}

#[test]
fn a_full_queue_drops_at_its_tail_and_takes_packets_again_when_one_has_left() {
    let settings = DirectionSettings {
        rate: Some(Rate::mbit(12)),
        queue: Queue::Bytes(10 * u64::from(PACKET)),
        ..DirectionSettings::default()
    };
    let mut direction = up(settings, 1);
    let passed = (0..20).filter(|_| arrival(direction.offer(0, PACKET)).is_some()).count();
    assert_eq!(passed, 10);
    // 1500 bytes take 1 ms at 12 Mbit/s.
    assert_eq!(direction.offer(999_999, PACKET), Verdict::Drop(DropCause::Queue));
    assert_eq!(arrival(direction.offer(1_000_000, PACKET)), Some(11_000_000));
    assert_eq!(direction.backlog_bytes(5_500_000), 6 * u64::from(PACKET));
    assert_eq!(direction.counters().dropped_queue.packets, 11);
}

#[test]
fn a_packet_longer_than_the_queue_passes_when_that_is_empty() {
    let settings = DirectionSettings {
        rate: Some(Rate::mbit(1)),
        queue: Queue::Bytes(1),
        ..DirectionSettings::default()
    };
    let mut direction = up(settings, 1);
    assert!(arrival(direction.offer(0, PACKET)).is_some());
    assert_eq!(direction.offer(1, 40), Verdict::Drop(DropCause::Queue));
}

#[test]
fn random_loss_takes_its_share() {
    let settings = DirectionSettings { loss: Share::percent(1.0), ..DirectionSettings::default() };
    let (_, counters) = offer_many(settings, 7, 1_000_000);
    // Five standard deviations of a binomial distribution are 500.
    assert!(counters.dropped_loss.packets.abs_diff(10_000) < 500, "{counters:?}");
    assert_eq!(counters.delivered.packets + counters.dropped().packets, 1_000_000);
}

#[test]
fn burst_loss_takes_its_share_in_bursts_of_the_mean_length() {
    let burst = BurstLoss { share: Share::percent(1.0), mean_packets: 20.0 };
    let settings = DirectionSettings { burst_loss: Some(burst), ..DirectionSettings::default() };
    let (verdicts, counters) = offer_many(settings, 7, 2_000_000);
    let lost = counters.dropped_burst.packets as f64;
    let lost_at = |verdict: &Verdict| *verdict == Verdict::Drop(DropCause::Burst);
    let bursts = verdicts.windows(2).filter(|pair| !lost_at(&pair[0]) && lost_at(&pair[1])).count() as f64;
    assert!((0.8..1.2).contains(&(lost / 20_000.0)), "{lost} packets lost");
    assert!((18.0..22.0).contains(&(lost / bursts)), "{} packets in a burst", lost / bursts);
}

#[test]
fn bursts_are_as_long_at_the_full_rate_and_pass_when_nobody_sends() {
    let burst = BurstLoss { share: Share::percent(10.0), mean_packets: 50.0 };
    // A packet takes 1 ms at 12 Mbit/s.
    for (gap_ns, expected) in [(SECOND / 1000, 45.0..55.0), (SECOND, 1.0..1.25)] {
        let settings = DirectionSettings {
            rate: Some(Rate::mbit(12)),
            burst_loss: Some(burst.clone()),
            ..DirectionSettings::default()
        };
        let mut direction = up(settings, 7);
        let verdicts: Vec<bool> = (0..500_000)
            .map(|number| direction.offer(number * gap_ns, PACKET) == Verdict::Drop(DropCause::Burst))
            .collect();
        let lost = verdicts.iter().filter(|lost| **lost).count() as f64;
        let bursts = verdicts.windows(2).filter(|pair| !pair[0] && pair[1]).count() as f64;
        assert!((0.09..0.11).contains(&(lost / 500_000.0)), "{lost} packets lost");
        assert!(expected.contains(&(lost / bursts)), "{} packets in a burst", lost / bursts);
    }
}

#[test]
fn jitter_adds_its_mean_and_keeps_the_order_or_does_not() {
    for (shape, mean) in [(JitterShape::Uniform, 1.0), (JitterShape::Normal, 0.798)] {
        let jitter = Jitter { amount: Duration::from_millis(1), shape, keeps_order: false };
        let settings = DirectionSettings { jitter: Some(jitter), ..DirectionSettings::default() };
        let (verdicts, _) = offer_many(settings.clone(), 3, 100_000);
        let arrivals: Vec<u64> = verdicts.into_iter().filter_map(arrival).collect();
        let added = arrivals.iter().zip(0..).map(|(at, number)| (at - number * 1000) as f64).sum::<f64>();
        assert!((added / 1e6 / 100_000.0 - mean).abs() < 0.02, "{shape:?} {added}");
        assert!(!arrivals.is_sorted());

        let keeps = settings.jitter.map(|jitter| Jitter { keeps_order: true, ..jitter });
        let (verdicts, _) = offer_many(DirectionSettings { jitter: keeps, ..settings }, 3, 100_000);
        assert!(verdicts.into_iter().filter_map(arrival).is_sorted());
    }
}

#[test]
fn reordered_packets_are_overtaken_and_hold_nothing_up() {
    let reorder = Reorder { share: Share::percent(5.0), extra: Duration::from_millis(3) };
    let settings = DirectionSettings { reorder: Some(reorder), ..DirectionSettings::default() };
    let (verdicts, counters) = offer_many(settings, 3, 100_000);
    let late = verdicts.into_iter().filter_map(arrival).zip(0..).filter(|(at, number)| *at > number * 1000);
    assert_eq!(late.count() as u64, counters.reordered.packets);
    assert!(counters.reordered.packets.abs_diff(5_000) < 400, "{counters:?}");
}

#[test]
fn duplicates_arrive_with_their_packet() {
    let settings = DirectionSettings { duplicate: Share::percent(10.0), ..DirectionSettings::default() };
    let (verdicts, counters) = offer_many(settings, 3, 10_000);
    let twice = verdicts.iter().filter(
        |verdict| matches!(verdict, Verdict::Deliver { at_ns, duplicate_at_ns: Some(second) } if at_ns == second),
    );
    assert_eq!(twice.count() as u64, counters.duplicated.packets);
    assert!(counters.duplicated.packets.abs_diff(1_000) < 150, "{counters:?}");
}

#[test]
fn packets_longer_than_the_mtu_vanish() {
    let mut direction = up(DirectionSettings::default(), 1);
    assert!(arrival(direction.offer(0, 1500)).is_some());
    assert_eq!(direction.offer(0, 1501), Verdict::Drop(DropCause::Mtu));
}

#[test]
fn a_link_that_is_down_drops_and_one_on_hold_keeps() {
    let settings = DirectionSettings {
        rate: Some(Rate::mbit(12)),
        queue: Queue::Bytes(2 * u64::from(PACKET)),
        ..DirectionSettings::default()
    };
    let mut direction = up(settings, 1);
    direction.apply(&Change::link(LinkState::Down));
    assert_eq!(direction.offer(0, PACKET), Verdict::Drop(DropCause::Down));
    direction.apply(&Change::link(LinkState::Hold));
    assert_eq!(direction.offer(1, PACKET), Verdict::Hold);
    assert_eq!(direction.offer(2, PACKET), Verdict::Hold);
    assert_eq!(direction.offer(3, PACKET), Verdict::Drop(DropCause::Queue));
    direction.apply(&Change::link(LinkState::Up));
    assert_eq!(arrival(direction.release(SECOND, PACKET)), Some(SECOND + 1_000_000));
    assert_eq!(arrival(direction.release(SECOND, PACKET)), Some(SECOND + 2_000_000));
    let counters = direction.counters();
    assert_eq!((counters.offered.packets, counters.delivered.packets, counters.held.packets), (4, 2, 2));
}

#[test]
fn a_change_counts_for_packets_offered_from_then_on() {
    let settings = DirectionSettings {
        rate: Some(Rate::mbit(12)),
        queue: Queue::Bytes(1 << 20),
        ..DirectionSettings::default()
    };
    let mut direction = up(settings, 1);
    assert_eq!(arrival(direction.offer(0, PACKET)), Some(1_000_000));
    direction.apply(&Change {
        rate: Some(Some(Rate::mbit(6))),
        delay: Some(Duration::from_millis(10)),
        loss: Some(Share::NONE),
        ..Change::default()
    });
    assert_eq!(arrival(direction.offer(0, PACKET)), Some(1_000_000 + 2_000_000 + 10_000_000));
}

#[test]
fn the_same_seed_gives_the_same_fate_and_another_seed_another_one() {
    let profile = LinkProfile::built_in("bad-day").expect("is valid");
    let fate = |way, seed| -> Vec<Verdict> {
        let mut direction = Direction::new(&profile, way, seed);
        (0..50_000).map(|number| direction.offer(number * 150_000, PACKET)).collect()
    };
    assert_eq!(fate(Way::Up, 5), fate(Way::Up, 5));
    assert_ne!(fate(Way::Up, 5), fate(Way::Up, 6));
    assert_ne!(fate(Way::Up, 5), fate(Way::Down, 5));
}
