//! Reading frames of a bucket's segments: what lies together is fetched with one request, what several threads want at once is fetched once,
//! and what is going to be read is fetched ahead. Memory: frames that were fetched and not read yet, and those on their way; both have limits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use journal_format::Hash;
use journal_format::segment::FrameEntry;
use object_store::GetRange;
use object_store::path::Path;
use tokio::sync::Semaphore;

use super::objects::{Objects, SharedError, ended};
use crate::cache::Cache;
use crate::disk_cache::{DiskCache, Kind};

/// Largest range that is fetched with one request: a whole link's worth of a round trip, and small enough to be tried again.
const SPAN_BYTES_MAX: u64 = 8 << 20;
/// Bytes between two frames that are fetched along rather than with a request of their own.
const GAP_BYTES_MAX: u64 = 128 << 10;
/// Memory for frames that were fetched and not read yet.
const READY_BYTES_MAX: u64 = 64 << 20;
/// Memory for what is fetched ahead and on its way.
const AHEAD_BYTES_MAX: u64 = 64 << 20;
/// Requests at once for what is fetched ahead. What somebody waits for does not queue behind it.
const AHEAD_REQUESTS_MAX: usize = 8;

/// A frame of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) key: Path,
    pub(super) hash: Hash,
    pub(super) range: Range<u64>,
}

impl Wanted {
    pub(super) fn new(key: &Path, entry: &FrameEntry) -> Wanted {
        let range = entry.offset..entry.offset + u64::from(entry.stored_bytes);
        Wanted { key: key.clone(), hash: entry.stored_hash, range }
    }
}

/// Frames of one object that are fetched with one request.
struct Span {
    frames: Vec<Wanted>,
}

impl Span {
    fn range(&self) -> Range<u64> {
        self.frames[0].range.start..self.frames[self.frames.len() - 1].range.end
    }
}

/// Puts frames that lie together into spans. Frames of an object come in the order of their offsets then.
fn spans(mut wanted: Vec<Wanted>) -> Vec<Span> {
    // Stable: objects stay in the order in which they are going to be read.
    let mut order: HashMap<Path, usize> = HashMap::new();
    for frame in &wanted {
        let next = order.len();
        order.entry(frame.key.clone()).or_insert(next);
    }
    wanted.sort_by_key(|frame| (order[&frame.key], frame.range.start));
    let mut spans: Vec<Span> = Vec::new();
    for frame in wanted {
        let fits = |span: &&mut Span| {
            let range = span.range();
            span.frames[0].key == frame.key
                && frame.range.start <= range.end + GAP_BYTES_MAX
                && frame.range.end - range.start <= SPAN_BYTES_MAX
        };
        match spans.last_mut().filter(fits) {
            Some(span) => span.frames.push(frame),
            None => spans.push(Span { frames: vec![frame] }),
        }
    }
    spans
}

/// A frame on its way.
#[derive(Default)]
struct Flight {
    landed: Mutex<Option<Result<Bytes, SharedError>>>,
    wake: Condvar,
}

impl Flight {
    fn land(&self, result: Result<Bytes, SharedError>) {
        let mut landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
        landed.get_or_insert(result);
        self.wake.notify_all();
    }

    fn wait(&self) -> Result<Bytes, SharedError> {
        let mut landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = &*landed {
                return result.clone();
            }
            landed = self.wake.wait(landed).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Where frames came from, so that the caller knows what to do if they are damaged.
pub(super) enum Stored {
    /// From this machine's disk.
    Cached(Vec<u8>),
    /// From the bucket.
    Fetched(Bytes),
}

/// Fetches frames; used by many threads at once.
pub(super) struct FrameFetcher {
    objects: Objects,
    disk: Arc<DiskCache>,
    shared: Arc<Shared>,
}

struct Shared {
    ready: Cache<Hash, Bytes>,
    flights: Mutex<HashMap<Hash, Arc<Flight>>>,
    /// Bytes that are fetched ahead and on their way.
    ahead_bytes: AtomicU64,
    ahead_requests: Semaphore,
}

impl Shared {
    fn flights(&self) -> MutexGuard<'_, HashMap<Hash, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn land(&self, span: &Span, fetched: &Result<Bytes, SharedError>) {
        let start = span.range().start;
        for frame in &span.frames {
            let bytes = fetched.as_ref().map_err(Arc::clone).map(|bytes| {
                // A copy, so that the whole span does not stay in memory for one frame of it.
                let range = (frame.range.start - start) as usize..(frame.range.end - start) as usize;
                Bytes::copy_from_slice(&bytes[range])
            });
            if let Ok(bytes) = &bytes {
                self.ready.put(frame.hash, &Arc::new(bytes.clone()), bytes.len() as u64);
            }
            let flight = self.flights().remove(&frame.hash);
            if let Some(flight) = flight {
                flight.land(bytes);
            }
        }
    }
}

/// Lets what is on its way end with an error if its task is dropped, because the runtime ends.
struct Landing {
    shared: Arc<Shared>,
    span: Span,
    ahead_bytes: u64,
    landed: bool,
}

impl Landing {
    fn land(&mut self, fetched: &Result<Bytes, SharedError>) {
        self.landed = true;
        self.shared.land(&self.span, fetched);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.shared.ahead_bytes.fetch_sub(self.ahead_bytes, Ordering::Relaxed);
        if !self.landed {
            self.shared.land(&self.span, &Err(ended()));
        }
    }
}

impl FrameFetcher {
    pub(super) fn new(objects: Objects, disk: Arc<DiskCache>) -> FrameFetcher {
        let shared = Shared {
            ready: Cache::new(READY_BYTES_MAX),
            flights: Mutex::default(),
            ahead_bytes: AtomicU64::new(0),
            ahead_requests: Semaphore::new(AHEAD_REQUESTS_MAX),
        };
        FrameFetcher { objects, disk, shared: Arc::new(shared) }
    }

