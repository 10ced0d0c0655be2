//! Lines that break, move and swallow packets.

use wan_lab::LinkState;
use wan_lab::profile::{Rate, Share};

use super::*;

fn profile(rtt: u64) -> LinkProfile {
    LinkProfile::symmetric("line", Rate::mbit(megabits()), Duration::from_millis(rtt / 2))
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What a line holds: the bandwidth-delay product, the queue, and what timers add.
fn in_flight(rtt: u64) -> u64 {
    (ceiling() * (rtt as f64 * 2.5 / 1e3 + 0.1)) as u64
}

#[tokio::test(start_paused = true)]
async fn outages_lose_nothing_and_send_nothing_twice_but_what_was_under_way() {
    let outages = if is_full() { 200 } else { 12 };
    let rtt = 60;
    let line = Line::new(&profile(rtt), 9);
    let outbox = MemoryOutbox::new("a");
    let link = line.ship(line.options(), &[&outbox]);
    let (mut seed, mut needed, mut worst) = (17, 0, Duration::ZERO);
    for number in 0..outages {
        // A large segment that several outages fall into, or many small ones.
        let size = if number % 2 == 0 { 12 * MIB } else { MIB };
        // More than the line carries until the next look.
        if needed < line.received() + 36 * MIB as u64 {
            let count = 48 * MIB / size;
            outbox.seal((0..count).map(|_| size));
            needed += (count * size) as u64;
        }
        tokio::time::sleep(Duration::from_millis(500 + draw(&mut seed) % 3000)).await;
        // From 0.1 s to 10 minutes, evenly over the logarithm.
        let exponent = (draw(&mut seed) % 1000) as f64 / 1000.0;
        let outage = Duration::from_secs_f64(0.1 * 6000f64.powf(exponent));
        line.net.set_link(LinkState::Down);
        tokio::time::sleep(outage).await;
        line.net.set_link(LinkState::Up);
        let before = line.received();
        let took = line.until_received(before + 200_000, Duration::from_secs(20)).await;
        worst = worst.max(took);
        eprintln!(
            "outage {number} of {outage:?}: data again after {took:?}, {} sessions",
            line.lab.inbox.0.read(|state| state.opened.len())
        );
    }
    while outbox.state.read(|state| (state.confirmed() as usize) < state.segments.len()) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let twice = line.received() - needed;
    eprintln!(
        "{twice} bytes of {needed} came twice in {outages} outages; the slowest recovery took {worst:?}; {:?}",
        link.handle().stats()
    );
    assert!(twice <= outages as u64 * in_flight(rtt), "{twice} bytes came twice");
    assert!(worst <= Duration::from_secs(5), "the slowest recovery took {worst:?}");
    line.end(link).await;
}

#[tokio::test(start_paused = true)]
async fn a_line_is_full_again_soon_after_an_outage() {
    for (rtt, outage) in [(60, 5), (60, 300), (300, 30)] {
        let line = Line::new(&profile(rtt), 4);
        let outbox = MemoryOutbox::new("a");
        outbox.seal([8 * MIB; 16]);
        let link = line.ship(line.options(), &[&outbox]);
        tokio::time::sleep(Duration::from_secs(4) + Duration::from_millis(12 * rtt)).await;
        line.net.set_link(LinkState::Down);
        tokio::time::sleep(Duration::from_secs(outage)).await;
        line.net.set_link(LinkState::Up);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let used = line.rate(4.0).await / ceiling();
        eprintln!("rtt {rtt} ms, {outage} s: {used:.3}");
        assert!(used >= 0.85, "rtt {rtt} ms, {outage} s: {used:.3} of the line");
        drop(link);
    }
}

#[tokio::test(start_paused = true)]
async fn probing_a_dead_line_costs_little() {
    let line = Line::new(&profile(60), 4);
    let outbox = MemoryOutbox::new("a");
    outbox.seal([8 * MIB; 4]);
    let link = line.ship(line.options(), &[&outbox]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    line.net.set_link(LinkState::Down);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = link.handle().stats().sent_bytes;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let rate = (link.handle().stats().sent_bytes - before) / 3600;
    eprintln!("{rate} bytes per second");
    assert!(rate < 6000, "{rate} bytes per second are sent into the void");
    drop(link);
}

#[tokio::test(start_paused = true)]
async fn a_new_address_translation_does_not_stop_a_transfer() {
    let line = Line::new(&profile(60), 4);
    let outbox = MemoryOutbox::new("a");
    outbox.seal([8 * MIB; 12]);
    let link = line.ship(line.options(), &[&outbox]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    for _ in 0..3 {
        line.net.rebind_nat();
        let used = line.rate(2.0).await / ceiling();
        eprintln!("with another address: {used:.3}");
        assert!(used >= 0.7, "{used:.3} of the line");
    }
    assert_eq!(line.lab.inbox.0.read(|state| state.opened.len()), 1, "the connection moved with it");
    drop(link);
}

#[tokio::test(start_paused = true)]
async fn a_path_that_swallows_large_packets_is_met_with_small_ones() {
    let mut small = profile(60);
    small.up.mtu = 1300;
    let line = Line::new(&small, 4);
    let outbox = MemoryOutbox::new("a");
    outbox.seal([2 * MIB; 4]);
    let link = line.ship(line.options(), &[&outbox]);
    outbox.until_confirmed(4).await;
    eprintln!("{:?}", link.handle().stats());
    let largest = link.handle().stats().packet_bytes_max.expect("it is connected");
    assert!((1200..=1272).contains(&largest), "{largest} bytes in a packet");
    drop(link);
}

#[tokio::test(start_paused = true)]
async fn a_line_with_losses_both_ways_and_a_slow_way_back_is_used() {
    let mut slow = profile(100);
    slow.down.rate = Some(Rate::mbit(1));
    slow.down.loss = Share::percent(2.0);
    slow.up.loss = Share::percent(2.0);
    let line = Line::new(&slow, 4);
    let outbox = MemoryOutbox::new("a");
    outbox.seal([8 * MIB; 8]);
    let link = line.ship(line.options(), &[&outbox]);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let used = line.rate(6.0).await / ceiling();
    eprintln!("slow way back: {used:.3}");
    assert!(used >= 0.88, "{used:.3} of the line");
    drop(link);
}
