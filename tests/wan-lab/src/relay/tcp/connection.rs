//! One connection of the relay: a thread that reads and one that writes for either direction.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use socket2::SockRef;

use super::Shared;
use crate::profile::Way;

const PIECE_BYTES: usize = 16 << 10;
/// What a connection has under way at most, as if its TCP had a window of this size.
const WINDOW_BYTES: usize = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a write waits before it is looked whether the connection has ended.
const WRITE_TIMEOUT: Duration = Duration::from_millis(50);

/// How a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Close,
    Reset,
}

#[derive(Debug)]
pub(super) struct Connection {
    client: TcpStream,
    target: TcpStream,
    pipes: [Pipe; 2],
    ended: AtomicBool,
}

/// What is under way in one direction.
#[derive(Debug, Default)]
struct Pipe {
    state: Mutex<PipeState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PipeState {
    bytes: usize,
    /// When they arrive; an empty piece is the end of the stream.
    pieces: VecDeque<(u64, Vec<u8>)>,
}

impl Connection {
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self, end: End) {
        self.ended.store(true, Ordering::Relaxed);
        for stream in [&self.client, &self.target] {
            match end {
                End::Close => drop(stream.shutdown(Shutdown::Both)),
                End::Reset => {
                    // Sent when the last thread has let go of the socket; readers are woken without telling the peer.
                    SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok();
                    drop(stream.shutdown(Shutdown::Read));
                }
            }
        }
        for pipe in &self.pipes {
            let _state = pipe.state.lock().expect("no holder of the lock panics");
            pipe.changed.notify_all();
        }
    }
}

/// Serves a client until both directions have ended.
pub(super) fn run(shared: &Arc<Shared>, client: TcpStream) {
    let round_trip: Duration = shared.directions().iter().map(|direction| direction.settings().delay).sum();
    // The handshake on the far link; the client's own was answered by this host at once.
    std::thread::sleep(round_trip);
    let Ok(target) = TcpStream::connect_timeout(&shared.target, CONNECT_TIMEOUT) else {
        shared.unreachable.fetch_add(1, Ordering::Relaxed);
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).ok();
        return;
    };
    for stream in [&client, &target] {
        stream.set_nodelay(true).ok();
        stream.set_write_timeout(Some(WRITE_TIMEOUT)).ok();
    }
    let connection =
        Arc::new(Connection { client, target, pipes: Default::default(), ended: AtomicBool::new(false) });
    let mut connections = shared.connections();
    if shared.stopped() {
        return;
    }
    connections.push(connection.clone());
    drop(connections);
    std::thread::scope(|scope| {
        for way in Way::BOTH {
            let connection = &connection;
            scope.spawn(move || take_in(shared, connection, way));
            scope.spawn(move || hand_over(shared, connection, way));
        }
    });
    shared.connections().retain(|other| !Arc::ptr_eq(other, &connection));
}

impl Connection {
    fn from(&self, way: Way) -> &TcpStream {
        match way {
            Way::Up => &self.client,
            Way::Down => &self.target,
        }
    }

    fn to(&self, way: Way) -> &TcpStream {
        match way {
            Way::Up => &self.target,
            Way::Down => &self.client,
        }
    }
}

fn take_in(shared: &Shared, connection: &Connection, way: Way) {
    let pipe = &connection.pipes[way as usize];
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let length = connection.from(way).read(&mut buffer).unwrap_or(0);
        if !shared.wait_for_room(way, connection) {
            return;
        }
        let at_ns = shared.directions()[way as usize].carry(shared.now_ns(), length as u32);
        let mut state = pipe.state.lock().expect("no holder of the lock panics");
        state.pieces.push_back((at_ns, buffer[..length].to_vec()));
        state.bytes += length;
        pipe.changed.notify_all();
        while state.bytes > WINDOW_BYTES && !connection.has_ended() {
            state = pipe.changed.wait(state).expect("no holder of the lock panics");
        }
        if length == 0 || connection.has_ended() {
            return;
        }
    }
}

fn hand_over(shared: &Shared, connection: &Connection, way: Way) {
    while let Some((at_ns, piece)) = next_due(shared, connection, way) {
        if !shared.wait_until_up(way, connection) {
            return;
        }
        shared.lateness.record(shared.now_ns().saturating_sub(at_ns));
        if piece.is_empty() {
            connection.to(way).shutdown(Shutdown::Write).ok();
            return;
        }
        if !write(connection, way, &piece) {
            // The receiver is gone; the sender learns it as it would from its own TCP.
            shared.end(connection, End::Reset);
            return;
        }
    }
}

/// Waits until the next piece is due; `None` if the connection has ended.
fn next_due(shared: &Shared, connection: &Connection, way: Way) -> Option<(u64, Vec<u8>)> {
    let pipe = &connection.pipes[way as usize];
    let mut state = pipe.state.lock().expect("no holder of the lock panics");
    while !connection.has_ended() {
        let Some(&(at_ns, _)) = state.pieces.front() else {
            state = pipe.changed.wait(state).expect("no holder of the lock panics");
            continue;
        };
        let wait_ns = at_ns.saturating_sub(shared.now_ns());
        if wait_ns == 0 {
            let piece = state.pieces.pop_front()?;
            state.bytes -= piece.1.len();
            pipe.changed.notify_all();
            return Some(piece);
        }
        let waited = pipe.changed.wait_timeout(state, Duration::from_nanos(wait_ns));
        state = waited.expect("no holder of the lock panics").0;
    }
    None
}

fn write(connection: &Connection, way: Way, mut piece: &[u8]) -> bool {
    while !piece.is_empty() && !connection.has_ended() {
        match connection.to(way).write(piece) {
            Ok(0) => return false,
            Ok(written) => piece = &piece[written..],
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                _ => return false,
            },
        }
    }
    true
}
