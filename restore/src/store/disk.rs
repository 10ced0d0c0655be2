//! The store's folder on disk: names of files, and every operation that changes one.
//!
//! Nothing else in this crate writes segments. A simulation replaces this module.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use journal_format::{Generation, GroupName, Sequence};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{StoreError, io_error};
use crate::segments::ListedSegment;

/// Version of the store that this build reads and writes.
pub(crate) const STORE_VERSION: u32 = 1;
const STORE_FORMAT: &str = "thirdsite-store";
const INFO_NAME: &str = "store.json";

#[derive(Serialize, Deserialize)]
struct StoreInfo {
    format: String,
    version: u32,
}

/// The folder of a store.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    root: PathBuf,
}

/// How an opened store may be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockMode {
    /// By many commands.
    Shared,
    /// By one writer.
    Exclusive,
}

pub(crate) fn segment_name(generation: Generation, sequence: Sequence) -> String {
    format!("g{:010}-s{:020}.seg", generation.0, sequence.0)
}

fn parse_segment_name(name: &str) -> Option<(Generation, Sequence)> {
    let (generation, sequence) = name.strip_prefix('g')?.strip_suffix(".seg")?.split_once("-s")?;
    let (generation, sequence) = (Generation(generation.parse().ok()?), Sequence(sequence.parse().ok()?));
    (segment_name(generation, sequence) == name).then_some((generation, sequence))
}

