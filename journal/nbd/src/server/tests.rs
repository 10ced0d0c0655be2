use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::client::{Body, Client, ClientError, Completion, Protocol, WriteFlags};
use crate::errno::Errno;
use crate::export::tests::MemoryDisk;
use crate::export::{StatusExtent, ZeroMode};

const SIZE: usize = 8 << 20;
const PLAIN: WriteFlags = WriteFlags { fua: false, fast: false };
const FUA: WriteFlags = WriteFlags { fua: true, fast: false };

/// A disk in memory, served as `disk` on a unix socket.
struct Served {
    directory: TempDir,
    disk: Arc<MemoryDisk>,
    exports: Arc<Exports>,
    server: Option<Server>,
}

impl Served {
    fn new() -> Self {
        Served::with(ServerOptions::default())
    }

    fn with(options: ServerOptions) -> Self {
        let directory = TempDir::new().expect("directory");
        let disk = Arc::new(MemoryDisk::new(SIZE, false));
        let exports = Arc::new(Exports::new());
        exports.add("disk", disk.clone()).expect("name");
        let listener = Listener::unix(&directory.path().join("nbd.sock")).expect("listener");
        let server = Server::start(vec![listener], Arc::clone(&exports), options).expect("server");
        Served { directory, disk, exports, server: Some(server) }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    fn client(&self, protocol: Protocol) -> Client {
        Client::connect_unix(&self.socket(), "disk", protocol).expect("client")
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("server")
    }

    fn shutdown(&mut self) {
        self.server.take().expect("server").shutdown();
    }
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|index| (index / 512 + index % 251 + seed) as u8).collect()
}

fn errno<T>(result: Result<T, ClientError>) -> Option<Errno> {
    result.err().and_then(|error| error.errno())
}

fn check_all_operations(protocol: Protocol) {
    let served = Served::new();
    let mut client = served.client(protocol);
    assert_eq!(client.info().size_bytes, SIZE as u64);
    let data = pattern(3 << 20, 1);
    client.write(512, &data, PLAIN).expect("write");
    client.write(4 << 20, &data[..512], FUA).expect("write with FUA");
    assert_eq!(served.disk.flushes(), 1);
    client.flush().expect("flush");
    assert_eq!(served.disk.flushes(), 2);
    assert!(client.read(512, 3 << 20).expect("read") == data);
    client.write_zeroes(512, 4096, ZeroMode::MayPunch, PLAIN).expect("zeroes");
    client.trim(8192, 4096, FUA).expect("trim");
    assert_eq!(served.disk.flushes(), 3);
    assert!(client.read(0, 4096).expect("read").iter().all(|byte| *byte == 0));
    assert!(client.read(4 << 20, 512).expect("read") == data[..512]);
    assert_eq!(errno(client.read(SIZE as u64, 512)), Some(Errno::Inval));
    assert_eq!(errno(client.write(SIZE as u64, &data[..512], PLAIN)), Some(Errno::NoSpc));
    assert_eq!(errno(client.write(1, &data, PLAIN)), Some(Errno::Inval), "its payload has to be skipped");
    assert!(client.read(0, 0).expect("nothing").is_empty());
    assert!(client.read(4 << 20, 512).expect("read after errors") == data[..512]);
    client.disconnect().expect("goodbye");
}

#[test]
fn everything_works_with_structured_replies() {
    check_all_operations(Protocol::Structured);
}

#[test]
fn everything_works_with_simple_replies() {
    check_all_operations(Protocol::Simple);
}

#[test]
fn everything_works_for_the_oldest_clients() {
    check_all_operations(Protocol::ExportName);
}

#[test]
fn status_and_description_are_told() {
    let served = Served::new();
    let mut client = served.client(Protocol::Structured);
    assert_eq!(client.info().description.as_deref(), Some("a disk in memory"));
    assert_eq!(client.info().block_sizes, Some((512, 4096, 32 << 20)));
    let half = StatusExtent { length: 4096, hole: false, zero: false };
    let expected = [half, StatusExtent { hole: true, zero: true, ..half }];
    assert_eq!(client.block_status(0, 8192).expect("status"), expected);
    assert_eq!(errno(client.block_status(0, 0)), Some(Errno::Inval));
    assert_eq!(errno(served.client(Protocol::Simple).block_status(0, 512)), Some(Errno::Inval));
}

#[test]
fn sixteen_writes_in_flight_are_all_answered() {
    let served = Served::new();
    let mut client = served.client(Protocol::Structured);
    let mut cookies: Vec<u64> = Vec::new();
    for round in 0..160 {
        cookies.push(client.send_write(round * 4096, &pattern(4096, round as usize), PLAIN).expect("send"));
        if cookies.len() == 16 {
            for _ in 0..16 {
                let Completion { cookie, result } = client.recv_reply().expect("reply");
                assert_eq!(result, Ok(Body::Done));
                cookies.retain(|sent| *sent != cookie);
            }
            assert!(cookies.is_empty());
        }
    }
    for round in 0..160 {
        assert!(client.read(round * 4096, 4096).expect("read") == pattern(4096, round as usize));
    }
}

