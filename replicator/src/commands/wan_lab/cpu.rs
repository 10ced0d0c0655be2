//! Who used how much CPU time.

use std::fs;
use std::time::Duration;

use wan_lab::report::CpuTime;

/// Names of the runtimes' threads; at most 15 bytes, or the kernel cuts them.
pub(super) const SOURCE_THREADS: &str = "lab-source";
pub(super) const SITE_THREADS: &str = "lab-site";
/// The engines' threads, `wan-up` and `wan-down`.
const EMULATOR_THREADS: &str = "wan-";

/// CPU time of this process's threads until now, by their names. Threads that have ended are not in it.
pub(super) fn by_part() -> Vec<CpuTime> {
    let threads: Vec<(String, Duration)> = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            let statistics = fs::read_to_string(entry.path().join("schedstat")).ok()?;
            let on_cpu = statistics.split_whitespace().next()?.parse().ok()?;
            Some((name, Duration::from_nanos(on_cpu)))
        })
        .collect();
    let part = |part: &str, prefix: &str| {
        let own = threads.iter().filter(|(name, _)| name.starts_with(prefix));
        let seconds = own.map(|(_, time)| time.as_secs_f64()).sum::<f64>();
        CpuTime { part: part.to_owned(), seconds: (seconds * 1e3).round() / 1e3 }
    };
    vec![part("source", SOURCE_THREADS), part("site", SITE_THREADS), part("emulator", EMULATOR_THREADS)]
}