impl Disk {
    /// Opens the folder of a store that exists.
    pub(crate) fn open(root: &Path) -> Result<Disk, StoreError> {
        let path = root.join(INFO_NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                let reason = if root.exists() { "it has no store.json" } else { "it does not exist" };
                return Err(StoreError::NotAStore { path: root.to_owned(), reason });
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let info: Option<StoreInfo> = serde_json::from_slice(&bytes).ok();
        match info.filter(|info| info.format == STORE_FORMAT) {
            None => {
                let reason = "its store.json cannot be read";
                Err(StoreError::NotAStore { path: root.to_owned(), reason })
            }
            Some(info) if info.version != STORE_VERSION => {
                Err(StoreError::Version { path, found: info.version, supported: STORE_VERSION })
            }
            Some(_) => Ok(Disk { root: root.to_owned() }),
        }
    }

    /// Opens the folder of a store, and makes one of a folder that is empty or absent.
    pub(crate) fn open_or_create(root: &Path) -> Result<Disk, StoreError> {
        fs::create_dir_all(root).map_err(io_error("create", root))?;
        let mut entries = fs::read_dir(root).map_err(io_error("list", root))?;
        let leftover = root.join("store.json.tmp");
        // A crash while the store was made leaves the temporary file and nothing else.
        let empty = entries.all(|entry| {
            entry.is_ok_and(|entry| entry.path() == leftover || entry.path() == root.join("lock"))
        });
        if empty {
            let info = StoreInfo { format: STORE_FORMAT.to_owned(), version: STORE_VERSION };
            let bytes = serde_json::to_vec(&info).expect("the fields are plain");
            let mut file = File::create(&leftover).map_err(io_error("create", &leftover))?;
            file.write_all(&bytes).map_err(io_error("write", &leftover))?;
            file.sync_all().map_err(io_error("sync", &leftover))?;
            fs::rename(&leftover, root.join(INFO_NAME)).map_err(io_error("rename", &leftover))?;
            sync_folder(root)?;
            if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync_folder(parent)?;
            }
        }
        Disk::open(root)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn catalog_path(&self) -> PathBuf {
        self.root.join("catalog.sqlite")
    }

    /// Takes a lock without waiting; it ends with the file.
    pub(crate) fn try_lock(&self, name: &str, mode: LockMode) -> Result<Option<File>, StoreError> {
        let operation = match mode {
            LockMode::Shared => FlockOperation::NonBlockingLockShared,
            LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        self.flock(name, operation)
    }

    /// Takes a lock, and waits for it.
    pub(crate) fn lock(&self, name: &str) -> Result<File, StoreError> {
        lock_file(&self.root.join(name))
    }

    fn flock(&self, name: &str, operation: FlockOperation) -> Result<Option<File>, StoreError> {
        flock_file(&self.root.join(name), operation)
    }

    /// Groups that have a folder, in the order of their names.
    pub(crate) fn groups(&self) -> Result<Vec<GroupName>, StoreError> {
        let path = self.root.join("groups");
        let mut groups: Vec<GroupName> =
            names_in(&path)?.iter().filter_map(|name| name.parse().ok()).collect();
        groups.sort();
        Ok(groups)
    }

    pub(crate) fn segments_folder(&self, group: &GroupName) -> PathBuf {
        self.group_folder(group, "segments")
    }

    pub(crate) fn segment_path(
        &self,
        group: &GroupName,
        generation: Generation,
        sequence: Sequence,
    ) -> PathBuf {
        self.segments_folder(group).join(segment_name(generation, sequence))
    }

    /// Where the block list of a segment lies.
    pub(crate) fn block_list_path(
        &self,
        group: &GroupName,
        generation: Generation,
        sequence: Sequence,
    ) -> PathBuf {
        let folder = self.group_folder(group, "blocks");
        folder.join(segment_name(generation, sequence)).with_extension("blocks")
    }

    fn group_folder(&self, group: &GroupName, folder: &str) -> PathBuf {
        self.root.join("groups").join(group.as_str()).join(folder)
    }

    /// All files in a group's folder of segments that are named like one, in the order of their sequences.
    pub(crate) fn list(&self, group: &GroupName) -> Result<Vec<ListedSegment>, StoreError> {
        let folder = self.segments_folder(group);
        let mut listed = Vec::new();
        for name in names_in(&folder)? {
            let Some((generation, sequence)) = parse_segment_name(&name) else { continue };
            let path = folder.join(&name);
            let size_bytes = fs::metadata(&path).map_err(io_error("look at", &path))?.len();
            listed.push(ListedSegment {
                sequence,
                generation: Some(generation),
                claim: 0,
                size_bytes,
                hash: None,
            });
        }
        listed.sort();
        Ok(listed)
    }

    /// Makes the folders of a group, durably, and removes what was arriving when the last writer ended.
    pub(crate) fn prepare_group(&self, group: &GroupName) -> Result<(), StoreError> {
        let incoming = self.group_folder(group, "incoming");
        let segments = self.segments_folder(group);
        if !segments.exists() {
            fs::create_dir_all(&segments).map_err(io_error("create", &segments))?;
            for folder in
                [self.root.join("groups").join(group.as_str()), self.root.join("groups"), self.root.clone()]
            {
                sync_folder(&folder)?;
            }
        }
        let blocks = self.group_folder(group, "blocks");
        fs::create_dir_all(&blocks).map_err(io_error("create", &blocks))?;
        for name in names_in(&blocks)?.iter().filter(|name| name.ends_with(".tmp")) {
            let path = blocks.join(name);
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        fs::create_dir_all(&incoming).map_err(io_error("create", &incoming))?;
        for name in names_in(&incoming)? {
            let path = incoming.join(name);
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    /// Begins a file for a segment that arrives.
    pub(crate) fn create_incoming(
        &self,
        group: &GroupName,
        name: &str,
    ) -> Result<(PathBuf, File), StoreError> {
        let path = self.group_folder(group, "incoming").join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(io_error("create", &path))?;
        Ok((path, file))
    }

    /// A file of a group beside its folders.
    pub(crate) fn group_file(&self, group: &GroupName, name: &str) -> PathBuf {
        self.group_folder(group, name)
    }

    /// Replaces such a file as a whole, durably.
    pub(crate) fn replace_group_file(
        &self,
        group: &GroupName,
        name: &str,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let (path, temporary) =
            (self.group_file(group, name), self.group_file(group, &format!("{name}.tmp")));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(io_error("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(io_error("rename to", &path))?;
        sync_folder(&self.root.join("groups").join(group.as_str()))
    }

    /// Gives a segment its name. An existing file is never replaced: that is `AlreadyExists`.
    pub(crate) fn publish(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // A file system without this flag: a hard link refuses an existing name as well.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                fs::hard_link(from, to).map_err(io_error("link", to))?;
                fs::remove_file(from).map_err(io_error("remove", from))
            }
            Err(error) => Err(io_error("rename to", to)(error.into())),
        }
    }

    /// Makes the names in a group's folder of segments durable.
    pub(crate) fn sync_segments(&self, group: &GroupName) -> Result<(), StoreError> {
        sync_folder(&self.segments_folder(group))
    }

    /// Moves a segment that the chain does not reach out of the way. Nothing is deleted.
    pub(crate) fn detach(&self, group: &GroupName, segment: &ListedSegment) -> Result<PathBuf, StoreError> {
        let folder = self.group_folder(group, "detached");
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let name = segment_name(segment.generation.unwrap_or(Generation(0)), segment.sequence);
        let from = self.segments_folder(group).join(&name);
        let mut to = folder.join(&name);
        let mut number = 1;
        while to.exists() {
            to = folder.join(format!("{name}.{number}"));
            number += 1;
        }
        self.publish(&from, &to)?;
        sync_folder(&folder)?;
        self.sync_segments(group)?;
        Ok(to)
    }

    /// Bytes of all segments and of what is arriving.
    pub(crate) fn used_bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for group in self.groups()? {
            bytes += self.list(&group)?.iter().map(|segment| segment.size_bytes).sum::<u64>();
        }
        Ok(bytes)
    }
}

/// Locks a file, and waits for it; the lock ends with what is answered.
pub(crate) fn lock_file(path: &Path) -> Result<File, StoreError> {
    flock_file(path, FlockOperation::LockExclusive)?.ok_or(StoreError::Locked { path: path.to_owned() })
}

fn flock_file(path: &Path, operation: FlockOperation) -> Result<Option<File>, StoreError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.map_err(io_error("open", path))?;
    match flock(&file, operation) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(io_error("lock", path)(error.into())),
    }
}

/// Names in a folder; none if it does not exist.
fn names_in(folder: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("list", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("list", folder))?;
        // Names that are not text are not ours.
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let file = File::open(folder).map_err(io_error("open", folder))?;
    file.sync_all().map_err(io_error("sync", folder))
}
