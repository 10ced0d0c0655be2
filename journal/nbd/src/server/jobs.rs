//! Requests of one connection that wait for a disk, so that the requests behind them do not.
//!
//! The threads belong to their connection: a client that does not take its replies, or an export whose disk hangs, holds up
//! nobody else. They are started when they are needed and end when idle.
//!
//! Flushes (and writes with FUA that wait for one) are collected: one flush runs at a time, and whatever asked for one
//! while it ran is covered together by the next.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::errno::Errno;
use crate::reply::{self, ReplyStyle};
use crate::request::Session;
use crate::stream::Stream;

/// How long an idle thread stays.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// A flush that takes no longer costs less than waking another thread for it and being woken again.
const QUICK_FLUSH_TIME_MAX: Duration = Duration::from_micros(50);
/// So many have to be quick before one is tried on the connection's thread, where a slow one would hold up what is behind it: a disk
/// answers quickly, too, if there is nothing to write.
const QUICK_FLUSHES_MIN: u32 = 32;

/// What a connection and its workers share.
pub(super) struct Line {
    pub(super) session: Session,
    pub(super) style: ReplyStyle,
    stream: Arc<Stream>,
    /// Held while replies are written, so that they do not mix.
    sending: Mutex<()>,
    jobs: Mutex<Jobs>,
    job_came: Condvar,
    job_done: Condvar,
    workers_max: usize,
    waiting_max: usize,
    /// Flushes in a row that took no time to speak of.
    quick_flushes: AtomicU32,
}

#[derive(Default)]
struct Jobs {
    reads: VecDeque<ReadJob>,
    /// Cookies of requests that wait for a flush.
    syncs: Vec<u64>,
    flush_running: bool,
    /// Requests that were submitted and not answered yet.
    waiting: usize,
    workers: usize,
    idle_workers: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

/// A read that has to wait.
#[derive(Clone, Copy)]
pub(super) struct ReadJob {
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

enum Job {
    Read(ReadJob),
    Flush(Vec<u64>),
}

impl Line {
    pub(super) fn new(
        session: Session,
        stream: Arc<Stream>,
        workers_max: usize,
        waiting_max: usize,
    ) -> Arc<Self> {
        let style = if session.structured() { ReplyStyle::Structured } else { ReplyStyle::Simple };
        Arc::new(Line {
            session,
            style,
            stream,
            sending: Mutex::default(),
            jobs: Mutex::default(),
            job_came: Condvar::new(),
            job_done: Condvar::new(),
            workers_max: workers_max.max(1),
            waiting_max: waiting_max.max(1),
            quick_flushes: AtomicU32::new(0),
        })
    }

    /// Writes whole replies.
    pub(super) fn send(&self, replies: &[u8]) -> io::Result<()> {
        let _guard = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        self.stream.write_all(replies)
    }

    /// Whether a further request that waits would have to wait for its turn too.
    pub(super) fn is_full(&self) -> bool {
        self.lock().waiting >= self.waiting_max
    }

    /// Flushes at once, on the connection's own thread, if that is quicker than to hand it to another: the medium has flushed without delay
    /// for a while, and nobody waits. `None` if not.
    pub(super) fn flush_now(&self) -> Option<Result<(), Errno>> {
        let quick = self.quick_flushes.load(Ordering::Relaxed) >= QUICK_FLUSHES_MIN;
        (quick && self.lock().waiting == 0).then(|| self.flush())
    }

    fn flush(&self) -> Result<(), Errno> {
        let began = Instant::now();
        let result = guarded(|| self.session.export().flush());
        let quick = began.elapsed() <= QUICK_FLUSH_TIME_MAX;
        let before = self.quick_flushes.load(Ordering::Relaxed);
        self.quick_flushes.store(if quick { before.saturating_add(1) } else { 0 }, Ordering::Relaxed);
        result
    }

    pub(super) fn submit_read(self: &Arc<Self>, job: ReadJob) {
        self.submit(|jobs| jobs.reads.push_back(job));
    }

    /// Has the request answered when everything that was written before is durable.
    pub(super) fn submit_sync(self: &Arc<Self>, cookie: u64) {
        self.submit(|jobs| jobs.syncs.push(cookie));
    }