    /// The bytes of a frame as they are stored; not verified.
    pub(super) fn read(&self, frame: &Wanted) -> Result<Stored, SharedError> {
        if let Some(bytes) = self.shared.ready.get(&frame.hash) {
            return Ok(Stored::Fetched(Bytes::clone(&bytes)));
        }
        if let Some(bytes) = self.disk.get(Kind::Frame, &frame.hash) {
            return Ok(Stored::Cached(bytes));
        }
        let flights = self.shared.flights();
        // What has landed meanwhile was kept before it was not on its way any more.
        if let Some(bytes) = self.shared.ready.get(&frame.hash) {
            return Ok(Stored::Fetched(Bytes::clone(&bytes)));
        }
        self.board(flights, frame).wait().map(Stored::Fetched)
    }

    /// The bytes of a frame as they are in the bucket now: what was read of it before is damaged.
    pub(super) fn read_again(&self, frame: &Wanted) -> Result<Bytes, SharedError> {
        self.forget(&frame.hash);
        self.board(self.shared.flights(), frame).wait()
    }

    /// Keeps a frame, which was verified, on this machine.
    pub(super) fn keep(&self, hash: &Hash, bytes: &[u8]) {
        if !self.disk.has(Kind::Frame, hash) {
            self.disk.put(Kind::Frame, hash, &[bytes]);
        }
    }

    /// Forgets a frame that is damaged on this machine.
    fn forget(&self, hash: &Hash) {
        self.disk.remove(Kind::Frame, hash);
    }

    /// The flight of a frame, which begins if there is none.
    fn board(&self, mut flights: MutexGuard<'_, HashMap<Hash, Arc<Flight>>>, frame: &Wanted) -> Arc<Flight> {
        let flight = match flights.entry(frame.hash) {
            Entry::Occupied(known) => return Arc::clone(known.get()),
            Entry::Vacant(vacant) => Arc::clone(vacant.insert(Arc::default())),
        };
        // Without the lock: on a runtime that has ended it lands at once.
        drop(flights);
        self.begin(Span { frames: vec![frame.clone()] }, 0);
        flight
    }

    /// Begins to fetch what is going to be read, as far as there is memory for it.
    pub(super) fn expect(&self, wanted: Vec<Wanted>) {
        let mut new = Vec::new();
        for frame in wanted {
            let bytes = frame.range.end - frame.range.start;
            let there = self.shared.ready.get(&frame.hash).is_some()
                || self.shared.flights().contains_key(&frame.hash)
                || self.disk.has(Kind::Frame, &frame.hash);
            if there {
                continue;
            }
            let reserve = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= AHEAD_BYTES_MAX);
            if self.shared.ahead_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).is_err() {
                break;
            }
            match self.shared.flights().entry(frame.hash) {
                // Another thread was quicker.
                Entry::Occupied(_) => drop(self.shared.ahead_bytes.fetch_sub(bytes, Ordering::Relaxed)),
                Entry::Vacant(vacant) => {
                    vacant.insert(Arc::default());
                    new.push(frame);
                }
            }
        }
        for span in spans(new) {
            let bytes = span.frames.iter().map(|frame| frame.range.end - frame.range.start).sum();
            self.begin(span, bytes);
        }
    }

    /// Begins to fetch a span whose flights are registered.
    fn begin(&self, span: Span, ahead_bytes: u64) {
        let (objects, shared) = (self.objects.clone(), Arc::clone(&self.shared));
        let mut landing = Landing { shared: Arc::clone(&shared), span, ahead_bytes, landed: false };
        drop(self.objects.begin(async move {
            let _permit = match ahead_bytes {
                0 => None,
                _ => shared.ahead_requests.acquire().await.ok(),
            };
            let (key, range) = (landing.span.frames[0].key.clone(), landing.span.range());
            let expected = range.end - range.start;
            let fetched = objects.get(&key, Some(GetRange::Bounded(range))).await;
            let fetched = fetched.map(|piece| {
                let mut bytes = piece.bytes;
                // An object that was cut off: its frames are damaged, which is found when they are verified.
                if (bytes.len() as u64) < expected {
                    let mut padded = bytes.to_vec();
                    padded.resize(expected as usize, 0);
                    bytes = padded.into();
                }
                bytes
            });
            landing.land(&fetched);
        }));
    }
}

#[cfg(test)]
mod tests;
