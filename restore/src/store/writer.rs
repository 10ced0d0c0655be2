//! The writing side of a store: held by one daemon.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use journal_format::segment::{SegmentIndex, SegmentSource};
use journal_format::{GroupName, Hash, Position, Sequence, Timestamp};
use transport::{Heartbeat, PeerName};

use super::attach::Timeline;
use super::claim::Claim;
use super::compare::HeadView;
use super::disk::{Disk, LockMode};
use super::{CATALOG_LOCK, WRITER_LOCK};
use crate::blocks::BlockList;
use crate::cache::Cache;
use crate::catalog::Catalog;
use crate::error::StoreError;
use crate::frames::{Checks, Frames};

/// How long a start waits for commands that are bringing the catalog up to date.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Memory for decompressed frames that arriving differences are taken from, in bytes.
const FRAME_CACHE_BYTES: u64 = 64 << 20;
/// Block lists that are open at once: each is a file.
const OPEN_BLOCK_LISTS: u64 = 256;

/// Limits of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriterOptions {
    /// Bytes of segments that are kept at most; a further one is refused as full. `None`: until the disk is full.
    pub size_bytes_max: Option<u64>,
}

/// A store that is open for writing; implements the transport's [`Inbox`](transport::Inbox). There is one at a time.
pub struct StoreWriter {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) disk: Disk,
    /// For what arrives and refers to what is here.
    pub(super) frames: Frames,
    pub(super) block_lists: Cache<Hash, BlockList>,
    options: WriterOptions,
    catalog: Mutex<Catalog>,
    groups: Mutex<BTreeMap<GroupName, Arc<Group>>>,
    used_bytes: AtomicU64,
    next_incoming: AtomicU64,
    _lock: File,
}

/// A group that is written to.
pub(super) struct Group {
    pub(super) name: GroupName,
    pub(super) state: Mutex<GroupState>,
    /// Who writes, as the claim says; asked for by other groups, which must not wait for the state.
    pub(super) writer: Mutex<Option<PeerName>>,
    pub(super) head_view: Mutex<Option<HeadView>>,
    pub(super) received_bytes: AtomicU64,
    pub(super) received_again_bytes: AtomicU64,
    pub(super) compared_bytes: AtomicU64,
}

/// What a group's sources sent since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceivedCounters {
    /// Bytes of segments.
    pub received_bytes: u64,
    /// Of these, bytes of segments that were here already.
    pub received_again_bytes: u64,
    /// Bytes that were compared by their hashes.
    pub compared_bytes: u64,
}

pub(super) struct GroupState {
    pub(super) timeline: Timeline<Arrived>,
    /// Who writes the group.
    pub(super) claim: Claim,
    /// The catalog missed a segment.
    catalog_behind: bool,
}

/// A durable segment of which every byte is verified, and which is not attached yet. Its file is removed with it.
pub(super) struct Arrived {
    /// Without its tables, which the catalog does not need.
    pub(super) index: SegmentIndex,
    /// Whether what it refers to is verified, too. That may have to wait for the segments before it.
    pub(super) resolved: bool,
    pub(super) part: Part,
}

/// A file in `incoming/` and the space that it has reserved; both are given back when it is dropped.
pub(super) struct Part {
    pub(super) path: Option<PathBuf>,
    reserved_bytes: u64,
    shared: Arc<Shared>,
}

impl StoreWriter {
    /// Opens a store for writing, and makes one of a folder that is empty or absent. Brings the catalog up to date,
    /// removes what was arriving when the last writer ended, and moves segments that their chain does not reach aside.
    ///
    /// # Errors
    /// If another process writes to it ([`StoreError::Locked`]), the folder is something else, or the system refuses.
    pub fn open(root: &Path, options: WriterOptions) -> Result<StoreWriter, StoreError> {
        let disk = Disk::open_or_create(root)?;
        let lock = take_lock(&disk)?;
        let alone = disk.lock(CATALOG_LOCK)?;
        let mut catalog = Catalog::open_or_rebuild(&disk.catalog_path())?;
        let names = disk.groups()?;
        let mut groups = BTreeMap::new();
        for name in &names {
            let head = open_group(&disk, &mut catalog, name)?;
            groups.insert(name.clone(), Group::new(name, head, Claim::load(&disk, name, head)?));
        }
        catalog.keep_only(&names)?;
        drop(alone);
        let used_bytes = AtomicU64::new(disk.used_bytes()?);
        let shared = Shared {
            frames: Frames::new(Arc::new(disk.clone()), FRAME_CACHE_BYTES, Checks::Stored),
            block_lists: Cache::new(OPEN_BLOCK_LISTS),
            disk,
            options,
            catalog: Mutex::new(catalog),
            groups: Mutex::new(groups),
            used_bytes,
            next_incoming: AtomicU64::new(1),
            _lock: lock,
        };
        Ok(StoreWriter { shared: Arc::new(shared) })
    }