    /// Waits until every request is answered, and ends the workers.
    pub(super) fn close(&self) {
        let mut jobs = self.lock();
        while jobs.waiting > 0 {
            jobs = self.job_done.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        jobs.closed = true;
        self.job_came.notify_all();
        let threads = std::mem::take(&mut jobs.threads);
        drop(jobs);
        threads.into_iter().for_each(super::join);
    }

    fn submit(self: &Arc<Self>, add: impl FnOnce(&mut Jobs)) {
        let mut jobs = self.lock();
        while jobs.waiting >= self.waiting_max {
            jobs = self.job_done.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        jobs.waiting += 1;
        add(&mut jobs);
        self.job_came.notify_one();
        // An idle worker may have been woken for another job already. A flush that has to wait for the one that runs needs
        // no thread.
        if jobs.runnable() <= jobs.idle_workers || jobs.workers >= self.workers_max {
            return;
        }
        jobs.workers += 1;
        let line = Arc::clone(self);
        let spawned = thread::Builder::new().name("nbd-worker".to_owned()).spawn(move || line.work());
        match spawned {
            Ok(thread) => {
                jobs.threads.retain(|thread| !thread.is_finished());
                jobs.threads.push(thread);
            }
            Err(error) => {
                jobs.workers -= 1;
                let alone = jobs.workers == 0;
                drop(jobs);
                tracing::warn!(%error, "no thread for a request that waits for a disk; requests behind it wait too");
                if alone {
                    self.work_off();
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a worker.
    fn work(&self) {
        loop {
            self.work_off();
            let mut jobs = self.lock();
            jobs.idle_workers += 1;
            let waited = self
                .job_came
                .wait_timeout_while(jobs, IDLE_TIME, |jobs| jobs.runnable() == 0 && !jobs.closed)
                .unwrap_or_else(PoisonError::into_inner);
            jobs = waited.0;
            jobs.idle_workers -= 1;
            if jobs.runnable() == 0 {
                jobs.workers -= 1;
                return;
            }
        }
    }

    /// Does what there is to do.
    fn work_off(&self) {
        let mut buffer = Vec::new();
        loop {
            let Some(job) = self.lock().take() else {
                return;
            };
            buffer.clear();
            let count = match &job {
                Job::Read(read) => self.perform_read(*read, &mut buffer),
                Job::Flush(cookies) => self.perform_flush(cookies, &mut buffer),
            };
            // If the client is gone, the connection's own thread notices.
            let _ = self.send(&buffer);
            let mut jobs = self.lock();
            jobs.waiting -= count;
            jobs.flush_running &= !matches!(job, Job::Flush(_));
            drop(jobs);
            self.job_done.notify_all();
        }
    }

    fn perform_read(&self, job: ReadJob, buffer: &mut Vec<u8>) -> usize {
        let header = self.style.read_header_bytes();
        buffer.resize(header + job.length as usize, 0);
        let (head, data) = buffer.split_at_mut(header);
        let export = self.session.export();
        match guarded(|| export.read(job.offset, data)) {
            Ok(()) => self.style.read_header(job.cookie, job.offset, job.length, head),
            Err(errno) => {
                buffer.clear();
                self.style.error(job.cookie, errno, buffer);
            }
        }
        1
    }

    fn perform_flush(&self, cookies: &[u64], buffer: &mut Vec<u8>) -> usize {
        let result = self.flush();
        for cookie in cookies {
            match result {
                Ok(()) => buffer.extend(reply::done(*cookie)),
                Err(errno) => self.style.error(*cookie, errno, buffer),
            }
        }
        cookies.len()
    }
}

impl Jobs {
    /// Jobs that could begin now.
    fn runnable(&self) -> usize {
        self.reads.len() + usize::from(!self.flush_running && !self.syncs.is_empty())
    }

    fn take(&mut self) -> Option<Job> {
        if !self.flush_running && !self.syncs.is_empty() {
            self.flush_running = true;
            return Some(Job::Flush(std::mem::take(&mut self.syncs)));
        }
        self.reads.pop_front().map(Job::Read)
    }
}

/// A panic of an export must not take the replies of others with it: nobody would ever answer them.
fn guarded(action: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        tracing::error!(panic = super::panic_text(&*panic), "an export panicked; the request fails");
        Err(Errno::Io)
    })
}
