//! Steps at which a test kills the process, and bugs that a test plants to see that the suite finds them. Builds without debug
//! assertions, which are those that are installed, contain neither.

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A write does not wait for its mark.
    SkipIntentMark,
    /// Marks are written and not synced.
    SkipIntentSync,
    /// Marks are cleared without regard to receipts.
    ClearWithoutReceipt,
    /// Marks are cleared although the leg was not flushed.
    ClearWithoutLegFlush,
    /// Writes that overlap do not wait for each other.
    IgnoreOverlap,
    /// A dropped payload does not make its range dirty.
    DropWithoutDirty,
    /// What an epoch gives up in dirty regions does not count as lost.
    GiveUpQuietly,
    /// A cut is a point although something is dirty.
    PointWhileDirty,
    /// What a comparison read is taken although the guest wrote meanwhile.
    IgnoreSpoiledSweep,
    /// What was read before a cut goes into the epoch behind it.
    SweepAcrossCut,
    /// Nobody looks whether a leg was changed past its tap.
    TrustTheLeg,
    /// A requested resync goes under what was captured before it was asked for.
    ResyncUnderOlderCapture,
    /// An answer to a comparison is trusted although the site has not got what was written since.
    TrustOldComparison,
    /// A segment that is damaged is sent.
    SendDamaged,
    /// After a crash nothing is dirty.
    ForgetAfterCrash,
    /// What a failed write left on the leg is not read again.
    IgnoreLegError,
    /// A flush is answered before the leg is flushed.
    AcknowledgeFlushEarly,
}

#[cfg(debug_assertions)]
mod enabled {
    use std::cell::Cell;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Bug;

    static PASSED: AtomicU64 = AtomicU64::new(0);

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug in this thread; `None` takes it out.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(crate) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Passes a labelled step. `THIRDSITE_KILL_AT=LABEL:N` kills the process when it passes the step for the Nth time.
    pub fn step(label: &str) {
        static TARGET: OnceLock<Option<(String, u64)>> = OnceLock::new();
        let target = TARGET.get_or_init(|| {
            let text = std::env::var("THIRDSITE_KILL_AT").ok()?;
            let (label, times) = text.split_once(':')?;
            Some((label.to_owned(), times.parse().ok()?))
        });
        let Some((wanted, times)) = target else { return };
        if wanted == label && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *times {
            // What SIGKILL leaves, from inside.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

#[cfg(debug_assertions)]
pub(crate) use enabled::planted;
#[cfg(debug_assertions)]
pub use enabled::{plant, step};

#[cfg(not(debug_assertions))]
mod disabled {
    pub(crate) fn planted(_bug: super::Bug) -> bool {
        false
    }

    /// Does nothing in this build.
    pub fn step(_label: &str) {}
}

#[cfg(not(debug_assertions))]
pub(crate) use disabled::planted;
#[cfg(not(debug_assertions))]
pub use disabled::step;

/// Labels of all steps, in the order of the data's way.
pub const STEPS: [&str; 16] = [
    "open.session",
    "open.state",
    "intent.written",
    "intent.synced",
    "tap.captured",
    "tap.leg-written",
    "cut",
    "seal.begun",
    "seal.durable",
    "seal.registered",
    "trim.removed",
    "clear.flushed",
    "clear.cleared",
    "sweep.compared",
    "sweep.settled",
    "rebase.dropped",
];
