//! One thread for one direction in real time: takes packets in, asks the model, hands them over when they are due.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::Timespec;

use crate::error::LabError;
use crate::lateness::Lateness;
use crate::model::{Counters, Direction, Verdict, nanoseconds};
use crate::profile::{Change, LinkProfile, LinkState, Way};

/// Packets taken in before it is looked which are due.
const BATCH: usize = 32;
/// Above ordinary threads, below the kernel's own.
const REALTIME_PRIORITY: &str = "20";
const PACKET_BYTES_MAX: usize = 65_536;
/// Buffers that are kept for reuse.
const SPARE_BUFFERS_MAX: usize = 8_192;

/// Where packets of one direction come from and where they go.
pub(crate) trait Port: Send + 'static {
    /// What is readable when a packet waits.
    fn source(&self) -> BorrowedFd<'_>;
    /// Takes a packet; `WouldBlock` if there is none.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Hands a packet over, without waiting.
    fn send(&mut self, packet: &[u8]) -> io::Result<()>;
    /// Bytes of headers that the packets are counted with besides their own.
    fn header_bytes(&self) -> u32;
}

/// The thread of one direction, and the way to steer it. Ends with it.
#[derive(Debug)]
pub(crate) struct Pump {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    direction: Mutex<Direction>,
    wake: OwnedFd,
    stop: AtomicBool,
    lateness: Lateness,
    refused_packets: AtomicU64,
    realtime: AtomicBool,
    failure: Mutex<Option<io::Error>>,
}

impl Shared {
    fn now_ns(&self) -> u64 {
        nanoseconds(self.started.elapsed())
    }

    fn direction(&self) -> MutexGuard<'_, Direction> {
        self.direction.lock().expect("no holder of the lock panics")
    }

    fn wake(&self) {
        // Only a counter that is full refuses, and then the thread wakes anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Pump {
    /// Starts the thread; the profile's script counts from `started`.
    pub(crate) fn start<P: Port>(
        profile: &LinkProfile,
        way: Way,
        seed: u64,
        started: Instant,
        port: P,
    ) -> Result<Pump, LabError> {
        let start_error = |source| LabError::Start { source };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| start_error(errno.into()))?;
        let shared = Arc::new(Shared {
            started,
            direction: Mutex::new(Direction::new(profile, way, seed)),
            wake,
            stop: AtomicBool::new(false),
            lateness: Lateness::default(),
            refused_packets: AtomicU64::new(0),
            realtime: AtomicBool::new(false),
            failure: Mutex::new(None),
        });
        let script = profile.script.iter().filter(|change| change.direction.contain(way)).cloned().collect();
        let worker = Worker {
            shared: shared.clone(),
            port,
            script,
            held: VecDeque::new(),
            due: BinaryHeap::new(),
            taken: 0,
            spare: Vec::new(),
        };
        let run = move || {
            let shared = worker.shared.clone();
            shared.realtime.store(take_realtime_priority(), Ordering::Relaxed);
            if let Err(error) = worker.run() {
                *shared.failure.lock().expect("no holder of the lock panics") = Some(error);
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("wan-{}", way.name()))
            .spawn(run)
            .map_err(start_error)?;
        Ok(Pump { shared, thread: Some(thread) })
    }

    pub(crate) fn apply(&self, change: &Change) {
        self.shared.direction().apply(change);
        self.shared.wake();
    }

    pub(crate) fn counters(&self) -> Counters {
        *self.shared.direction().counters()
    }

    pub(crate) fn backlog_bytes(&self) -> u64 {
        self.shared.direction().backlog_bytes(self.shared.now_ns())
    }

    pub(crate) fn lateness(&self) -> &Lateness {
        &self.shared.lateness
    }

    /// Packets that could not be handed over.
    pub(crate) fn refused_packets(&self) -> u64 {
        self.shared.refused_packets.load(Ordering::Relaxed)
    }

    /// Whether the thread has a realtime priority.
    pub(crate) fn is_realtime(&self) -> bool {
        self.shared.realtime.load(Ordering::Relaxed)
    }

    /// Why the thread ended early, if it did; said once.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.shared.failure.lock().expect("no holder of the lock panics").take()
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by it; panicking again here could abort a test that is unwinding.
            let _ = thread.join();
        }
    }
}

