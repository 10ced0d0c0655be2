//! Counts, and if asked to limits, what a socket puts on the wire: UDP payload with the headers of IP and UDP.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Sleep, sleep_until};

/// Time for which unused capacity is kept, so that late timers cost nothing.
const BURST: Duration = Duration::from_millis(20);
/// Headers of UDP with those of IPv4 and of IPv6.
const HEADER_BYTES_V4: u64 = 28;
const HEADER_BYTES_V6: u64 = 48;
/// The largest datagram that a batch is made of, for choosing the size of batches.
const DATAGRAM_BYTES: f64 = 1500.0;

/// A rate that is never exceeded by more than a burst. Without I/O.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Bytes per second.
    rate: Option<f64>,
    /// Seconds of the rate that are kept while nothing is taken.
    burst: f64,
    /// Bytes that may be taken; below zero after more was taken than there was.
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(rate: Option<u64>, burst: Duration, now: Instant) -> Self {
        Self { rate: rate.map(|rate| rate.max(1) as f64), burst: burst.as_secs_f64(), level: 0.0, at: now }
    }

    pub(crate) fn set_rate(&mut self, rate: Option<u64>, now: Instant) {
        self.fill(now);
        self.rate = rate.map(|rate| rate.max(1) as f64);
        self.level = self.level.min(0.0);
    }

    /// When something may be taken; none for now.
    pub(crate) fn ready_at(&mut self, now: Instant) -> Option<Instant> {
        self.fill(now);
        let rate = self.rate?;
        // Timers are no finer than that.
        (self.level < 0.0)
            .then(|| now + Duration::from_secs_f64(-self.level / rate).max(Duration::from_micros(50)))
    }

    pub(crate) fn take(&mut self, now: Instant, bytes: u64) {
        self.fill(now);
        if self.rate.is_some() {
            self.level -= bytes as f64;
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        if let Some(rate) = self.rate {
            self.level = (self.level + rate * passed).min(rate * self.burst);
        } else {
            self.level = 0.0;
        }
    }
}

/// What the sockets of a link have sent, and may send.
#[derive(Debug)]
pub(crate) struct Meter {
    bucket: Mutex<Bucket>,
    sent_bytes: AtomicU64,
    /// Datagrams that one batch may have.
    batch_max: AtomicU64,
    unreachable: AtomicBool,
}

impl Meter {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            bucket: Mutex::new(Bucket::new(None, BURST, now())),
            sent_bytes: AtomicU64::new(0),
            batch_max: AtomicU64::new(u64::MAX),
            unreachable: AtomicBool::new(false),
        })
    }

    /// Bytes per second that may be sent at most from now on.
    pub(crate) fn set_rate(&self, rate: Option<u64>) {
        // A batch leaves at once; it should be no more than a few milliseconds of the rate.
        let batch = rate.map_or(u64::MAX, |rate| (rate as f64 * 0.005 / DATAGRAM_BYTES).max(1.0) as u64);
        self.batch_max.store(batch, Ordering::Relaxed);
        self.bucket().set_rate(rate, now());
    }

    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Whether sending failed for want of a way since this was last asked.
    pub(crate) fn take_unreachable(&self) -> bool {
        self.unreachable.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn wrap(self: &Arc<Self>, socket: Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket> {
        Arc::new(MeteredSocket { socket, meter: self.clone() })
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The runtime's clock, which a test may have stopped.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[derive(Debug)]
struct MeteredSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    meter: Arc<Meter>,
}

impl AsyncUdpSocket for MeteredSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let inner = self.socket.clone().create_io_poller();
        Box::pin(MeteredPoller { inner, meter: self.meter.clone(), sleep: None })
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let now = now();
        let mut bucket = self.meter.bucket();
        if bucket.ready_at(now).is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.socket.try_send(transmit) {
            Ok(()) => {
                let bytes = wire_bytes(transmit);
                bucket.take(now, bytes);
                self.meter.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                let no_way = matches!(
                    error.kind(),
                    io::ErrorKind::NetworkUnreachable
                        | io::ErrorKind::HostUnreachable
                        | io::ErrorKind::NetworkDown
                        | io::ErrorKind::AddrNotAvailable
                );
                if no_way {
                    self.meter.unreachable.store(true, Ordering::Relaxed);
                }
                Err(error)
            }
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let batch = self.meter.batch_max.load(Ordering::Relaxed);
        self.socket.max_transmit_segments().min(usize::try_from(batch).unwrap_or(usize::MAX))
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

/// What a batch is on the wire.
fn wire_bytes(transmit: &Transmit) -> u64 {
    let bytes = transmit.contents.len() as u64;
    let datagrams = transmit.segment_size.map_or(1, |size| bytes.div_ceil(size.max(1) as u64));
    let header = if transmit.destination.is_ipv4() { HEADER_BYTES_V4 } else { HEADER_BYTES_V6 };
    bytes + datagrams * header
}

struct MeteredPoller {
    inner: Pin<Box<dyn UdpPoller>>,
    meter: Arc<Meter>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for MeteredPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeteredPoller").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl UdpPoller for MeteredPoller {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        loop {
            let ready_at = self.meter.bucket().ready_at(now());
            let Some(ready_at) = ready_at else { return self.inner.as_mut().poll_writable(context) };
            let ready_at = tokio::time::Instant::from_std(ready_at);
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(ready_at)));
            sleep.as_mut().reset(ready_at);
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests;