#[test]
fn kept_payloads_do_not_change_when_the_connection_reads_on() {
    let served = Served::new();
    let mut client = served.client(Protocol::Structured);
    let sizes = [512, 4096, 65536, 300_000 / 512 * 512, 1 << 20, 2 << 20];
    for round in 0..60 {
        client.write(0, &pattern(sizes[round % sizes.len()], round), PLAIN).expect("write");
    }
    let kept = served.disk.kept();
    assert_eq!(kept.len(), 60);
    for (round, payload) in kept.iter().enumerate() {
        assert!(payload[..] == pattern(sizes[round % sizes.len()], round), "payload {round} has changed");
    }
    assert!(served.server().arena().stats().live_chunks > 20);
}

#[test]
fn a_read_that_waits_for_the_disk_holds_up_nobody() {
    let served = Served::new();
    let mut client = served.client(Protocol::Structured);
    client.write(0, &pattern(4096, 3), PLAIN).expect("write");
    served.disk.make_cold();
    served.disk.close_gate();
    let slow = client.send_read(0, 4096).expect("send");
    served.disk.wait_for_arrivals(1);
    let flush = client.send_flush().expect("send");
    served.disk.wait_for_arrivals(2);
    client.write(4096, &pattern(512, 4), PLAIN).expect("a write behind them is answered");
    served.disk.open_gate();
    let mut answered = [client.recv_reply().expect("reply"), client.recv_reply().expect("reply")];
    answered.sort_by_key(|completion| completion.cookie);
    assert_eq!(answered[0].cookie, slow);
    assert_eq!(answered[0].result, Ok(Body::Data(pattern(4096, 3))));
    assert_eq!(answered[1].cookie, flush);
    assert_eq!(answered[1].result, Ok(Body::Done));
}

#[test]
fn every_waiting_read_gets_a_worker_of_its_own() {
    let served = Served::new();
    served.disk.make_cold();
    let mut client = served.client(Protocol::Simple);
    client.read(0, 512).expect("from now on one worker is idle");
    served.disk.close_gate();
    for round in 0..4 {
        client.send_read(round * 512, 512).expect("send");
    }
    served.disk.wait_for_arrivals(5);
    served.disk.open_gate();
    for _ in 0..4 {
        client.recv_reply().expect("reply").result.expect("success");
    }
}

#[test]
fn writes_that_wait_for_a_flush_share_the_next_one() {
    let served = Served::new();
    let mut client = served.client(Protocol::Structured);
    served.disk.close_gate();
    let first = client.send_write(0, &[1; 512], FUA).expect("send");
    served.disk.wait_for_arrivals(1);
    for round in 1..10 {
        client.send_write(round * 512, &[1; 512], FUA).expect("send");
    }
    client.write(1 << 20, &[1; 512], PLAIN).expect("all before it have been taken");
    served.disk.open_gate();
    assert_eq!(client.recv_reply().expect("reply").cookie, first);
    for _ in 1..10 {
        assert_eq!(client.recv_reply().expect("reply").result, Ok(Body::Done));
    }
    assert_eq!(served.disk.flushes(), 2, "the first had begun before the others came, one covers these");
}

#[test]
fn many_waiting_requests_are_answered_in_the_end() {
    let served =
        Served::with(ServerOptions { waiting_requests_max: 3, workers_max: 2, ..Default::default() });
    served.disk.make_cold();
    let mut client = served.client(Protocol::Simple);
    for round in 0..100 {
        client.send_read(round * 512, 512).expect("send");
        client.send_flush().expect("send");
    }
    for _ in 0..200 {
        client.recv_reply().expect("reply").result.expect("success");
    }
}

#[test]
fn errors_of_the_export_reach_the_client_and_the_connection_goes_on() {
    for protocol in [Protocol::Structured, Protocol::Simple] {
        let served = Served::new();
        let mut client = served.client(protocol);
        client.write(0, &[1; 512], PLAIN).expect("write");
        served.disk.fail_with(Errno::Io);
        assert_eq!(errno(client.write(0, &[0; 512], PLAIN)), Some(Errno::Io));
        assert_eq!(errno(client.write(0, &[0; 512], FUA)), Some(Errno::Io));
        assert_eq!(errno(client.read(0, 512)), Some(Errno::Io));
        assert_eq!(errno(client.flush()), Some(Errno::Io));
        assert_eq!(errno(client.trim(0, 512, PLAIN)), Some(Errno::Io));
        let fast = WriteFlags { fua: false, fast: true };
        assert_eq!(errno(client.write_zeroes(0, 512, ZeroMode::MayPunch, fast)), Some(Errno::NotSup));
    }
}

