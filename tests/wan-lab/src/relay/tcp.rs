//! Connections through the model, as byte streams: delay and rate, stalls, cuts and resets, but no loss.

mod connection;

use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use connection::{Connection, End};
use socket2::SockRef;

use crate::error::LabError;
use crate::lateness::Lateness;
use crate::model::{Direction, nanoseconds};
use crate::profile::{Change, LinkProfile, LinkState, Way};

/// A relay for TCP: connections to [`TcpRelay::address`] are made to the target.
///
/// Ends, with its connections, when it is dropped.
#[derive(Debug)]
pub struct TcpRelay {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: TcpListener,
    threads: Vec<JoinHandle<()>>,
}

/// Sums since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Of them those whose target could not be reached.
    pub unreachable: u64,
    /// Connections that are open now.
    pub open: u64,
    /// Bytes that were taken from the client.
    pub bytes_up: u64,
    /// Bytes that were taken from the target.
    pub bytes_down: u64,
}

/// What all connections share: they compete for the same link.
#[derive(Debug)]
struct Shared {
    started: Instant,
    target: SocketAddr,
    directions: Mutex<[Direction; 2]>,
    /// Told of every change of the link and of the end.
    changed: Condvar,
    stop: AtomicBool,
    connections: Mutex<Vec<Arc<Connection>>>,
    accepted: AtomicU64,
    unreachable: AtomicU64,
    lateness: Lateness,
}

impl TcpRelay {
    /// Starts a relay to a target on a free port of 127.0.0.1. The profile's script begins to count now.
    ///
    /// # Errors
    /// Sockets or threads that cannot be made.
    pub fn start(profile: &LinkProfile, target: SocketAddr, seed: u64) -> Result<TcpRelay, LabError> {
        let socket_error = |source| LabError::Socket { action: "listen on 127.0.0.1".to_owned(), source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(socket_error)?;
        let address = listener.local_addr().map_err(socket_error)?;
        let accepting = listener.try_clone().map_err(socket_error)?;
        let shared = Arc::new(Shared {
            started: Instant::now(),
            target,
            directions: Mutex::new(Way::BOTH.map(|way| Direction::new(profile, way, seed))),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            connections: Mutex::default(),
            accepted: AtomicU64::new(0),
            unreachable: AtomicU64::new(0),
            lateness: Lateness::default(),
        });
        let mut relay = TcpRelay { shared: shared.clone(), address, listener, threads: Vec::new() };
        relay.spawn("wan-accept", move || accept(&shared, &accepting))?;
        if !profile.script.is_empty() {
            let (shared, script) = (relay.shared.clone(), profile.script.clone());
            relay.spawn("wan-script", move || shared.follow(script))?;
        }
        Ok(relay)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), LabError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        self.threads.push(thread.map_err(|source| LabError::Start { source })?);
        Ok(())
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the link now; `change.time` and `change.loss` are not looked at. A link that is down or on hold stalls
    /// all connections.
    pub fn apply(&self, change: &Change) {
        self.shared.apply(change);
    }

    /// Changes the state of both directions now.
    pub fn set_link(&self, state: LinkState) {
        self.apply(&Change::link(state));
    }

    /// Ends all open connections as if both ends had closed them; what is under way is lost.
    pub fn cut_connections(&self) {
        self.shared.end_all(End::Close);
    }

    /// Ends all open connections with a reset to both ends.
    pub fn reset_connections(&self) {
        self.shared.end_all(End::Reset);
    }

    /// Sums since the start.
    pub fn counters(&self) -> TcpCounters {
        let [up, down] = &*self.shared.directions();
        TcpCounters {
            accepted: self.shared.accepted.load(Ordering::Relaxed),
            unreachable: self.shared.unreachable.load(Ordering::Relaxed),
            open: self.shared.connections().len() as u64,
            bytes_up: up.counters().offered.bytes,
            bytes_down: down.counters().offered.bytes,
        }
    }

    /// How late bytes were handed over.
    pub fn lateness(&self) -> &Lateness {
        &self.shared.lateness
    }
}

impl Drop for TcpRelay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // On Linux this ends a waiting accept.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        self.shared.end_all(End::Reset);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        // One that was accepted while the others were ended.
        self.shared.end_all(End::Reset);
    }
}

impl Shared {
    fn directions(&self) -> MutexGuard<'_, [Direction; 2]> {
        self.directions.lock().expect("no holder of the lock panics")
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().expect("no holder of the lock panics")
    }

    fn now_ns(&self) -> u64 {
        nanoseconds(self.started.elapsed())
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn apply(&self, change: &Change) {
        let mut directions = self.directions();
        for way in Way::BOTH.into_iter().filter(|way| change.direction.contain(*way)) {
            directions[way as usize].apply(change);
        }
        self.changed.notify_all();
    }

    fn end_all(&self, end: End) {
        let connections = std::mem::take(&mut *self.connections());
        for connection in connections {
            self.end(&connection, end);
        }
        // Those who wait for the script see the end of the relay.
        let _directions = self.directions();
        self.changed.notify_all();
    }

    fn end(&self, connection: &Connection, end: End) {
        connection.end(end);
        // Held while telling, so that nobody misses it between looking and waiting.
        let _directions = self.directions();
        self.changed.notify_all();
    }

    fn follow(&self, script: Vec<Change>) {
        for change in script {
            let due_ns = nanoseconds(change.time);
            let mut directions = self.directions();
            while !self.stopped() && self.now_ns() < due_ns {
                let wait = Duration::from_nanos(due_ns - self.now_ns());
                directions =
                    self.changed.wait_timeout(directions, wait).expect("no holder of the lock panics").0;
            }
            drop(directions);
            if self.stopped() {
                return;
            }
            self.apply(&change);
        }
    }

    /// Waits until a direction is up and what waits before its bottleneck fits into its queue; false if the connection
    /// has ended meanwhile.
    fn wait_for_room(&self, way: Way, connection: &Connection) -> bool {
        let mut directions = self.directions();
        while !connection.has_ended() {
            let direction = &mut directions[way as usize];
            let surplus = match direction.link() {
                LinkState::Up => {
                    direction.backlog_bytes(self.now_ns()).saturating_sub(direction.queue_bytes())
                }
                LinkState::Down | LinkState::Hold => u64::MAX,
            };
            let wait = match (surplus, direction.settings().rate) {
                (0, _) => return true,
                (u64::MAX, _) | (_, None) => Duration::MAX,
                (surplus, Some(rate)) => Duration::from_secs_f64(surplus as f64 * 8.0 / rate.bits() as f64),
            };
            // An end is told by this as well; the bound is for a wait that is longer than the clock can count.
            let wait = wait.min(Duration::from_secs(3600));
            directions = self.changed.wait_timeout(directions, wait).expect("no holder of the lock panics").0;
        }
        false
    }
}

impl Shared {
    /// Waits while a direction is not up; false if the connection has ended meanwhile.
    fn wait_until_up(&self, way: Way, connection: &Connection) -> bool {
        let mut directions = self.directions();
        while directions[way as usize].link() != LinkState::Up && !connection.has_ended() {
            directions = self.changed.wait(directions).expect("no holder of the lock panics");
        }
        !connection.has_ended()
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    while !shared.stopped() {
        let Ok((client, _)) = listener.accept() else {
            // Out of descriptors, or at the end: the loop's condition tells them apart.
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let shared = shared.clone();
        // Without a thread the client is dropped, which closes its connection.
        let _ = std::thread::Builder::new()
            .name("wan-connect".to_owned())
            .spawn(move || connection::run(&shared, client));
    }
}
