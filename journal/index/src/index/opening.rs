//! Opening a folder: what of it counts, and what is removed. `INDEX.md` has the table.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use journal_format::with_causes;

use crate::error::IndexError;
use crate::location::SHARDS;
use crate::run::{AGES, Run};
use crate::segments::{Segments, SegmentsError};
use crate::shard::Shard;

/// A file that was not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// The file, which is removed.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Files that were removed because they cannot be read. Their entries or segments are missing.
    pub discarded: Vec<Discarded>,
}

pub(super) struct Found {
    pub(super) opened: Opened,
    pub(super) shards: Vec<Shard>,
    pub(super) segments: Segments,
    pub(super) lock: File,
}

pub(super) fn open(folder: &Path, memtable_entries: usize) -> Result<Found, IndexError> {
    fs::create_dir_all(folder).map_err(IndexError::io("create", folder))?;
    let lock = lock(folder)?;
    let paths = paths(folder).map_err(IndexError::io("read", folder))?;
    let with_ending = |ending| paths.iter().filter(move |path| path.extension().is_some_and(|e| e == ending));
    with_ending("tmp").try_for_each(|path| remove(path))?;
    let mut opened = Opened::default();
    let mut runs = Vec::new();
    let segments = match Segments::open(folder) {
        Ok(segments) => {
            for path in with_ending("run") {
                match Run::open(path) {
                    Ok(run) => runs.push(Arc::new(run)),
                    Err(error) => discard(path, &error, &mut opened)?,
                }
            }
            segments
        }
        Err(error) => {
            // Runs go before there are segments that their numbers could be mistaken for.
            with_ending("run").try_for_each(|path| discard(path, &NoSegments, &mut opened))?;
            let is_missing = matches!(&error, SegmentsError::Io(e) if e.kind() == io::ErrorKind::NotFound);
            if !is_missing {
                discard(&folder.join("segments"), &error, &mut opened)?;
            }
            Segments::create(folder, 0)?
        }
    };
    found(runs, segments, memtable_entries, opened, lock)
}

/// Why runs are discarded that may be whole.
#[derive(Debug, thiserror::Error)]
#[error("the segments that it names are not known any more")]
struct NoSegments;

fn found(
    mut runs: Vec<Arc<Run>>,
    mut segments: Segments,
    memtable_entries: usize,
    opened: Opened,
    lock: File,
) -> Result<Found, IndexError> {
    let names: Vec<_> = runs.iter().map(|run| run.name()).collect();
    let (merged, mut kept): (Vec<_>, Vec<_>) =
        runs.drain(..).partition(|run| names.iter().any(|name| name.covers(run.name())));
    merged.iter().try_for_each(|run| remove(run.path()))?;
    kept.sort_unstable_by_key(|run| std::cmp::Reverse(run.name().newest));
    if let Some(highest) = kept.iter().map(|run| run.ages()[AGES - 1]).max() {
        segments.skip_to(highest.saturating_add(1));
    }
    let shard = |number| {
        let of_shard = kept.iter().filter(|run| run.name().shard == number);
        Shard::new(number, memtable_entries, of_shard.cloned().collect())
    };
    Ok(Found { opened, shards: (0..SHARDS).map(shard).collect(), segments, lock })
}

fn lock(folder: &Path) -> Result<File, IndexError> {
    let path = folder.join("lock");
    let options = File::options().write(true).create(true).truncate(false).open(&path);
    let file = options.map_err(IndexError::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(IndexError::Locked { folder: folder.to_owned() }),
        Err(TryLockError::Error(error)) => Err(IndexError::io("lock", &path)(error)),
    }
}

fn paths(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn discard(path: &Path, reason: &dyn std::error::Error, opened: &mut Opened) -> Result<(), IndexError> {
    opened.discarded.push(Discarded { path: path.to_owned(), reason: with_causes(reason) });
    remove(path)
}

fn remove(path: &Path) -> Result<(), IndexError> {
    fs::remove_file(path).map_err(IndexError::io("remove", path))
}
