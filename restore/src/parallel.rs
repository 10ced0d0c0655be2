//! Work on all cores.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Calls `work` with each number below `count`, on as many threads as there are cores, and answers what it answers, in order. After an
/// error no more is begun; of several errors the one of the lowest number is answered.
pub(crate) fn in_parallel<T: Send, E: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    in_parallel_with(count, || (), |(), number| work(number))
}

/// Like [`in_parallel`]; each thread has what `tools` makes.
pub(crate) fn in_parallel_with<S, T: Send, E: Send>(
    count: usize,
    tools: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let cores = thread::available_parallelism().map_or(1, usize::from).min(count);
    if cores < 2 {
        let mut tools = tools();
        return (0..count).map(|number| work(&mut tools, number)).collect();
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let run = || {
        let (mut tools, mut answers) = (tools(), Vec::new());
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            let answer = work(&mut tools, number);
            failed.fetch_or(answer.is_err(), Ordering::Relaxed);
            answers.push((number, answer));
        }
        answers
    };
    let mut answers = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(run)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, _>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect::<Vec<_>>()
    });
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use super::in_parallel;

    #[test]
    fn answers_come_in_order() {
        let squares = in_parallel(100, |number| Ok::<_, ()>(number * number)).unwrap();
        assert!(squares.iter().enumerate().all(|(number, &square)| square == number * number));
        assert_eq!(in_parallel(0, Ok::<_, ()>).unwrap(), [0; 0]);
    }

    #[test]
    fn an_error_ends_it() {
        assert_eq!(in_parallel(1000, |number| if number < 10 { Ok(()) } else { Err(()) }), Err(()));
    }
}
