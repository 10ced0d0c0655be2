//! Where UDP sockets come from: the system, or whatever a caller puts in its place.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};

/// The kernel's usual upper bound; its default loses packets of loopback bursts.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Opens the sockets of a link or a site.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// Opens a socket. Called inside a tokio runtime.
    ///
    /// # Errors
    /// Whatever keeps the address from being used.
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// The address from which packets to `remote` leave now. When it changes, the link opens a new socket.
    ///
    /// # Errors
    /// There is no way to `remote`.
    fn source_address(&self, remote: SocketAddr) -> io::Result<IpAddr>;
}

/// The system's own network.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemNetwork;

impl Network for SystemNetwork {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        // Smaller buffers than asked for are taken: they cost throughput, not correctness.
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES).ok();
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES).ok();
        socket.bind(&address.into())?;
        TokioRuntime.wrap_udp_socket(socket.into())
    }

    fn source_address(&self, remote: SocketAddr) -> io::Result<IpAddr> {
        let any = any_address(remote);
        let probe = UdpSocket::bind(any)?;
        // Sends nothing: the kernel only looks up its route.
        probe.connect(remote)?;
        Ok(probe.local_addr()?.ip())
    }
}

/// Any address and port of the family of `remote`.
pub(crate) fn any_address(remote: SocketAddr) -> SocketAddr {
    let any = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, 0)
}
