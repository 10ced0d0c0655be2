//! A stamped workload: one connection for each volume, many writes in flight, everything noted for [`crate::stamps`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use journal_nbd::{Client, ClientError, Protocol, WriteFlags};

use crate::stamps::{History, Nanoseconds, Write, stamp};

/// What is written.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks of each volume that are written to.
    pub blocks: u64,
    /// Most blocks of one write.
    pub blocks_per_write: u64,
    /// Writes in flight on each volume.
    pub depth: usize,
    /// A flush is sent after so many writes.
    pub writes_per_flush: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Paused,
    Ended,
}

struct Shared {
    tap: PathBuf,
    shape: Shape,
    start: Instant,
    history: Mutex<History>,
    phase: Mutex<Control>,
    changed: Condvar,
}

struct Control {
    phase: Phase,
    /// Threads without a write in flight, while paused.
    resting: usize,
}

/// A running workload; ends when dropped.
pub struct Workload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Workload {
    /// Begins to write to `exports` behind the unix socket `tap`; the n-th export is volume n of the history.
    pub fn start(tap: &Path, exports: &[&str], shape: Shape, seed: u64) -> Workload {
        let shared = Arc::new(Shared {
            tap: tap.to_owned(),
            shape,
            start: Instant::now(),
            history: Mutex::default(),
            phase: Mutex::new(Control { phase: Phase::Running, resting: 0 }),
            changed: Condvar::new(),
        });
        let writer = |(volume, export): (usize, &&str)| {
            let (shared, export) = (shared.clone(), (*export).to_owned());
            let random = Random::new(seed.wrapping_add(volume as u64 * 7919));
            thread::spawn(move || shared.write_until_ended(volume, &export, random))
        };
        let threads = exports.iter().enumerate().map(writer).collect();
        Workload { shared, threads }
    }

    /// Now, on the history's clock.
    pub fn now(&self) -> Nanoseconds {
        self.shared.now()
    }

    /// Writes issued so far.
    pub fn issued(&self) -> usize {
        self.shared.history().writes.len()
    }

    /// Waits until so many writes have been issued.
    pub fn wait_for(&self, writes: usize) {
        let mut control = self.shared.control();
        while self.issued() < writes {
            control = self.shared.changed.wait(control).expect("no writer panicked");
        }
    }

    /// Stops issuing and waits until everything is acknowledged.
    pub fn pause(&self) {
        let mut control = self.shared.control();
        control.phase = Phase::Paused;
        while control.resting < self.threads.len() {
            control = self.shared.changed.wait(control).expect("no writer panicked");
        }
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        let mut control = self.shared.control();
        (control.phase, control.resting) = (Phase::Running, 0);
        self.shared.changed.notify_all();
    }

    /// Ends, and answers what was written.
    pub fn end(mut self) -> History {
        self.join();
        self.shared.history().clone()
    }

    fn join(&mut self) {
        self.shared.control().phase = Phase::Ended;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            thread.join().expect("the writer did not panic");
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.join();
    }
}

impl Shared {
    fn now(&self) -> Nanoseconds {
        self.start.elapsed().as_nanos() as Nanoseconds
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no writer panicked")
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.phase.lock().expect("no writer panicked")
    }

    /// Connects anew whenever the agent goes away, as a VM does.
    fn write_until_ended(&self, volume: usize, export: &str, mut random: Random) {
        while self.control().phase != Phase::Ended {
            let client = Client::connect_unix(&self.tap, export, Protocol::Structured);
            let result = client.and_then(|client| self.write(volume, client, &mut random));
            if let Err(error) = result {
                println!("volume {volume}: connection ended: {error}");
                self.rest_if_paused();
                thread::yield_now();
            }
        }
    }

    fn write(&self, volume: usize, mut client: Client, random: &mut Random) -> Result<(), ClientError> {
        let mut flying: HashMap<u64, Option<usize>> = HashMap::new();
        let mut writes = 0;
        loop {
            let phase = self.control().phase;
            let full = flying.len() >= self.shape.depth;
            match phase {
                Phase::Running if !full => {
                    let cookie = self.issue(volume, &mut client, random)?;
                    flying.insert(cookie.0, Some(cookie.1));
                    writes += 1;
                    if writes % self.shape.writes_per_flush == 0 {
                        flying.insert(client.send_flush()?, None);
                    }
                }
                _ if !flying.is_empty() => {
                    let completion = client.recv_reply()?;
                    let number = flying.remove(&completion.cookie).expect("a reply has a request");
                    completion.result?;
                    let now = self.now();
                    if let Some(number) = number {
                        self.history().writes[number].acknowledged = Some(now);
                    }
                }
                Phase::Ended => return client.disconnect(),
                _ => self.rest_if_paused(),
            }
        }
    }

    fn issue(
        &self,
        volume: usize,
        client: &mut Client,
        random: &mut Random,
    ) -> Result<(u64, usize), ClientError> {
        let block = random.below(self.shape.blocks);
        let blocks = 1 + random.below((self.shape.blocks - block).min(self.shape.blocks_per_write));
        let number = {
            let mut history = self.history();
            history.writes.push(Write { volume, block, blocks, issued: self.now(), acknowledged: None });
            history.writes.len() - 1
        };
        self.changed.notify_all();
        let data: Vec<u8> =
            (block..block + blocks).flat_map(|block| stamp(number as u64, volume, block)).collect();
        let offset = block * crate::stamps::BLOCK_BYTES as u64;
        Ok((client.send_write(offset, &data, WriteFlags::default())?, number))
    }

    fn rest_if_paused(&self) {
        let mut control = self.control();
        if control.phase != Phase::Paused {
            return;
        }
        control.resting += 1;
        self.changed.notify_all();
        while control.phase == Phase::Paused {
            control = self.changed.wait(control).expect("no writer panicked");
        }
    }
}

/// A small seeded generator (xorshift64).
pub struct Random(u64);

impl Random {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
