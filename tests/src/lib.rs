//! What the tests and benchmarks of the whole share: oracles, workloads, and a laboratory of real processes.
//!
//! Begin with [`stamps`], the oracle for write order.

pub mod stamps;
