//! Real quinn connections over virtual links.

use std::time::Duration;

use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig,
};
use rustls::RootCertStore;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::time::Instant;

use super::*;
use crate::profile::{Rate, Share};

/// Both ends of a connection, and the link between them.
struct Pair {
    net: VirtualNet,
    client: Endpoint,
    outgoing: Connection,
    incoming: Connection,
    _server: Endpoint,
}

/// Ed25519 and a fixed serial number: every certificate has the same length, so equal seeds give equal packets.
fn configs() -> (ClientConfig, ServerConfig) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["site".to_owned()]).expect("a name");
    params.serial_number = Some(1_u64.into());
    let certificate = params.self_signed(&key).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("a certificate");
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_secs(120).try_into().expect("fits")));
    let transport = Arc::new(transport);
    let mut client = ClientConfig::with_root_certificates(Arc::new(roots)).expect("a client");
    client.transport_config(transport.clone());
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let mut server =
        ServerConfig::with_single_cert(vec![certificate.der().clone()], key.into()).expect("a server");
    server.transport_config(transport);
    (client, server)
}

fn endpoint(socket: Arc<VirtualSocket>, server: Option<ServerConfig>) -> Endpoint {
    let mut config = EndpointConfig::default();
    config.rng_seed(Some([7; 32]));
    Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime)).expect("an endpoint")
}

impl Pair {
    async fn connect(profile: &LinkProfile, seed: u64) -> Pair {
        let (net, client, server) = VirtualNet::new(profile, seed);
        let (client_config, server_config) = configs();
        let (client, server) = (endpoint(client, None), endpoint(server, Some(server_config)));
        let connecting =
            client.connect_with(client_config, net.server_address(), "site").expect("an attempt");
        let accepting = async { server.accept().await.expect("a connection").await.expect("a handshake") };
        let (outgoing, incoming) = tokio::join!(connecting, accepting);
        Pair { net, client, outgoing: outgoing.expect("a handshake"), incoming, _server: server }
    }

    /// Sends bytes from the client to the server and returns how long it took.
    async fn transfer(&self, bytes: usize) -> Duration {
        let started = Instant::now();
        let content: Vec<u8> = (0..bytes).map(|number| (number / 251) as u8).collect();
        let sending = async {
            let mut stream = self.outgoing.open_uni().await.expect("a stream");
            stream.write_all(&content).await.expect("is taken");
            stream.finish().expect("is open");
            stream.stopped().await.expect("is confirmed");
        };
        let receiving = async {
            let mut stream = self.incoming.accept_uni().await.expect("a stream");
            stream.read_to_end(bytes).await.expect("arrives")
        };
        let ((), received) = tokio::join!(sending, receiving);
        assert!(received == content);
        started.elapsed()
    }
}

fn lossy() -> LinkProfile {
    let mut profile = LinkProfile::symmetric("lossy", Rate::mbit(50), Duration::from_millis(50));
    profile.up.loss = Share::percent(1.0);
    profile
}

fn at(seconds: u64, state: LinkState) -> Change {
    Change { time: Duration::from_secs(seconds), ..Change::link(state) }
}

/// Trace, counters and time of a transfer in a runtime of its own.
fn run(seed: u64) -> (u64, Counters, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let pair = Pair::connect(&lossy(), seed).await;
        let took = pair.transfer(2_000_000).await;
        (pair.net.trace(), pair.net.counters(Way::Up), took)
    })
}

#[test]
fn the_same_seed_gives_the_same_packets() {
    let (first, counters, _) = run(11);
    let (second, ..) = run(11);
    let (other, ..) = run(12);
    assert_eq!(first, second);
    assert_ne!(first, other);
    assert!(counters.dropped_loss.packets > 0, "{counters:?}");
}

#[tokio::test(start_paused = true)]
async fn the_rate_and_the_delay_of_the_link_are_what_a_transfer_sees() {
    let profile = LinkProfile::symmetric("clean", Rate::mbit(10), Duration::from_millis(20));
    let started = Instant::now();
    let pair = Pair::connect(&profile, 1).await;
    // Two one-way delays for the client, one more until the server has the client's end of the handshake.
    assert!(started.elapsed() >= Duration::from_millis(60), "{:?}", started.elapsed());
    let took = pair.transfer(5_000_000).await;
    // Five megabytes at 10 Mbit/s take 4 s; headers and start-up are on top.
    assert!((4.0..5.5).contains(&took.as_secs_f64()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn packets_over_a_link_that_is_down_are_dropped_and_the_transfer_goes_on_behind_it() {
    let mut profile = lossy();
    profile.script = vec![at(1, LinkState::Down), at(11, LinkState::Up)];
    let pair = Pair::connect(&profile, 1).await;
    let took = pair.transfer(5_000_000).await;
    assert!(took >= Duration::from_secs(10), "{took:?}");
    assert!(pair.net.counters(Way::Up).dropped_down.packets > 0);
}

#[tokio::test(start_paused = true)]
async fn a_held_packet_arrives_at_the_change_that_releases_it_though_nothing_else_happens() {
    let mut profile = LinkProfile::symmetric("hold", Rate::mbit(10), Duration::from_millis(20));
    profile.script = vec![at(5, LinkState::Hold), at(8, LinkState::Up)];
    let started = Instant::now();
    let pair = Pair::connect(&profile, 1).await;
    tokio::time::sleep_until(started + Duration::from_secs(6)).await;
    pair.outgoing.send_datagram(b"held".as_slice().into()).expect("is taken");
    assert_eq!(pair.incoming.read_datagram().await.expect("arrives"), b"held".as_slice());
    let elapsed = started.elapsed();
    assert!((8_020..8_030).contains(&elapsed.as_millis()), "{elapsed:?}");
    assert_eq!(pair.net.counters(Way::Up).dropped(), Default::default());
}

#[tokio::test(start_paused = true)]
async fn a_connection_survives_a_new_address_translation_and_a_new_address() {
    let pair = Pair::connect(&lossy(), 1).await;
    let before = pair.incoming.remote_address();
    pair.net.rebind_nat();
    pair.transfer(1_000_000).await;
    let renewed = pair.incoming.remote_address();
    assert_ne!(before, renewed);
    pair.client.rebind_abstract(pair.net.client_socket()).expect("a socket");
    pair.transfer(1_000_000).await;
    assert_ne!(renewed, pair.incoming.remote_address());
}

#[tokio::test(start_paused = true)]
async fn packets_to_a_translation_that_is_gone_are_counted() {
    let pair = Pair::connect(&lossy(), 1).await;
    pair.net.rebind_nat();
    pair.incoming.send_datagram(b"lost".as_slice().into()).expect("is taken");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(pair.net.unroutable_packets() > 0);
}