#[test]
fn goodbye_waits_for_what_is_under_way() {
    let served = Served::new();
    let mut client = served.client(Protocol::Structured);
    served.disk.close_gate();
    client.send_flush().expect("send");
    served.disk.wait_for_arrivals(1);
    thread::scope(|scope| {
        let goodbye = scope.spawn(|| client.disconnect());
        served.disk.open_gate();
        goodbye.join().expect("thread").expect("goodbye");
    });
    assert_eq!(served.disk.flushes(), 1);
}

#[test]
fn a_shutdown_finishes_what_is_under_way_and_closes() {
    let mut served = Served::new();
    let mut client = served.client(Protocol::Structured);
    served.disk.close_gate();
    let flush = client.send_flush().expect("send");
    served.disk.wait_for_arrivals(1);
    let disk = Arc::clone(&served.disk);
    thread::scope(|scope| {
        scope.spawn(|| served.shutdown());
        disk.open_gate();
        let completion = client.recv_reply().expect("the reply of the flush");
        assert_eq!((completion.cookie, completion.result), (flush, Ok(Body::Done)));
        assert!(client.recv_reply().is_err(), "the connection is closed");
    });
    assert!(!served.socket().exists(), "the socket is removed");
}

#[test]
fn a_shutdown_does_not_wait_for_a_client_that_takes_no_replies() {
    let mut served =
        Served::with(ServerOptions { shutdown_grace: Duration::from_millis(50), ..Default::default() });
    let mut client = served.client(Protocol::Structured);
    client.write(0, &pattern(4 << 20, 1), PLAIN).expect("write");
    for _ in 0..8 {
        client.send_read(0, 4 << 20).expect("send");
    }
    served.shutdown();
}

#[test]
fn a_panic_of_an_export_ends_only_its_connection() {
    struct Panicking;
    impl crate::Export for Panicking {
        fn size_bytes(&self) -> u64 {
            512
        }
        fn read_only(&self) -> bool {
            false
        }
        fn description(&self) -> String {
            String::new()
        }
        fn try_read(&self, _offset: u64, _buffer: &mut [u8]) -> Result<bool, Errno> {
            Ok(false)
        }
        fn read(&self, _offset: u64, _buffer: &mut [u8]) -> Result<(), Errno> {
            panic!("planted")
        }
        fn write(&self, _offset: u64, _payload: crate::Payload) -> Result<(), Errno> {
            panic!("planted")
        }
        fn flush(&self) -> Result<(), Errno> {
            panic!("planted")
        }
        fn trim(&self, _offset: u64, _length: u64) -> Result<(), Errno> {
            Ok(())
        }
        fn write_zeroes(&self, _offset: u64, _length: u64, _mode: ZeroMode) -> Result<(), Errno> {
            Ok(())
        }
        fn block_status(&self, _offset: u64, _length: u64, _to: &mut Vec<StatusExtent>) -> Result<(), Errno> {
            Ok(())
        }
    }
    let served = Served::new();
    served.exports.add("bad", Arc::new(Panicking)).expect("name");
    let mut client = Client::connect_unix(&served.socket(), "bad", Protocol::Structured).expect("client");
    assert_eq!(errno(client.read(0, 512)), Some(Errno::Io));
    assert_eq!(errno(client.flush()), Some(Errno::Io));
    assert!(client.write(0, &[0; 512], PLAIN).is_err());
    served.client(Protocol::Structured).flush().expect("others are served");
}

#[test]
fn exports_are_found_by_name_and_listed() {
    let served = Served::new();
    let connect = |name: &str| Client::connect_unix(&served.socket(), name, Protocol::Structured);
    connect("").expect("the only one is the default");
    served.exports.add("other", Arc::new(MemoryDisk::new(512, true))).expect("name");
    assert_eq!(connect("other").expect("client").info().size_bytes, 512);
    assert!(connect("other").expect("client").info().read_only());
    assert!(matches!(connect(""), Err(ClientError::Refused { .. })));
    assert!(matches!(connect("missing"), Err(ClientError::Refused { .. })));
    let names: Vec<String> =
        Client::list_unix(&served.socket()).expect("list").into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["disk", "other"]);
}

