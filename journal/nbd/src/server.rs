//! Sockets around the protocol: listeners, one thread per connection, start and end.

mod batch;
mod connection;
mod jobs;
mod listener;

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::arena::Arena;
use crate::export::Exports;
use crate::stream::Stream;

pub use listener::{ListenError, Listener};

/// How long accepting rests after the system had no descriptor or memory for a connection.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Limits of a server.
#[derive(Clone)]
pub struct ServerOptions {
    /// Connections at a time; a further one is closed at once. An idle one holds about 1 MiB, one that is read from in
    /// the largest requests up to 32 MiB and as much again for every worker.
    pub connections_max: usize,
    /// Time from accepting a connection until it must have opened an export.
    pub negotiation_timeout: Duration,
    /// Requests per connection that wait for a disk; at the limit the connection is not read from.
    pub waiting_requests_max: usize,
    /// Threads per connection, started when they are needed, for requests that wait for a disk.
    pub workers_max: usize,
    /// How long a shutdown waits for clients to take their replies.
    pub shutdown_grace: Duration,
    /// Memory for the payloads of writes; may be shared by several servers.
    pub arena: Arena,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            connections_max: 256,
            negotiation_timeout: Duration::from_secs(10),
            waiting_requests_max: 128,
            workers_max: 4,
            shutdown_grace: Duration::from_secs(5),
            arena: Arena::default(),
        }
    }
}

/// A running server. Dropping it shuts it down.
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// What the acceptor and the connections of a server have in common.
struct Shared {
    exports: Arc<Exports>,
    options: ServerOptions,
    stopping: AtomicBool,
    /// Readable from the moment on that the server stops.
    stop_event: OwnedFd,
    connections: Mutex<Connections>,
    connection_ended: Condvar,
}

#[derive(Default)]
struct Connections {
    next_id: u64,
    open: HashMap<u64, OpenConnection>,
    ended: Vec<JoinHandle<()>>,
}

struct OpenConnection {
    stream: Arc<Stream>,
    thread: JoinHandle<()>,
    /// Name of the export, when the negotiation is done.
    export: Option<String>,
}

impl Server {
    /// Begins to serve `exports` on all `listeners`.
    ///
    /// # Errors
    /// If the system refuses a thread or a descriptor.
    pub fn start(
        listeners: Vec<Listener>,
        exports: Arc<Exports>,
        options: ServerOptions,
    ) -> io::Result<Server> {
        let stop_event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            exports,
            options,
            stopping: AtomicBool::new(false),
            stop_event,
            connections: Mutex::default(),
            connection_ended: Condvar::new(),
        });
        let for_acceptor = Arc::clone(&shared);
        let acceptor = thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || for_acceptor.accept_until_stopped(&listeners))?;
        Ok(Server { shared, acceptor: Some(acceptor) })
    }

    /// Connections that are open now, those that still negotiate among them.
    pub fn connections(&self) -> usize {
        self.shared.lock().open.len()
    }

    /// Names of the exports that clients have opened, one for each connection.
    pub fn open_exports(&self) -> Vec<String> {
        self.shared.lock().open.values().filter_map(|connection| connection.export.clone()).collect()
    }

    /// Memory for the payloads of writes.
    pub fn arena(&self) -> &Arena {
        &self.shared.options.arena
    }

    /// Stops accepting, lets every request finish that was read from a socket, and returns when all threads have ended.
    /// Takes as long as the exports take for the requests that they are at.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::Release);
        // It can fail only if the counter is full, and then the event is there already.
        let _ = rustix::io::write(&shared.stop_event, &1u64.to_ne_bytes());
        join(acceptor);
        let deadline = Instant::now() + shared.options.shutdown_grace;
        shared.close_all(Shutdown::Read);
        let mut connections = shared.lock();
        while !connections.open.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = shared.connection_ended.wait_timeout(connections, left);
            connections = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(connections);
        shared.close_all(Shutdown::Both);
        let mut connections = shared.lock();
        while !connections.open.is_empty() {
            connections = shared.connection_ended.wait(connections).unwrap_or_else(PoisonError::into_inner);
        }
        let ended = std::mem::take(&mut connections.ended);
        drop(connections);
        ended.into_iter().for_each(join);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn close_all(&self, how: Shutdown) {
        for connection in self.lock().open.values() {
            // A socket that the client has closed already cannot be shut down, and need not be.
            let _ = connection.stream.shutdown(how);
        }
    }

    fn accept_until_stopped(self: &Arc<Self>, listeners: &[Listener]) {
        let mut pause = false;
        while !self.stopping() {
            let mut polled = vec![PollFd::new(&self.stop_event, PollFlags::IN)];
            if !pause {
                polled.extend(
                    listeners
                        .iter()
                        .map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)),
                );
            }
            let timeout = pause.then_some(ACCEPT_PAUSE);
            match poll(&mut polled, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for connections failed; accepting no more");
                    return;
                }
            }
            let ready: Vec<bool> = polled[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
            pause = false;
            for (listener, _) in listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
                pause |= self.accept(listener).is_err();
            }
        }
    }

    fn accept(self: &Arc<Self>, listener: &Listener) -> io::Result<()> {
        let stream = match listener.accept() {
            Ok(stream) => stream,
            // Somebody else took it, or the client went away.
            Err(error) if passing(&error) => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, listener = %listener, "a connection could not be accepted");
                return Err(error);
            }
        };
        self.begin(stream).inspect_err(|error| {
            tracing::warn!(%error, listener = %listener, "a connection could not be served");
        })
    }

    fn begin(self: &Arc<Self>, stream: Stream) -> io::Result<()> {
        let mut connections = self.lock();
        let ended = std::mem::take(&mut connections.ended);
        if connections.open.len() >= self.options.connections_max {
            let limit = self.options.connections_max;
            tracing::warn!(limit, "a connection was refused: the limit of connections is reached");
            return Ok(());
        }
        let id = connections.next_id;
        connections.next_id += 1;
        let stream = Arc::new(stream);
        let (shared, for_thread) = (Arc::clone(self), Arc::clone(&stream));
        // The thread can end only after the lock is free, and finds itself in the map then.
        let thread =
            thread::Builder::new().name(format!("nbd-{id}")).spawn(move || shared.serve(id, for_thread))?;
        connections.open.insert(id, OpenConnection { stream, thread, export: None });
        drop(connections);
        ended.into_iter().for_each(join);
        Ok(())
    }

    fn note_opened(&self, id: u64, export: &str) {
        if let Some(connection) = self.lock().open.get_mut(&id) {
            connection.export = Some(export.to_owned());
        }
    }

    fn serve(&self, id: u64, stream: Arc<Stream>) {
        let result = catch_unwind(AssertUnwindSafe(|| connection::serve(self, id, stream)));
        match result {
            Ok(Ok(())) => tracing::debug!(id, "connection closed"),
            Ok(Err(reason)) => tracing::debug!(id, %reason, "connection ended"),
            Err(panic) => {
                tracing::error!(id, panic = panic_text(&*panic), "an export panicked; connection closed")
            }
        }
        let mut connections = self.lock();
        if let Some(connection) = connections.open.remove(&id) {
            connections.ended.push(connection.thread);
        }
        drop(connections);
        self.connection_ended.notify_all();
    }
}

fn passing(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::WouldBlock | Kind::ConnectionAborted | Kind::Interrupted)
}

/// Waits for a thread. What it panicked about has been reported by itself.
fn join(thread: JoinHandle<()>) {
    let _ = thread.join();
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests;
