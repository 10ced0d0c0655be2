//! The settings of QUIC, in one place, with the measurements behind them (200 Mbit/s, 20 to 600 ms, November 2026).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hmac, rand};
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};

use crate::congestion::{AckPattern, PathMemory, RateControl};
use crate::identity::Identity;
use crate::wire::PIECE_BYTES_MAX;

/// More than a piece of a segment, so that no stream waits for its window, and less than 1024 packets, the number of
/// gaps at which quinn aborts a connection.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// More than the bandwidth-delay product of 500 Mbit/s at 600 ms. The sender keeps as much until it is acknowledged, which its memory has to bear.
pub(crate) const CONNECTION_WINDOW_BYTES_MAX: u64 = 64 << 20;
/// Enough for 50 Mbit/s at 300 ms; what every connection of a site gets, however many there are.
const CONNECTION_WINDOW_BYTES_MIN: u64 = 2 << 20;
/// What all connections of a site may leave unread together.
const SITE_WINDOW_BYTES: u64 = 512 << 20;
/// Bytes of pieces that the site's endpoint has not all of: this many windows of the congestion control, since a piece is
/// only complete when its last packet was sent again, and a few pieces. More would wait in the connection, where no order of the groups reaches it.
const UNDELIVERED_WINDOWS: u64 = 4;
const UNDELIVERED_BYTES_MIN: u64 = 1 << 20;
/// Pieces that this is made of at least, and how small they become for it.
const UNDELIVERED_PIECES: u64 = 16;
const PIECE_BYTES_MIN: u64 = 128 << 10;
/// What a connection holds besides pieces, so that control never waits for their acknowledgement.
const CONTROL_BYTES: u64 = 1 << 20;
/// With the default of 3, 1 % of packets late by 3 ms costs 95 % of the throughput; loss is then found by time.
const PACKET_THRESHOLD: u32 = 1000;
/// Saves 60 % of the sender's CPU, and keeps slow ways back free.
const ACK_ELICITING_THRESHOLD: u32 = 20;
/// The congestion control has to leave room for it: it is a round trip in a city.
const ACK_DELAY_MAX: Duration = Duration::from_millis(10);
/// Outages of half a minute are common, and quinn's default of 30 s ends the connection in them.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A path that swallows large packets is met with small ones at once, and asked again after so long.
const BLACK_HOLE_COOLDOWN: Duration = Duration::from_secs(60);
/// Streams of pieces that a source may have open. Every one is read all the time, so none can hold up another's window.
const SEGMENT_STREAMS_MAX: u32 = 256;
/// Groups that a source may send over one connection.
pub(crate) const CONTROL_STREAMS_MAX: u32 = 64;

/// Priority of control and receipts over pieces, which have 0 and less.
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

/// What differs between connections.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionSettings {
    /// The shorter one of both sides counts.
    pub(crate) idle_timeout: Duration,
    pub(crate) keep_alive: Duration,
    /// Hand batches of datagrams to the kernel, which splits them.
    pub(crate) segmentation_offload: bool,
    /// Where the congestion control begins, and what it remembers.
    pub(crate) memory: Option<Arc<PathMemory>>,
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self { idle_timeout: IDLE_TIMEOUT, keep_alive: KEEP_ALIVE, segmentation_offload: true, memory: None }
    }
}

/// Settings of a connection for QUIC.
pub(crate) fn transport_config(settings: ConnectionSettings) -> Arc<TransportConfig> {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_ELICITING_THRESHOLD))
        .max_ack_delay(Some(ACK_DELAY_MAX));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.black_hole_cooldown(BLACK_HOLE_COOLDOWN);
    let pattern = AckPattern { threshold: u64::from(ACK_ELICITING_THRESHOLD), delay_max: ACK_DELAY_MAX };
    let congestion = RateControl { memory: settings.memory, acks: pattern };
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES_MAX as u32))
        .send_window(CONNECTION_WINDOW_BYTES_MAX + CONTROL_BYTES)
        .max_concurrent_uni_streams(VarInt::from_u32(SEGMENT_STREAMS_MAX))
        .max_concurrent_bidi_streams(VarInt::from_u32(CONTROL_STREAMS_MAX + CALL_STREAMS_MAX))
        .packet_threshold(PACKET_THRESHOLD)
        .ack_frequency_config(Some(acks))
        .mtu_discovery_config(Some(mtu))
        .enable_segmentation_offload(settings.segmentation_offload)
        .max_idle_timeout(Some(settings.idle_timeout.try_into().expect("a timeout of minutes fits")))
        .keep_alive_interval(Some(settings.keep_alive))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(congestion));
    Arc::new(config)
}

/// Bytes of pieces that may be undelivered in a connection whose congestion window is `window`.
pub(crate) fn undelivered_max(window: u64) -> u64 {
    (UNDELIVERED_WINDOWS * window + UNDELIVERED_BYTES_MIN).min(CONNECTION_WINDOW_BYTES_MAX)
}

/// Bytes of a piece where so many may be undelivered. Smaller ones let groups take turns on slow lines.
pub(crate) fn piece_bytes(undelivered_max: u64) -> u64 {
    (undelivered_max / UNDELIVERED_PIECES).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
}

/// Bytes that each of a site's connections may leave unread.
pub(crate) fn receive_window(connections: usize) -> VarInt {
    let share = SITE_WINDOW_BYTES / connections.max(1) as u64;
    let window = share.clamp(CONNECTION_WINDOW_BYTES_MIN, CONNECTION_WINDOW_BYTES_MAX);
    VarInt::from_u32(window as u32)
}

/// Makes the source's endpoint; must be called inside a tokio runtime.
pub(crate) fn source_endpoint(socket: Arc<dyn AsyncUdpSocket>) -> io::Result<Endpoint> {
    Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
}

/// Makes the site's endpoint; must be called inside a tokio runtime.
///
/// Its stateless resets can be recognised after a restart of the process, so that sources notice that their connection
/// is gone at once, not after [`IDLE_TIMEOUT`].
pub(crate) fn site_endpoint(
    socket: Arc<dyn AsyncUdpSocket>,
    identity: &Identity,
    server: ServerConfig,
) -> io::Result<Endpoint> {
    let secret = identity.derived_secret("thirdsite stateless reset v1");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret)));
    config.cid_generator(|| Box::new(RandomConnectionIds));
    Endpoint::new_with_abstract_socket(config, Some(server), socket, Arc::new(TokioRuntime))
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