    /// Bytes of all segments, with those that are arriving.
    pub fn used_bytes(&self) -> u64 {
        self.shared.used_bytes.load(Ordering::Relaxed)
    }

    /// What a group's sources sent since the start.
    pub fn received(&self, group: &GroupName) -> ReceivedCounters {
        let Some(group) = self.shared.group(group) else { return ReceivedCounters::default() };
        ReceivedCounters {
            received_bytes: group.received_bytes.load(Ordering::Relaxed),
            received_again_bytes: group.received_again_bytes.load(Ordering::Relaxed),
            compared_bytes: group.compared_bytes.load(Ordering::Relaxed),
        }
    }

    /// The hash of the segment that is attached at a place of a group's chain.
    pub(crate) fn attached_hash(
        &self,
        group: &GroupName,
        place: Sequence,
    ) -> Result<Option<Hash>, StoreError> {
        Ok(self.shared.catalog().segment(group, place)?.map(|row| row.position.hash))
    }

    /// Up to where a group's segments are attached; `None` before the first.
    pub fn head(&self, group: &GroupName) -> Option<Position> {
        let group = self.shared.groups().get(group).map(Arc::clone)?;
        group.state().timeline.head()
    }
}

impl Shared {
    fn groups(&self) -> MutexGuard<'_, BTreeMap<GroupName, Arc<Group>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group, if it has been opened.
    pub(super) fn group(&self, name: &GroupName) -> Option<Arc<Group>> {
        self.groups().get(name).map(Arc::clone)
    }

    /// The group; its folders are made if it is new.
    pub(super) fn open_group(&self, name: &GroupName) -> Result<Arc<Group>, StoreError> {
        let mut groups = self.groups();
        if let Some(group) = groups.get(name) {
            return Ok(Arc::clone(group));
        }
        let head = open_group(&self.disk, &mut self.catalog(), name)?;
        let group = Group::new(name, head, Claim::load(&self.disk, name, head)?);
        groups.insert(name.clone(), Arc::clone(&group));
        Ok(group)
    }

    /// The hash of an attached segment is that of `position`.
    pub(super) fn has(&self, group: &GroupName, position: &Position) -> Result<bool, StoreError> {
        let row = self.catalog().segment(group, position.sequence)?;
        if let Some(row) = row {
            return Ok(row.position == *position);
        }
        // The catalog may be behind; the file is what counts.
        let path = self.disk.segment_path(group, position.generation, position.sequence);
        if !path.exists() {
            return Ok(false);
        }
        crate::segment_file::read_index(&path).map(|index| index.position() == *position)
    }

    pub(super) fn segment_path(&self, segment: &SegmentSource) -> PathBuf {
        self.disk.segment_path(&segment.group, segment.generation, segment.sequence)
    }

    /// Whether a segment of `group` may refer to one of another group: that is attached, and is the seed of this one or written by the same source.
    pub(super) fn may_refer(&self, group: &Group, segment: &SegmentSource) -> Result<bool, StoreError> {
        let of_seed = group.name.seed().as_ref() == Some(&segment.group);
        let same_writer = || {
            let writers = self.group(&segment.group).and_then(|other| other.writer()).zip(group.writer());
            writers.is_some_and(|(other, writer)| other == writer)
        };
        let row = self.catalog().segment(&segment.group, segment.sequence)?;
        let attached = row.is_some_and(|row| {
            (row.position.generation, row.position.hash) == (segment.generation, segment.hash)
        });
        Ok(attached && (of_seed || same_writer()))
    }