#[test]
fn tcp_works_and_so_do_listeners_that_are_handed_over() {
    let directory = TempDir::new().expect("directory");
    let path = directory.path().join("handed-over.sock");
    let exports = Arc::new(Exports::new());
    exports.add("disk", Arc::new(MemoryDisk::new(SIZE, false))).expect("name");
    let bound = Listener::tcp("127.0.0.1:0".parse().expect("address")).expect("listener");
    let handed_over = TcpListener::bind("127.0.0.1:0").expect("listener");
    let addresses = [bound.tcp_address().expect("address"), handed_over.local_addr().expect("address")];
    let unix = Listener::from_unix(UnixListener::bind(&path).expect("listener")).expect("listener");
    let listeners = vec![bound, Listener::from_tcp(handed_over).expect("listener"), unix];
    let server = Server::start(listeners, exports, ServerOptions::default()).expect("server");
    for address in addresses {
        let mut client = Client::connect_tcp(address, "disk", Protocol::Structured).expect("client");
        client.write(0, &pattern(1 << 20, 5), PLAIN).expect("write");
        assert!(client.read(0, 1 << 20).expect("read") == pattern(1 << 20, 5));
    }
    Client::connect_unix(&path, "", Protocol::Simple).expect("client").flush().expect("flush");
    server.shutdown();
    assert!(path.exists(), "a socket that was handed over is its owner's");
}

#[test]
fn a_unix_socket_is_private_and_nobody_is_pushed_aside() {
    let served = Served::new();
    let mode = fs::metadata(served.socket()).expect("socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refused = Listener::unix(&served.socket()).expect_err("somebody listens");
    assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    let file = served.directory.path().join("file");
    fs::write(&file, b"precious").expect("file");
    assert!(matches!(Listener::unix(&file), Err(ListenError::AddrInUse { .. })));
    assert_eq!(fs::read(&file).expect("file"), b"precious");
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let directory = TempDir::new().expect("directory");
    let path = directory.path().join("stale.sock");
    drop(UnixListener::bind(&path).expect("listener"));
    assert!(path.exists());
    drop(Listener::unix(&path).expect("nobody listens there"));
    assert!(!path.exists());
}

#[test]
fn the_limit_of_connections_holds() {
    let served = Served::with(ServerOptions { connections_max: 2, ..Default::default() });
    let clients = [served.client(Protocol::Simple), served.client(Protocol::Simple)];
    assert_eq!(served.server().connections(), 2);
    assert!(Client::connect_unix(&served.socket(), "disk", Protocol::Simple).is_err());
    clients.into_iter().for_each(|client| client.disconnect().expect("goodbye"));
}

#[test]
fn who_does_not_negotiate_in_time_is_closed() {
    let options = ServerOptions { negotiation_timeout: Duration::from_millis(50), ..Default::default() };
    let served = Served::with(options);
    let mut silent = UnixStream::connect(served.socket()).expect("connect");
    let mut greeting = Vec::new();
    silent.read_to_end(&mut greeting).expect("the server closes");
    assert_eq!(greeting.len(), 18);
}

/// Opens the export by hand and returns the raw stream.
fn raw(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("connect");
    let mut hello = vec![0, 0, 0, 3];
    hello.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk");
    stream.write_all(&hello).expect("send");
    stream.read_exact(&mut [0; 18 + 10]).expect("answer");
    stream
}

#[test]
fn a_wrong_magic_number_ends_only_that_connection() {
    let served = Served::new();
    let mut other = served.client(Protocol::Structured);
    let mut stream = raw(&served.socket());
    stream.write_all(&[0x55; 28]).expect("send");
    assert_eq!(stream.read(&mut [0; 16]).expect("closed"), 0);
    other.write(0, &[1; 512], PLAIN).expect("others are served");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Requests with arbitrary fields, some with a payload, some cut off: the server lives, and so do its other clients.
    #[test]
    fn arbitrary_requests_are_survived(
        requests in prop::collection::vec((0u16..32, 0u16..10, any::<u64>(), any::<u32>(), 0usize..2000), 0..10),
        rest in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let served = Served::new();
        let mut stream = raw(&served.socket());
        let mut bytes = Vec::new();
        for (flags, kind, offset, length, payload) in requests {
            let (offset, length) = ((offset % (2 * SIZE as u64)) & !511, (length % (1 << 20)) & !511);
            let request = crate::request::Request { flags, kind, cookie: 1, offset, length };
            bytes.extend(request.encode());
            bytes.extend(vec![0; if kind == 1 { length as usize } else { payload / 1990 }]);
        }
        bytes.extend(rest);
        let answers = stream.try_clone().expect("stream");
        let reader = thread::spawn(move || { let _ = io::copy(&mut &answers, &mut io::sink()); });
        // The server may close first.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        reader.join().expect("reader");
        served.client(Protocol::Structured).flush().expect("others are served");
        let stats = served.server().arena().stats();
        prop_assert!(stats.free_bytes <= 64 << 20);
    }
}
