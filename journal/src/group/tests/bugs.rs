//! Bugs that are planted on purpose: a suite that cannot find them proves nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::simulation::run_seeds;
use crate::faults::{Bug, plant};

/// Seeds within which a planted bug has to show.
const SEEDS: u64 = 4000;

fn is_found(bug: Bug) -> bool {
    plant(Some(bug));
    let found = catch_unwind(AssertUnwindSafe(|| run_seeds(1_000_000, SEEDS))).is_err();
    plant(None);
    found
}

macro_rules! planted {
    ($($name:ident: $bug:expr),* $(,)?) => {$(
        #[test]
        fn $name() {
            assert!(is_found($bug), "{SEEDS} runs did not notice {:?}", $bug);
        }
    )*};
}

planted! {
    planted_skip_intent_mark_is_found: Bug::SkipIntentMark,
    planted_skip_intent_sync_is_found: Bug::SkipIntentSync,
    planted_clear_without_receipt_is_found: Bug::ClearWithoutReceipt,
    planted_clear_without_leg_flush_is_found: Bug::ClearWithoutLegFlush,
    planted_drop_without_dirty_is_found: Bug::DropWithoutDirty,
    planted_point_while_dirty_is_found: Bug::PointWhileDirty,
    planted_trust_old_comparison_is_found: Bug::TrustOldComparison,
    planted_send_damaged_is_found: Bug::SendDamaged,
    planted_forget_after_crash_is_found: Bug::ForgetAfterCrash,
    planted_ignore_leg_error_is_found: Bug::IgnoreLegError,
    planted_acknowledge_flush_early_is_found: Bug::AcknowledgeFlushEarly,
}
