use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use super::*;
use crate::profile::Rate;

const PATIENCE: Duration = Duration::from_secs(30);

fn start(profile: &LinkProfile) -> Namespaces {
    Namespaces::start(profile, 1).unwrap_or_else(|error| panic!("{error}: {}", error.hint()))
}

fn udp_socket(link: &Namespaces, side: Side) -> UdpSocket {
    let socket =
        link.run(side, move || UdpSocket::bind((side.address(), 0))).expect("enters").expect("binds");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

#[test]
fn one_process_holds_both_ends_and_packets_take_the_delay_and_survive_a_hold() {
    let link = start(&LinkProfile::symmetric("test", Rate::mbit(100), Duration::from_millis(20)));
    let (source, site) = (udp_socket(&link, Side::Source), udp_socket(&link, Side::Site));
    let mut buffer = [0; 2048];
    let started = Instant::now();
    source.send_to(b"question", site.local_addr().expect("an address")).expect("is sent");
    let (length, from) = site.recv_from(&mut buffer).expect("arrives");
    site.send_to(&buffer[..length], from).expect("is sent");
    assert_eq!(source.recv(&mut buffer).expect("arrives"), length);
    assert!(started.elapsed() >= Duration::from_millis(40), "{:?}", started.elapsed());
    // 8 bytes behind IP and UDP headers, and nothing else on the link.
    assert_eq!((link.counters(Way::Up).offered.packets, link.counters(Way::Up).offered.bytes), (1, 36));

    link.set_link(LinkState::Hold);
    source.send_to(b"held", from_address(&site)).expect("is sent");
    while link.counters(Way::Up).held.packets == 0 {
        std::thread::yield_now();
    }
    link.set_link(LinkState::Up);
    assert_eq!(site.recv(&mut buffer).expect("arrives"), 4);
    assert_eq!(link.health().expect("runs").overload_packets, 0);
}

fn from_address(socket: &UdpSocket) -> std::net::SocketAddr {
    socket.local_addr().expect("an address")
}

#[test]
fn the_kernels_tcp_moves_a_megabyte_within_the_rate() {
    let link = start(&LinkProfile::symmetric("test", Rate::mbit(40), Duration::from_millis(5)));
    let listener =
        link.run(Side::Site, || TcpListener::bind((SITE, 7000))).expect("enters").expect("listens");
    let started = Instant::now();
    let sending = link.spawn(Side::Source, || {
        let mut stream = TcpStream::connect((SITE, 7000)).expect("connects");
        stream.write_all(&[7; 1_000_000]).expect("is sent");
    });
    let (mut stream, from) = listener.accept().expect("is connected to");
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("arrives");
    sending.expect("enters").join().expect("ends");
    assert_eq!((received.len(), from.ip()), (1_000_000, SOURCE.into()));
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
}

#[test]
fn programs_run_inside_and_nothing_is_left_when_a_thread_with_the_link_panics() {
    let handle = std::thread::spawn(|| {
        let link = start(&LinkProfile::perfect("test"));
        let mut list = Command::new("ip");
        list.args(["-brief", "address", "show", "dev", "wan0"]).stdout(Stdio::piped());
        let child = link.command(Side::Site, list).expect("enters").expect("starts");
        let output = child.wait_with_output().expect("ends");
        assert!(String::from_utf8_lossy(&output.stdout).contains("10.99.0.2/24"), "{output:?}");
        let inode = link.run(Side::Site, own_namespace).expect("enters");
        std::panic::panic_any(inode);
    });
    let inode = *handle.join().expect_err("panics").downcast::<std::path::PathBuf>().expect("a name");
    let namespaces = std::fs::read_dir("/proc/self/fd").expect("is readable").flatten();
    let kept = namespaces.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|to| to == inode);
    assert!(!kept, "a descriptor keeps {}", inode.display());
    assert_ne!(own_namespace(), inode, "the test's own thread has entered");
}

fn own_namespace() -> std::path::PathBuf {
    std::fs::read_link("/proc/thread-self/ns/net").expect("is readable")
}
