//! A socket of a virtual link, for quinn.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Sleep, sleep_until};

use super::lock;
use super::net::{Datagram, Net};
use crate::profile::Way;

/// What quinn asks of kernels that can split batches; the link sees single packets.
const SEGMENTS_MAX: usize = 10;

/// One end of a [`VirtualNet`](super::VirtualNet).
pub struct VirtualSocket {
    net: Arc<Mutex<Net>>,
    way: Way,
    local: SocketAddr,
    /// Wakes the receiving task when its next packet is due.
    alarm: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl VirtualSocket {
    pub(super) fn new(net: Arc<Mutex<Net>>, way: Way, local: SocketAddr) -> Arc<VirtualSocket> {
        Arc::new(VirtualSocket { net, way, local, alarm: Mutex::new(None) })
    }
}

impl fmt::Debug for VirtualSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualSocket").field("way", &self.way).field("local", &self.local).finish()
    }
}

impl AsyncUdpSocket for VirtualSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let mut net = lock(&self.net);
        let from = net.outside(self.local);
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for content in transmit.contents.chunks(segment) {
            net.send(self.way, Datagram { from, to: transmit.destination, content: content.to_vec() });
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut received = 0;
        while received < buffers.len().min(meta.len()) {
            let next = lock(&self.net).receive(self.local, context.waker());
            match next {
                Ok(datagram) => {
                    let length = datagram.content.len().min(buffers[received].len());
                    buffers[received][..length].copy_from_slice(&datagram.content[..length]);
                    meta[received] = RecvMeta {
                        addr: datagram.from,
                        len: length,
                        stride: length,
                        ecn: None,
                        dst_ip: None,
                    };
                    received += 1;
                }
                Err(_) if received > 0 => break,
                Err(None) => return Poll::Pending,
                Err(Some(due)) => {
                    let mut alarm = self.alarm.lock().expect("no holder of the lock panics");
                    let sleep = alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
                    sleep.as_mut().reset(due);
                    if sleep.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS_MAX
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Like a socket whose buffer is never full: what is too much is dropped at the link's queue.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
