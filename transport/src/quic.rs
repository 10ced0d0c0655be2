//! The settings of QUIC, in one place, with the measurements behind them (200 Mbit/s, 20 to 600 ms, November 2026).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hmac, rand};
use quinn::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, MtuDiscoveryConfig,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::identity::Identity;

/// Small on purpose: quinn aborts a connection whose stream has more than 1024 gaps, which a single wide stream reaches
/// at 200 Mbit/s and 100 ms. Several streams fill the link instead.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// At least twice the bandwidth-delay product of 200 Mbit/s at 600 ms.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// The kernel's usual upper bound; its default loses packets of loopback bursts.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// With the default of 3, 1 % of packets late by 3 ms costs 95 % of the throughput; loss is then found by time.
const PACKET_THRESHOLD: u32 = 1000;
/// Saves 60 % of the sender's CPU.
const ACK_ELICITING_THRESHOLD: u32 = 20;
/// Outages of half a minute are common, and quinn's default of 30 s ends the connection in them.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Segment streams that a source may have open. Every one is read all the time, so none can hold up another's window.
const SEGMENT_STREAMS_MAX: u32 = 256;
/// Groups that a source may send over one connection.
pub(crate) const CONTROL_STREAMS_MAX: u32 = 64;

/// Priority of control and receipts over segments, which have 0.
pub(crate) const CONTROL_PRIORITY: i32 = 10;
/// Priority of calls: behind control, before segments.
pub(crate) const CALL_PRIORITY: i32 = 5;
/// Calls that a source may have under way on one connection.
const CALL_STREAMS_MAX: u32 = 64;

/// Why a connection, or a stream, was ended by the application. The numbers are part of the protocol.
pub(crate) mod code {
    use quinn::VarInt;

    /// Connection: goodbye.
    pub(crate) const GOODBYE: VarInt = VarInt::from_u32(0);
    /// Connection: the peer broke the protocol.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(1);
    /// Connection: replaced by a newer one of the same identity.
    pub(crate) const REPLACED: VarInt = VarInt::from_u32(2);
    /// Connection: enrolment was removed or changed.
    pub(crate) const ENROLMENT: VarInt = VarInt::from_u32(3);
    /// Connection: a limit of the site.
    pub(crate) const LIMIT: VarInt = VarInt::from_u32(4);

    /// Segment stream: refused; Refused on the control stream says why.
    pub(crate) const STREAM_REFUSED: VarInt = VarInt::from_u32(1);
    /// Segment stream: the site has this segment.
    pub(crate) const STREAM_HAVE: VarInt = VarInt::from_u32(2);
    /// Segment stream: the source gave up sending it.
    pub(crate) const STREAM_ABANDONED: VarInt = VarInt::from_u32(3);
}

/// Settings of a connection; the shorter idle timeout of both sides counts.
pub(crate) fn transport_config(idle_timeout: Duration, keep_alive: Duration) -> Arc<TransportConfig> {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_ELICITING_THRESHOLD));
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .max_concurrent_uni_streams(VarInt::from_u32(SEGMENT_STREAMS_MAX))
        .max_concurrent_bidi_streams(VarInt::from_u32(CONTROL_STREAMS_MAX + CALL_STREAMS_MAX))
        .send_fairness(false)
        .packet_threshold(PACKET_THRESHOLD)
        .ack_frequency_config(Some(acks))
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
        .max_idle_timeout(Some(idle_timeout.try_into().expect("a timeout of minutes fits")))
        .keep_alive_interval(Some(keep_alive))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(congestion_control());
    Arc::new(config)
}

/// CUBIC, as long as there is no controller of our own for long lossy links.
fn congestion_control() -> Arc<quinn::congestion::CubicConfig> {
    Arc::new(quinn::congestion::CubicConfig::default())
}

/// A UDP socket with large buffers. Smaller ones than asked for are taken: they cost throughput, not correctness.
fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES).ok();
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES).ok();
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Opens the source's endpoint; must be called inside a tokio runtime.
pub(crate) fn source_endpoint(address: SocketAddr) -> io::Result<Endpoint> {
    Endpoint::new(EndpointConfig::default(), None, udp_socket(address)?, Arc::new(TokioRuntime))
}

/// Opens the site's endpoint; must be called inside a tokio runtime.
///
/// Its stateless resets can be recognised after a restart of the process, so that sources notice that their connection
/// is gone at once, not after [`IDLE_TIMEOUT`].
pub(crate) fn site_endpoint(
    address: SocketAddr,
    identity: &Identity,
    server: ServerConfig,
) -> io::Result<Endpoint> {
    let secret = identity.derived_secret("thirdsite stateless reset v1");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret)));
    config.cid_generator(|| Box::new(RandomConnectionIds));
    Endpoint::new(config, Some(server), udp_socket(address)?, Arc::new(TokioRuntime))
}

/// Connection ids without a key. quinn's own ignore ids that another process made, and would send no reset for them.
#[derive(Debug)]
struct RandomConnectionIds;

const CONNECTION_ID_BYTES: usize = 8;

impl ConnectionIdGenerator for RandomConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; CONNECTION_ID_BYTES];
        rand::fill(&mut bytes).expect("the system gives random bytes");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
