//! Measures the path to a site over a connection of its own, which touches no group; `PROTOCOL.md`, "Measuring a path".

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::congestion::PathMemory;
use crate::frames::{ReadFault, read_message};
use crate::identity::{Fingerprint, Identity};
use crate::link::dial::{Connected, Dialer};
use crate::link::{LinkError, LinkOptions};
use crate::meter::Meter;
use crate::network::any_address;
use crate::quic::code;
use crate::tls;
use crate::wire::{Measured, PIECE_BYTES_MAX};

/// Bytes that one measurement may send at most.
pub const MEASURE_BYTES_MAX: u64 = 64 << 20;
/// Time that a site gives one measurement.
pub(crate) const MEASURE_TIME_MAX: Duration = Duration::from_secs(30);

/// Time for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Streams under way, fewer than the site allows.
const STREAMS_MAX: usize = 64;
const PIECE_BYTES_MIN: u64 = 16 << 10;
/// Most of the site's time that goes into the load; the rest is for pings.
const LOAD_TIME_MAX: Duration = Duration::from_secs(20);

/// How a path is measured.
#[derive(Clone, Debug)]
pub struct MeasureOptions {
    /// The site, and the sockets; limits count.
    pub link: LinkOptions,
    /// Bytes to send; [`MEASURE_BYTES_MAX`] at most.
    pub bytes_max: u64,
    /// Time for sending them; 20 s at most.
    pub time_max: Duration,
    /// Pings before the load.
    pub pings: usize,
}

impl MeasureOptions {
    /// All bytes that are allowed, 10 s, 20 pings.
    #[must_use]
    pub fn new(link: LinkOptions) -> Self {
        Self { link, bytes_max: MEASURE_BYTES_MAX, time_max: Duration::from_secs(10), pings: 20 }
    }
}

/// How a path fares.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkMeasurement {
    /// The site's address.
    pub address: SocketAddr,
    /// Time until the connection stood.
    pub connect: Duration,
    /// Shortest round trip without load.
    pub rtt_min: Duration,
    /// Mean of them.
    pub rtt_mean: Duration,
    /// The one that 99 of 100 do not exceed.
    pub rtt_p99: Duration,
    /// Pings that were not answered.
    pub pings_lost: usize,
    /// Bytes that arrived under load, without headers.
    pub arrived_bytes: u64,
    /// How long the load lasted.
    pub load: Duration,
    /// Bytes per second that arrived in the second half of the load, when the start is over.
    pub rate: f64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Of these, packets that were lost.
    pub lost_packets: u64,
    /// Bytes that one packet carries at most.
    pub packet_bytes_max: u16,
    /// Whether the connection went on from another local port, as after a NAT forgot it. None if the local port is fixed.
    pub survives_new_port: Option<bool>,
}

/// Measures the path to the site that has one of the fingerprints `sites`. `progress` is told the bytes that arrived, and how many there will be at most.
///
/// # Errors
/// [`LinkError`]: the site is not reached, is another one, or does not let this source measure.
///
/// # Cancel safety
/// Dropped, the measurement ends and nothing is left of it.
pub async fn measure_link(
    options: MeasureOptions,
    identity: Arc<Identity>,
    sites: Vec<Fingerprint>,
    progress: impl Fn(u64, u64),
) -> Result<LinkMeasurement, LinkError> {
    if sites.is_empty() {
        return Err(LinkError::Sites { actual: 0 });
    }
    let meter = Meter::new();
    meter.set_rate(options.link.limits.link);
    let dialer = Dialer {
        options: Arc::new(options.link.clone()),
        identity,
        sites,
        meter: meter.clone(),
        memory: Arc::new(PathMemory::default()),
        protocol: tls::MEASURE_ALPN,
    };
    let begun = Instant::now();
    let connected = dialer.connect().await?;
    let connect = begun.elapsed();
    let measured = measure(&options, &meter, &connected, connect, progress).await;
    let reason = connected.connection.close_reason();
    connected.connection.close(code::GOODBYE, b"measured");
    timeout(Duration::from_secs(2), connected.endpoint.wait_idle()).await.ok();
    match (measured, reason) {
        (Some(measurement), _) => Ok(measurement),
        (None, Some(reason)) => Err(dialer.explain(reason, connected.address, &connected.presented)),
        (None, None) => Err(LinkError::Unreachable { address: connected.address }),
    }
}