    /// Reserves space for a segment and begins its file; `None` if the store's limit does not allow it.
    pub(super) fn begin_part(
        self: &Arc<Self>,
        group: &Group,
        position: &Position,
        size_bytes: u64,
    ) -> Result<Option<(Part, File)>, StoreError> {
        let limit = self.options.size_bytes_max.unwrap_or(u64::MAX);
        let reserve = |used: u64| used.checked_add(size_bytes).filter(|&sum| sum <= limit);
        if self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).is_err() {
            return Ok(None);
        }
        let mut part = Part { path: None, reserved_bytes: size_bytes, shared: Arc::clone(self) };
        let number = self.next_incoming.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:020}-{number}.part", position.sequence.0);
        let (path, file) = self.disk.create_incoming(&group.name, &name)?;
        part.path = Some(path);
        Ok(Some((part, file)))
    }

    /// Tells the catalog of segments that have been attached. A catalog that fails does not undo that.
    pub(super) fn catalog_attached(&self, group: &Group, state: &mut GroupState, indexes: &[SegmentIndex]) {
        let mut catalog = self.catalog();
        let told = if state.catalog_behind {
            catalog.refresh(&self.disk, &group.name, &|_, _| {}).map(drop)
        } else {
            catalog.attach(indexes.iter().map(|index| (index, 0)))
        };
        state.catalog_behind = told.is_err();
        if let Err(error) = told {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(group = %group.name, %error, cause, "segments are stored, but the catalog does not list them");
        }
    }

    pub(super) fn put_heartbeat(&self, group: &GroupName, heartbeat: &Heartbeat, received_at: Timestamp) {
        if let Err(error) = self.catalog().put_heartbeat(group, heartbeat, received_at) {
            tracing::warn!(%group, %error, "a heartbeat was not kept");
        }
    }
}

impl Group {
    fn new(name: &GroupName, head: Option<Position>, claim: Claim) -> Arc<Group> {
        let writer = Mutex::new(claim.writer().cloned());
        let state = GroupState { timeline: Timeline::new(head), claim, catalog_behind: false };
        Arc::new(Group {
            name: name.clone(),
            writer,
            state: Mutex::new(state),
            head_view: Mutex::default(),
            received_bytes: AtomicU64::new(0),
            received_again_bytes: AtomicU64::new(0),
            compared_bytes: AtomicU64::new(0),
        })
    }

    pub(super) fn writer(&self) -> Option<PeerName> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// Its file.
    pub(super) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Gives the segment its name; the space stays reserved for good.
    pub(super) fn publish(mut self, to: &Path) -> Result<(), StoreError> {
        if let Some(path) = &self.path {
            self.shared.disk.publish(path, to)?;
        }
        self.path = None;
        self.reserved_bytes = 0;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.shared.used_bytes.fetch_sub(self.reserved_bytes, Ordering::Relaxed);
        if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "an unfinished segment was not removed; the next start does it");
        }
    }
}

/// Waits a little: commands hold it shared while they bring the catalog up to date.
fn take_lock(disk: &Disk) -> Result<File, StoreError> {
    let begin = Instant::now();
    loop {
        if let Some(lock) = disk.try_lock(WRITER_LOCK, LockMode::Exclusive)? {
            return Ok(lock);
        }
        if begin.elapsed() > LOCK_PATIENCE {
            return Err(StoreError::Locked { path: disk.root().join(WRITER_LOCK) });
        }
        thread::sleep(LOCK_PAUSE);
    }
}

/// Brings a group up to date and answers its head.
fn open_group(disk: &Disk, catalog: &mut Catalog, group: &GroupName) -> Result<Option<Position>, StoreError> {
    disk.prepare_group(group)?;
    let chain = catalog.refresh(disk, group, &|_, _| {})?;
    for segment in &chain.unattached {
        let path = disk.detach(group, &segment.file)?;
        tracing::error!(%group, why = segment.why, path = %path.display(), "a segment is not reached by its chain and was set aside");
    }
    // What a crash left behind its rename may not be durable by name yet.
    disk.sync_segments(group)?;
    Ok(chain.head)
}
