//! Work on all cores whose results are taken in the order in which it was handed out, with bounded memory: whoever hands out decides how much
//! is under way, and helps while it waits.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Names a job whose result is taken later.
#[derive(Debug)]
pub(super) struct Ticket(u64);

struct State<J, R> {
    queue: VecDeque<(u64, J)>,
    results: HashMap<u64, R>,
    next: u64,
    closed: bool,
    /// A worker has panicked: its result will not come.
    broken: bool,
}

struct Shared<J, R> {
    state: Mutex<State<J, R>>,
    queued: Condvar,
    finished: Condvar,
}

impl<J, R> Shared<J, R> {
    fn lock(&self) -> MutexGuard<'_, State<J, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, number: u64, result: R) {
        self.lock().results.insert(number, result);
        self.finished.notify_all();
    }
}

/// Closes the pool when its user is done, or ends by a panic.
struct Closing<'a, J, R>(&'a Shared<J, R>);

impl<J, R> Drop for Closing<'_, J, R> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.queued.notify_all();
    }
}

/// Says so when a worker ends by a panic.
struct Working<'a, J, R>(&'a Shared<J, R>);

impl<J, R> Drop for Working<'_, J, R> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.lock().broken = true;
            self.0.finished.notify_all();
        }
    }
}

/// What the user of a pool works with.
pub(super) struct Pool<'a, J, R, W> {
    shared: &'a Shared<J, R>,
    /// Does one job on the user's own thread.
    work: W,
}

impl<J, R, W: FnMut(J) -> R> Pool<'_, J, R, W> {
    /// Hands out a job.
    pub(super) fn submit(&mut self, job: J) -> Ticket {
        let mut state = self.shared.lock();
        let number = state.next;
        state.next += 1;
        state.queue.push_back((number, job));
        drop(state);
        self.shared.queued.notify_one();
        Ticket(number)
    }

    /// The result of a job; does others while it is not there.
    ///
    /// # Panics
    /// If a worker panicked.
    pub(super) fn take(&mut self, ticket: &Ticket) -> R {
        let mut state = self.shared.lock();
        loop {
            assert!(!state.broken, "a thread that seals has panicked");
            if let Some(result) = state.results.remove(&ticket.0) {
                return result;
            }
            if let Some((number, job)) = state.queue.pop_front() {
                drop(state);
                let result = (self.work)(job);
                state = self.shared.lock();
                state.results.insert(number, result);
            } else {
                state = self.shared.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Calls `body` with a pool of so many threads besides its own. `worker` makes what does the jobs of one thread.
pub(super) fn with_pool<J, R, W, T>(
    threads: usize,
    worker: impl Fn() -> W + Sync,
    body: impl FnOnce(&mut Pool<'_, J, R, W>) -> T,
) -> T
where
    J: Send,
    R: Send,
    W: FnMut(J) -> R,
{
    let state =
        State { queue: VecDeque::new(), results: HashMap::new(), next: 0, closed: false, broken: false };
    let shared = Shared { state: Mutex::new(state), queued: Condvar::new(), finished: Condvar::new() };
    let run = || {
        let working = Working(&shared);
        let mut work = worker();
        let mut state = shared.lock();
        loop {
            if let Some((number, job)) = state.queue.pop_front() {
                drop(state);
                shared.finish(number, work(job));
                state = shared.lock();
            } else if state.closed {
                break;
            } else {
                state = shared.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(state);
        drop(working);
    };
    thread::scope(|scope| {
        let closing = Closing(&shared);
        for number in 0..threads {
            // A host that gives no more threads seals on fewer.
            if thread::Builder::new().name(format!("seal {number}")).spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        let answer = body(&mut Pool { shared: &shared, work: worker() });
        drop(closing);
        answer
    })
}

#[cfg(test)]
mod tests {
    use super::{Ticket, with_pool};

    fn squares(threads: usize) -> Vec<u64> {
        with_pool(
            threads,
            || |number: u64| number * number,
            |pool| {
                let tickets: Vec<Ticket> = (0..100).map(|number| pool.submit(number)).collect();
                tickets.iter().map(|ticket| pool.take(ticket)).collect()
            },
        )
    }

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        let expected: Vec<u64> = (0..100).map(|number| number * number).collect();
        (0..4).for_each(|threads| assert_eq!(squares(threads), expected));
    }

    #[test]
    #[should_panic(expected = "scoped thread panicked")]
    fn a_panic_of_a_worker_is_not_waited_for() {
        let user = std::thread::current().id();
        with_pool(
            1,
            || move |(): ()| assert_eq!(std::thread::current().id(), user, "planted"),
            |pool| {
                let ticket = pool.submit(());
                // Leaves the job to the other thread.
                std::thread::sleep(std::time::Duration::from_millis(50));
                let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.take(&ticket)));
                assert!(taken.is_err());
            },
        );
    }
}
