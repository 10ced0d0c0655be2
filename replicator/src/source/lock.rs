//! One process for one journal.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

use crate::failure::Failure;

/// Takes the journal folder for this process; given back when dropped or when the process ends, however it ends.
pub(super) fn lock_journal(folder: &Path) -> anyhow::Result<File> {
    use std::os::unix::fs::DirBuilderExt;
    let place = || format!("journal folder '{}'", folder.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(place)?;
    let file = File::create(folder.join("lock")).with_context(place)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        let hint =
            "another 'thirdsite source run' uses it; stop that one, or give this one a 'journal' of its own";
        Failure::invalid(format!("{} is in use", place()), hint)
    })?;
    Ok(file)
}
