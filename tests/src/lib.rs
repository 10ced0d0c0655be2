//! What the tests and benchmarks of the whole share: oracles, workloads, and a laboratory of real processes.
//!
//! Begin with [`stamps`], the oracle for write order, then [`lab`], which starts the daemons.

pub mod lab;
pub mod object_server;
pub mod stamps;
pub mod workload;

/// How much a test does: `ci` in the subset that continuous integration has time for, `full` when the full run is asked for.
pub fn scaled(ci: u64, full: u64) -> u64 {
    match std::env::var("THIRDSITE_TEST_SCALE").as_deref() {
        Ok("full") => full,
        _ => ci,
    }
}
