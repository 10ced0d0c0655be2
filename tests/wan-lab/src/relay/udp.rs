//! Datagrams through the model.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use rustix::event::epoll;
use socket2::SockRef;

use crate::error::LabError;
use crate::health::{Health, LatenessSummary};
use crate::model::Counters;
use crate::profile::{Change, LinkProfile, LinkState, Way};
use crate::pump::{Port, Pump};

/// IPv4 and UDP headers.
const HEADER_BYTES: u32 = 28;
/// The kernel's usual upper bound.
const BUFFER_BYTES: usize = 4 << 20;

/// A relay for UDP: what is sent to [`UdpRelay::address`] comes out at the target, and back.
///
/// Ends, with its sockets, when it is dropped.
#[derive(Debug)]
pub struct UdpRelay {
    up: Pump,
    down: Pump,
    sides: Arc<Sides>,
    address: SocketAddr,
    profile: LinkProfile,
    /// Drops of outside sockets that `nat_rebind` has closed.
    closed_drops: Mutex<u64>,
}

/// The sockets, shared by both directions.
#[derive(Debug)]
struct Sides {
    client_side: UdpSocket,
    /// Who spoke last: the answers go there.
    client: RwLock<Option<SocketAddr>>,
    target: SocketAddr,
    target_side: RwLock<UdpSocket>,
    /// Becomes readable with the socket of the target's side, whichever that is at the moment.
    target_ready: OwnedFd,
}

impl UdpRelay {
    /// Starts a relay to a target on a free port of 127.0.0.1. The profile's script begins to count now.
    ///
    /// # Errors
    /// Sockets or threads that cannot be made.
    pub fn start(profile: &LinkProfile, target: SocketAddr, seed: u64) -> Result<UdpRelay, LabError> {
        let socket_error =
            |source| LabError::Socket { action: "open its sockets on 127.0.0.1".to_owned(), source };
        let client_side = open().map_err(socket_error)?;
        let address = client_side.local_addr().map_err(socket_error)?;
        let target_ready =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| socket_error(errno.into()))?;
        let target_side = open().map_err(socket_error)?;
        watch(&target_ready, &target_side).map_err(socket_error)?;
        let sides = Arc::new(Sides {
            client_side,
            client: RwLock::new(None),
            target,
            target_side: RwLock::new(target_side),
            target_ready,
        });
        let started = Instant::now();
        let up = Pump::start(profile, Way::Up, seed, started, UpPort(sides.clone()))?;
        let down = Pump::start(profile, Way::Down, seed, started, DownPort(sides.clone()))?;
        Ok(UdpRelay { up, down, sides, address, profile: profile.clone(), closed_drops: Mutex::new(0) })
    }

    /// Where the client sends to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The target sees the client with a new port from now on; what it sends to the old one is dropped.
    ///
    /// # Errors
    /// A socket that cannot be made; the old one stays in use then.
    pub fn nat_rebind(&self) -> Result<(), LabError> {
        let socket_error = |source| LabError::Socket { action: "open a new socket".to_owned(), source };
        let renewed = open().map_err(socket_error)?;
        watch(&self.sides.target_ready, &renewed).map_err(socket_error)?;
        let mut target_side = self.sides.target_side.write().expect("no holder of the lock panics");
        *self.closed_drops.lock().expect("no holder of the lock panics") += receive_drops(&target_side);
        // Closing the old one takes it out of the epoll set.
        *target_side = renewed;
        Ok(())
    }

    /// Changes the link now; `change.time` is not looked at.
    pub fn apply(&self, change: &Change) {
        for way in Way::BOTH.into_iter().filter(|way| change.direction.contain(*way)) {
            self.pump(way).apply(change);
        }
    }

    /// Changes the state of both directions now.
    pub fn set_link(&self, state: LinkState) {
        self.apply(&Change::link(state));
    }

    /// What happened to the packets of a direction.
    pub fn counters(&self, way: Way) -> Counters {
        self.pump(way).counters()
    }

    /// Bytes that wait before the bottleneck of a direction, or are held.
    pub fn backlog_bytes(&self, way: Way) -> u64 {
        self.pump(way).backlog_bytes()
    }

    /// Whether the relay kept up until now.
    ///
    /// # Errors
    /// A thread that has ended.
    pub fn health(&self) -> Result<Health, LabError> {
        for way in Way::BOTH {
            if let Some(source) = self.pump(way).failure() {
                return Err(LabError::Engine { way: way.name(), source });
            }
        }
        let drops = receive_drops(&self.sides.client_side)
            + receive_drops(&self.sides.target_side.read().expect("no holder of the lock panics"))
            + *self.closed_drops.lock().expect("no holder of the lock panics");
        Ok(Health {
            overload_packets: drops + self.up.refused_packets() + self.down.refused_packets(),
            realtime: self.up.is_realtime() && self.down.is_realtime(),
            lateness: Way::BOTH.map(|way| LatenessSummary::of(self.pump(way).lateness())),
            round_trip: self.profile.round_trip(),
        })
    }

    fn pump(&self, way: Way) -> &Pump {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }
}

fn open() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_nonblocking(true)?;
    // Smaller ones than asked for are taken; what they lose is counted.
    let buffers = SockRef::from(&socket);
    buffers.set_recv_buffer_size(BUFFER_BYTES).ok();
    buffers.set_send_buffer_size(BUFFER_BYTES).ok();
    Ok(socket)
}

fn watch(set: &OwnedFd, socket: &UdpSocket) -> io::Result<()> {
    let data = epoll::EventData::new_u64(0);
    Ok(epoll::add(set, socket, data, epoll::EventFlags::IN)?)
}

/// Datagrams that did not fit into a socket's buffer: the last column of its row in /proc/net/udp.
fn receive_drops(socket: &UdpSocket) -> u64 {
    let Ok(port) = socket.local_addr().map(|address| address.port()) else { return 0 };
    let table = std::fs::read_to_string("/proc/thread-self/net/udp").unwrap_or_default();
    let row = table.lines().find(|row| {
        row.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}")))
    });
    row.and_then(|row| row.split_whitespace().last()?.parse().ok()).unwrap_or(0)
}

#[derive(Debug)]
struct UpPort(Arc<Sides>);

impl Port for UpPort {
    fn source(&self) -> BorrowedFd<'_> {
        self.0.client_side.as_fd()
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (length, from) = self.0.client_side.recv_from(buffer)?;
        let known = *self.0.client.read().expect("no holder of the lock panics");
        if known != Some(from) {
            *self.0.client.write().expect("no holder of the lock panics") = Some(from);
        }
        Ok(length)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let socket = self.0.target_side.read().expect("no holder of the lock panics");
        socket.send_to(packet, self.0.target).map(drop)
    }

    fn header_bytes(&self) -> u32 {
        HEADER_BYTES
    }
}

#[derive(Debug)]
struct DownPort(Arc<Sides>);

impl Port for DownPort {
    fn source(&self) -> BorrowedFd<'_> {
        self.0.target_ready.as_fd()
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let socket = self.0.target_side.read().expect("no holder of the lock panics");
        loop {
            // Only the target is answered for: anybody on this host can send to the port.
            let (length, from) = socket.recv_from(buffer)?;
            if from == self.0.target {
                return Ok(length);
            }
        }
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let client = *self.0.client.read().expect("no holder of the lock panics");
        match client {
            Some(client) => self.0.client_side.send_to(packet, client).map(drop),
            None => Ok(()),
        }
    }

    fn header_bytes(&self) -> u32 {
        HEADER_BYTES
    }
}
