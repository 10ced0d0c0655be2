//! What was read from buckets, kept in a folder of this machine: indexes of segments, and frames as they are stored. `STORE.md`, "The cache",
//! defines the folder.
//!
//! Everything has the name of its hash and is verified by whoever reads it, so that damage is a miss and never wrong data. Several processes
//! share one folder: files appear whole, by a rename, and may go at any time.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use journal_format::Hash;
use tempfile::TempDir;

use crate::error::{StoreError, io_error};

const OBJECTS: &str = "objects-1";
const STORES: &str = "stores-1";
/// A file whose time is older is marked as used when it is read.
const USE_STEP: Duration = Duration::from_secs(60);

/// Where and how much of a bucket is kept on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// The folder; without one `$XDG_CACHE_HOME/thirdsite` or `~/.cache/thirdsite`, and if that cannot be written to, a temporary folder.
    pub folder: Option<PathBuf>,
    /// Bytes of indexes and frames that are kept at most.
    pub size_bytes_max: u64,
}

impl Default for CacheOptions {
    /// 10 GiB in the usual folder.
    fn default() -> Self {
        CacheOptions { folder: None, size_bytes_max: 10 << 30 }
    }
}

/// What a file of the cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Header, index, meta and trailer of a segment, by the segment's hash.
    Index,
    /// The bytes of a frame as they are stored, by their hash.
    Frame,
}

impl Kind {
    fn ending(self) -> &'static str {
        match self {
            Kind::Index => "index",
            Kind::Frame => "frame",
        }
    }
}

/// A folder of the cache that is in use.
pub(crate) struct DiskCache {
    folder: PathBuf,
    /// Removed at the end if it is a temporary one.
    _temporary: Option<TempDir>,
    size_bytes_max: u64,
    /// Bytes of all files as far as this process knows; counted before the first file is written.
    bytes: AtomicU64,
    counted: Mutex<bool>,
    complained: AtomicBool,
}

struct Found {
    used: SystemTime,
    bytes: u64,
    path: PathBuf,
}

impl DiskCache {
    pub(crate) fn open(options: &CacheOptions) -> Result<DiskCache, StoreError> {
        let (folder, temporary) = match &options.folder {
            Some(folder) => {
                prepare(folder).map_err(io_error("use the cache's folder", folder))?;
                (folder.clone(), None)
            }
            None => usual_folder()?,
        };
        Ok(DiskCache {
            folder,
            _temporary: temporary,
            size_bytes_max: options.size_bytes_max,
            bytes: AtomicU64::new(0),
            counted: Mutex::new(false),
            complained: AtomicBool::new(false),
        })
    }

    /// A folder for what is known of one store; `identity` is the store's.
    pub(crate) fn store_folder(&self, identity: &Hash) -> Result<PathBuf, StoreError> {
        let folder = self.folder.join(STORES).join(identity.to_string());
        make(&folder).map_err(io_error("make", &folder))?;
        Ok(folder)
    }

    /// The bytes that are kept under a hash. The caller verifies them, and calls [`DiskCache::remove`] if they are not what they should be.
    pub(crate) fn get(&self, kind: Kind, hash: &Hash) -> Option<Vec<u8>> {
        let path = self.path(kind, hash);
        let bytes = fs::read(&path).ok()?;
        mark_used(&path);
        Some(bytes)
    }

    /// Whether something is kept under a hash.
    pub(crate) fn has(&self, kind: Kind, hash: &Hash) -> bool {
        self.path(kind, hash).exists()
    }

    /// Keeps bytes. That they cannot be kept is no error: they are read again.
    pub(crate) fn put(&self, kind: Kind, hash: &Hash, parts: &[&[u8]]) {
        let bytes = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        if bytes > self.size_bytes_max {
            return;
        }
        self.count_once();
        if let Err(error) = self.write(&self.path(kind, hash), parts) {
            if !self.complained.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, folder = %self.folder.display(), "the cache cannot be written to; what is not in it is read again");
            }
            return;
        }
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.size_bytes_max {
            self.make_room();
        }
    }

    pub(crate) fn remove(&self, kind: Kind, hash: &Hash) {
        // If it is gone already, that is as good.
        let _ = fs::remove_file(self.path(kind, hash));
    }

    fn path(&self, kind: Kind, hash: &Hash) -> PathBuf {
        let name = hash.to_string();
        self.folder.join(OBJECTS).join(&name[..2]).join(format!("{name}.{}", kind.ending()))
    }

    fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.folder);
        make(folder)?;
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.persist(path).map(drop).map_err(|error| error.error)
    }

    fn count_once(&self) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if !*counted {
            let bytes = self.files().iter().map(|file| file.bytes).sum();
            self.bytes.store(bytes, Ordering::Relaxed);
            *counted = true;
        }
    }

    /// Removes what was not used for the longest time, until a tenth is free. Other processes may do the same at once.
    fn make_room(&self) {
        let Ok(_one_at_a_time) = self.counted.try_lock() else { return };
        let mut files = self.files();
        files.sort_by_key(|file| file.used);
        let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
        let target = self.size_bytes_max - self.size_bytes_max / 10;
        for file in files {
            if bytes <= target {
                break;
            }
            // Another process may have been quicker.
            let _ = fs::remove_file(&file.path);
            bytes -= file.bytes;
        }
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    fn files(&self) -> Vec<Found> {
        let shards = fs::read_dir(self.folder.join(OBJECTS)).into_iter().flatten().flatten();
        let entries = shards.flat_map(|shard| fs::read_dir(shard.path()).into_iter().flatten().flatten());
        let found = |entry: fs::DirEntry| {
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            let used = metadata.modified().ok()?;
            Some(Found { used, bytes: metadata.len(), path: entry.path() })
        };
        entries.filter_map(found).collect()
    }
}

fn mark_used(path: &Path) {
    let now = SystemTime::now();
    let old = |used: SystemTime| now.duration_since(used).is_ok_and(|age| age > USE_STEP);
    if fs::metadata(path).and_then(|metadata| metadata.modified()).is_ok_and(old) {
        // If it cannot be marked, it goes earlier than it would have to.
        let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(now));
    }
}

/// Makes a folder that only its owner can look into: it holds parts of disks.
fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn prepare(folder: &Path) -> io::Result<()> {
    make(&folder.join(OBJECTS))?;
    make(&folder.join(STORES))?;
    tempfile::tempfile_in(folder.join(STORES)).map(drop)
}

fn usual_folder() -> Result<(PathBuf, Option<TempDir>), StoreError> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    if let Some(folder) = base.map(|base| base.join("thirdsite")) {
        match prepare(&folder) {
            Ok(()) => return Ok((folder, None)),
            Err(error) => {
                tracing::info!(%error, folder = %folder.display(), "the cache is kept in a temporary folder: the usual one cannot be used");
            }
        }
    }
    let place = std::env::temp_dir();
    let made = tempfile::Builder::new().prefix("thirdsite-cache-").tempdir_in(&place);
    let made = made.map_err(io_error("make a folder in", &place))?;
    prepare(made.path()).map_err(io_error("use the cache's folder", made.path()))?;
    Ok((made.path().to_owned(), Some(made)))
}

#[cfg(test)]
mod tests;