/// When a packet is due, its number, its bytes. Numbers keep the order of packets that are due at the same time.
type Due = Reverse<(u64, u64, Vec<u8>)>;

struct Worker<P> {
    shared: Arc<Shared>,
    port: P,
    script: VecDeque<Change>,
    held: VecDeque<Vec<u8>>,
    due: BinaryHeap<Due>,
    taken: u64,
    spare: Vec<Vec<u8>>,
}

impl<P: Port> Worker<P> {
    fn run(mut self) -> io::Result<()> {
        // Without this a timed wait of a normal thread may be 50 us late.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.follow_script();
            let more = self.take_in(&mut buffer)?;
            self.hand_over();
            if !more {
                self.wait()?;
            }
        }
        Ok(())
    }

    fn follow_script(&mut self) {
        let shared = self.shared.clone();
        let now_ns = shared.now_ns();
        let mut direction = shared.direction();
        while let Some(change) = self.script.pop_front_if(|change| nanoseconds(change.time) <= now_ns) {
            direction.apply(&change);
        }
        if direction.link() != LinkState::Hold {
            for packet in std::mem::take(&mut self.held) {
                let verdict = direction.release(now_ns, packet.len() as u32 + self.port.header_bytes());
                self.settle(packet, verdict);
            }
        }
    }

    /// Returns whether there may be more.
    fn take_in(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let shared = self.shared.clone();
        for _ in 0..BATCH {
            let length = match self.port.receive(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // An earlier datagram met a closed port: its error is delivered here.
                Err(error) if is_transient(&error) => continue,
                Err(error) => return Err(error),
            };
            let now_ns = shared.now_ns();
            let verdict = shared.direction().offer(now_ns, length as u32 + self.port.header_bytes());
            if matches!(verdict, Verdict::Drop(_)) {
                continue;
            }
            let mut packet = self.spare.pop().unwrap_or_default();
            packet.extend_from_slice(&buffer[..length]);
            match verdict {
                Verdict::Hold => self.held.push_back(packet),
                verdict => self.settle(packet, verdict),
            }
        }
        Ok(true)
    }

    fn settle(&mut self, packet: Vec<u8>, verdict: Verdict) {
        let Verdict::Deliver { at_ns, duplicate_at_ns } = verdict else { return };
        if let Some(at_ns) = duplicate_at_ns {
            self.due.push(Reverse((at_ns, self.taken + 1, packet.clone())));
        }
        self.due.push(Reverse((at_ns, self.taken, packet)));
        self.taken += 2;
    }

    fn hand_over(&mut self) {
        while self.due.peek().is_some_and(|Reverse((at_ns, ..))| *at_ns <= self.shared.now_ns()) {
            let Some(Reverse((at_ns, _, mut packet))) = self.due.pop() else { return };
            match self.port.send(&packet) {
                Err(error) if !is_transient(&error) => {
                    self.shared.refused_packets.fetch_add(1, Ordering::Relaxed);
                }
                _ => self.shared.lateness.record(self.shared.now_ns().saturating_sub(at_ns)),
            }
            if self.spare.len() < SPARE_BUFFERS_MAX {
                packet.clear();
                self.spare.push(packet);
            }
        }
    }

    /// Until a packet comes, one is due, the script goes on, or somebody wakes this thread.
    fn wait(&mut self) -> io::Result<()> {
        let due = self.due.peek().map(|Reverse((at_ns, ..))| *at_ns);
        let script = self.script.front().map(|change| nanoseconds(change.time));
        let timeout = due.into_iter().chain(script).min().map(|at_ns| {
            let wait = Duration::from_nanos(at_ns.saturating_sub(self.shared.now_ns()));
            Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) }
        });
        let mut descriptors = [
            PollFd::from_borrowed_fd(self.port.source(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.shared.wake.as_fd(), PollFlags::IN),
        ];
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if descriptors[1].revents().contains(PollFlags::IN) {
            // Emptied, so that the next wait waits.
            let _ = rustix::io::read(&self.shared.wake, &mut [0_u8; 8]);
        }
        Ok(())
    }
}

/// Without it a busy machine delays packets by milliseconds; who may not have it is told by the lateness.
fn take_realtime_priority() -> bool {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let mut chrt = Command::new("chrt");
    chrt.args(["--fifo", "--pid", REALTIME_PRIORITY, &thread]);
    let status = chrt.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Nobody listens at the other end; that is not the emulator's fault.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted)
}
