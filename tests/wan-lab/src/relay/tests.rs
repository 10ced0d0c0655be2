use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::*;
use crate::profile::{LinkProfile, LinkState, Rate, Share, Way};

/// Time after which a test that waits has failed.
const PATIENCE: Duration = Duration::from_secs(30);

fn udp_socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
    (buffer[..length].to_vec(), from)
}

fn delayed() -> LinkProfile {
    LinkProfile::symmetric("test", Rate::mbit(100), Duration::from_millis(20))
}

#[test]
fn datagrams_take_the_delay_of_the_link_both_ways_and_a_rebound_client_has_a_new_port() {
    let (site, source) = (udp_socket(), udp_socket());
    let relay = UdpRelay::start(&delayed(), site.local_addr().expect("an address"), 1).expect("starts");
    let started = Instant::now();
    source.send_to(b"one", relay.address()).expect("is sent");
    let (content, first) = receive(&site);
    assert_eq!(content, b"one");
    site.send_to(b"answer", first).expect("is sent");
    assert_eq!(receive(&source).0, b"answer");
    assert!(started.elapsed() >= Duration::from_millis(40), "{:?}", started.elapsed());

    relay.nat_rebind().expect("rebinds");
    source.send_to(b"two", relay.address()).expect("is sent");
    let (content, second) = receive(&site);
    assert_eq!(content, b"two");
    assert_ne!(first, second);
    site.send_to(b"again", second).expect("is sent");
    assert_eq!(receive(&source).0, b"again");
    assert_eq!(relay.counters(Way::Up).delivered.packets, 2);
    assert_eq!(relay.counters(Way::Up).delivered.bytes, 2 * (3 + 28));
    assert_eq!(relay.health().expect("runs").overload_packets, 0);
}

#[test]
fn datagrams_that_a_link_holds_come_in_order_and_those_of_a_link_that_is_down_do_not() {
    let (site, source) = (udp_socket(), udp_socket());
    let relay = UdpRelay::start(&delayed(), site.local_addr().expect("an address"), 1).expect("starts");
    relay.set_link(LinkState::Down);
    source.send_to(b"lost", relay.address()).expect("is sent");
    while relay.counters(Way::Up).dropped_down.packets == 0 {
        std::thread::yield_now();
    }
    relay.set_link(LinkState::Hold);
    for number in 0..10_u8 {
        source.send_to(&[number], relay.address()).expect("is sent");
    }
    while relay.counters(Way::Up).held.packets < 10 {
        std::thread::yield_now();
    }
    relay.set_link(LinkState::Up);
    for number in 0..10_u8 {
        assert_eq!(receive(&site).0, [number]);
    }
}

/// Accepts one connection at a time and sends back what comes.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = stream.try_clone().expect("a clone");
            let mut writer = stream;
            // A connection that ends early is the test's doing.
            let _ = io::copy(&mut reader, &mut writer);
        }
    });
    address
}

fn connect(relay: &TcpRelay) -> TcpStream {
    let stream = TcpStream::connect(relay.address()).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

#[test]
fn a_connection_has_the_delay_and_the_rate_of_the_link_and_loses_nothing() {
    let mut profile = LinkProfile::symmetric("test", Rate::mbit(40), Duration::from_millis(20));
    profile.up.loss = Share::percent(50.0);
    let relay = TcpRelay::start(&profile, echo(), 1).expect("starts");
    let started = Instant::now();
    let mut stream = connect(&relay);
    let content: Vec<u8> = (0..1_000_000_u32).map(|number| (number / 7) as u8).collect();
    let mut writer = stream.try_clone().expect("a clone");
    let sent = content.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).expect("is sent");
        writer.shutdown(std::net::Shutdown::Write).expect("is open");
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("comes back");
    writing.join().expect("ends");
    assert!(received == content);
    // A megabyte takes 0.2 s at 40 Mbit/s; the handshake and the way there and back take 0.08 s.
    assert!(started.elapsed() >= Duration::from_millis(280), "{:?}", started.elapsed());
    assert_eq!(relay.counters().bytes_up, 1_000_000);
    assert_eq!(relay.counters().bytes_down, 1_000_000);
}

#[test]
fn a_link_that_is_down_stalls_a_connection_until_it_is_up() {
    let relay = TcpRelay::start(&delayed(), echo(), 1).expect("starts");
    let mut stream = connect(&relay);
    let mut byte = [0];
    stream.write_all(b"a").expect("is sent");
    stream.read_exact(&mut byte).expect("comes back");
    relay.set_link(LinkState::Down);
    stream.write_all(b"b").expect("is sent");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    assert!(stream.read_exact(&mut byte).is_err());
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    relay.set_link(LinkState::Up);
    stream.read_exact(&mut byte).expect("comes back");
    assert_eq!(&byte, b"b");
}

#[test]
fn connections_can_be_cut_and_reset() {
    let relay = TcpRelay::start(&delayed(), echo(), 1).expect("starts");
    let mut byte = [0];
    for reset in [false, true] {
        let mut stream = connect(&relay);
        stream.write_all(b"a").expect("is sent");
        stream.read_exact(&mut byte).expect("comes back");
        match reset {
            true => relay.reset_connections(),
            false => relay.cut_connections(),
        }
        let end = stream.read(&mut byte);
        match reset {
            true => assert_eq!(end.expect_err("is reset").kind(), io::ErrorKind::ConnectionReset),
            false => assert_eq!(end.expect("ends"), 0),
        }
    }
    assert_eq!(relay.counters().accepted, 2);
}

#[test]
fn a_target_that_is_not_there_is_counted_and_the_client_reset() {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let relay = TcpRelay::start(&delayed(), nobody.expect("an address"), 1).expect("starts");
    let end = connect(&relay).read(&mut [0]);
    assert_eq!(end.expect_err("is reset").kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(relay.counters().unreachable, 1);
}