/// None if the connection broke, or no ping was answered.
async fn measure(
    options: &MeasureOptions,
    meter: &Arc<Meter>,
    connected: &Connected,
    connect: Duration,
    progress: impl Fn(u64, u64),
) -> Option<LinkMeasurement> {
    let connection = &connected.connection;
    let mut round_trips = Vec::new();
    for _ in 0..options.pings.max(1) {
        let begun = Instant::now();
        match timeout(PING_TIMEOUT, send(connection.clone(), Bytes::new())).await {
            Ok(Some(_)) => round_trips.push(begun.elapsed()),
            Ok(None) => return None,
            Err(_) => {}
        }
    }
    round_trips.sort_unstable();
    let rtt_min = *round_trips.first()?;
    let bytes_max = options.bytes_max.min(MEASURE_BYTES_MAX);
    let load = load(connection, bytes_max, options.time_max.min(LOAD_TIME_MAX), progress).await?;
    let stats = connection.stats();
    let fixed_port = options.link.bind.is_some_and(|bind| bind.port() != 0);
    let survives_new_port = if fixed_port { None } else { Some(goes_on(options, meter, connected).await) };
    let count = round_trips.len();
    Some(LinkMeasurement {
        address: connected.address,
        connect,
        rtt_min,
        rtt_mean: round_trips.iter().sum::<Duration>() / count as u32,
        rtt_p99: round_trips[(count * 99).div_ceil(100) - 1],
        pings_lost: options.pings.max(1) - count,
        arrived_bytes: load.arrived_bytes(),
        load: load.time(),
        rate: load.rate(),
        sent_packets: stats.path.sent_packets,
        lost_packets: stats.path.lost_packets,
        packet_bytes_max: stats.path.current_mtu,
        survives_new_port,
    })
}

/// Sends one stream and answers how many bytes the site says it had.
async fn send(connection: Connection, bytes: Bytes) -> Option<u64> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    send.write_chunk(bytes).await.ok()?;
    send.finish().ok()?;
    let answer: Result<Option<Measured>, ReadFault> = read_message(&mut recv, "measurement").await;
    answer.ok().flatten().map(|measured| measured.bytes)
}

/// Whether the site is still heard from another local port.
async fn goes_on(options: &MeasureOptions, meter: &Arc<Meter>, connected: &Connected) -> bool {
    let bind = options.link.bind.unwrap_or_else(|| any_address(connected.address));
    let socket = options.link.network.bind(bind);
    let rebound = socket.and_then(|socket| connected.endpoint.rebind_abstract(meter.wrap(socket)));
    let ping = timeout(PING_TIMEOUT, send(connected.connection.clone(), Bytes::new()));
    rebound.is_ok() && matches!(ping.await, Ok(Some(_)))
}

/// What arrived, and when, since the load began.
#[derive(Debug, Default)]
struct Load(Vec<(Duration, u64)>);

impl Load {
    fn arrived_bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }

    fn time(&self) -> Duration {
        self.0.last().map_or(Duration::ZERO, |(at, _)| *at)
    }

    /// Of the second half of the time: a start looks for the rate.
    fn rate(&self) -> f64 {
        let end = self.time();
        let before = self.0.iter().rev().find(|(at, _)| *at <= end / 2);
        let begin = before.map_or(Duration::ZERO, |(at, _)| *at);
        let late = self.0.iter().filter(|(at, _)| *at > begin).map(|(_, bytes)| bytes).sum::<u64>();
        let seconds = (end - begin).as_secs_f64();
        if seconds > 0.0 { late as f64 / seconds } else { 0.0 }
    }
}

/// Fills the path until all bytes have arrived or the time is over. None if the connection broke.
async fn load(
    connection: &Connection,
    bytes_max: u64,
    time_max: Duration,
    progress: impl Fn(u64, u64),
) -> Option<Load> {
    // Noise, in case a box on the way compresses.
    let mut noise = vec![0; PIECE_BYTES_MAX as usize];
    aws_lc_rs::rand::fill(&mut noise).ok()?;
    let noise = Bytes::from(noise);
    let begun = Instant::now();
    let mut streams = JoinSet::new();
    let (mut sent, mut arrived, mut load) = (0, 0, Load::default());
    loop {
        let window = connection.stats().path.cwnd;
        let piece = (window / 16).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX).min(bytes_max - sent);
        let in_flight_max = (2 * window).max(8 * PIECE_BYTES_MIN);
        if piece > 0 && streams.len() < STREAMS_MAX && sent - arrived < in_flight_max {
            sent += piece;
            streams.spawn(send(connection.clone(), noise.slice(..piece as usize)));
            continue;
        }
        match timeout_at(begun + time_max, streams.join_next()).await {
            Ok(Some(Ok(Some(bytes)))) => {
                arrived += bytes;
                load.0.push((begun.elapsed(), bytes));
                progress(arrived, bytes_max);
            }
            Ok(Some(_)) => return None,
            Ok(None) | Err(_) => break,
        }
    }
    progress(bytes_max, bytes_max);
    Some(load)
}

#[cfg(test)]
mod tests;
