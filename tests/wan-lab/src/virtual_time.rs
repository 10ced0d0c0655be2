//! Virtual time: a link between quinn endpoints of one process, on tokio's paused clock.
//!
//! A second of an idle link costs nothing, and the same seed gives the same packets. What is needed for that from the
//! code on top is in `WAN-LAB.md`.

mod net;
mod socket;

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard};

use net::Net;
pub use socket::VirtualSocket;

use crate::model::Counters;
use crate::profile::{Change, LinkProfile, LinkState, Way};

/// Where the server's socket is.
const SERVER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 2), 7443));

/// A link, and the ends that were opened on it. Clones are the same link.
///
/// Client sockets send *up*, the server's sockets send *down*.
#[derive(Clone, Debug)]
pub struct VirtualNet {
    net: Arc<Mutex<Net>>,
}

impl VirtualNet {
    /// Makes a link with one socket at either end: the net, the client's, the server's.
    ///
    /// Must be called in a tokio runtime, whose clock should be paused. The profile's script begins to count now.
    pub fn new(profile: &LinkProfile, seed: u64) -> (VirtualNet, Arc<VirtualSocket>, Arc<VirtualSocket>) {
        let virtual_net = VirtualNet { net: Arc::new(Mutex::new(Net::new(profile, seed))) };
        let (client, server) = (virtual_net.client_socket(), virtual_net.server_socket());
        (virtual_net, client, server)
    }

    /// Where the server is, for `Endpoint::connect`.
    pub fn server_address(&self) -> SocketAddr {
        SERVER
    }

    /// Opens a further socket on the client's side, with an address that no other has had: after a change of address
    /// (`Endpoint::rebind_abstract`), or for a further process.
    pub fn client_socket(&self) -> Arc<VirtualSocket> {
        let local = self.lock().open_client();
        VirtualSocket::new(self.net.clone(), Way::Up, local)
    }

    /// Opens the server's socket again, as a process that was restarted does: packets to its address come here from now
    /// on.
    pub fn server_socket(&self) -> Arc<VirtualSocket> {
        self.lock().open(SERVER);
        VirtualSocket::new(self.net.clone(), Way::Down, SERVER)
    }

    /// Renews the address translation before the clients: all of them are seen with new ports, and packets to the old
    /// ones are dropped.
    pub fn rebind_nat(&self) {
        self.lock().rebind_nat();
    }

    /// Changes the link now; `change.time` is not looked at.
    pub fn apply(&self, change: &Change) {
        self.lock().apply_now(change);
    }

    /// Changes the state of both directions now.
    pub fn set_link(&self, state: LinkState) {
        self.apply(&Change::link(state));
    }

    /// What happened to the packets of a direction.
    pub fn counters(&self, way: Way) -> Counters {
        *self.lock().direction(way).counters()
    }

    /// Packets that were sent to an address that nobody has (any more).
    pub fn unroutable_packets(&self) -> u64 {
        self.lock().unroutable_packets()
    }

    /// Bytes that wait before the bottleneck of a direction, or are held.
    pub fn backlog_bytes(&self, way: Way) -> u64 {
        self.lock().backlog_bytes(way)
    }

    /// Hash over time, direction, length and fate of every packet until now.
    pub fn trace(&self) -> u64 {
        self.lock().trace()
    }

    fn lock(&self) -> MutexGuard<'_, Net> {
        lock(&self.net)
    }
}

fn lock(net: &Mutex<Net>) -> MutexGuard<'_, Net> {
    net.lock().expect("no holder of the lock panics")
}
