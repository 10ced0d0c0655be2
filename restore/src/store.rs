//! The recovery site's store: a folder of segments with a catalog. `STORE.md` defines it.

mod attach;
mod claim;
mod compare;
pub(crate) mod disk;
mod inbox;
mod listing;
mod resolve;
mod union;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal_format::{GroupName, Hash, Sequence, with_causes};
use transport::PeerName;

use crate::bucket::{BucketPlace, BucketSegments};
use crate::catalog::{Catalog, GroupSummary, Point, SegmentRow};
use crate::disk_cache::{CacheOptions, DiskCache};
use crate::error::StoreError;
use crate::seed::SEED_PEER;
use crate::segments::Segments;
use crate::select::{Selector, select};
use crate::view::{PointView, ViewOptions};
use claim::Claim;
use disk::{Disk, LockMode};
use union::Union;

pub use writer::{ReceivedCounters, StoreWriter, WriterOptions};

/// Lock of the process that writes segments.
const WRITER_LOCK: &str = "lock";
/// Lock among commands that bring the catalog up to date.
const CATALOG_LOCK: &str = "catalog.lock";

/// A store that is open for reading. Needs no daemon, and gets along with one.
pub struct Store {
    segments: Arc<dyn Segments>,
    catalog: Mutex<Catalog>,
}

/// Stores that are read as one at most.
const STORES_MAX: usize = 16;

/// Where segments are.
#[derive(Clone, Debug)]
pub enum Place {
    /// The folder that `thirdsite site run` writes to.
    Folder(PathBuf),
    /// A bucket that the protected site writes to.
    Bucket(BucketPlace),
}

impl Store {
    /// Opens a store in a folder for reading. Without a daemon the catalog is brought up to date first; on a read-only or full file
    /// system, or if the catalog cannot be used, one is built in memory from the segments.
    ///
    /// # Errors
    /// If the folder is no store of this version, or its segments cannot be listed and read.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        let disk = Disk::open(root)?;
        let catalog = in_memory_if_needed(&disk, &|_, _| {}, || catalog_on_disk(&disk))?;
        Ok(Store { segments: Arc::new(disk), catalog: Mutex::new(catalog) })
    }

    /// Opens a store in a bucket for reading. What is read of it is kept in a folder of this machine; the first time the outlines of all segments
    /// are read, and `progress` hears how many of a group's were.
    ///
    /// # Errors
    /// If the bucket does not answer or is none of this version, or the cache's folder was named and cannot be used.
    pub fn open_bucket(
        place: &BucketPlace,
        cache: &CacheOptions,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Store, StoreError> {
        Self::open_cached(place, &Arc::new(DiskCache::open(cache)?), progress)
    }

    /// Opens one store, or several as one: the chain of each group is the longest that all of them together have, and a segment that one lacks, or
    /// has damaged, is read from another.
    ///
    /// # Errors
    /// If there is none or one of them cannot be opened.
    pub fn open_places(
        places: &[Place],
        cache: &CacheOptions,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Store, StoreError> {
        match places {
            [Place::Folder(folder)] => Store::open(folder),
            [Place::Bucket(place)] => Store::open_bucket(place, cache, progress),
            places => Store::open_union(places, cache, progress),
        }
    }

    fn open_union(
        places: &[Place],
        cache: &CacheOptions,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Store, StoreError> {
        if places.is_empty() || places.len() > STORES_MAX {
            return Err(StoreError::TooMany { count: places.len(), limit: STORES_MAX });
        }
        let cache = Arc::new(DiskCache::open(cache)?);
        let open = |place: &Place| match place {
            Place::Folder(folder) => Store::open(folder),
            Place::Bucket(place) => Store::open_cached(place, &cache, progress),
        };
        let members = places.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let union = Union::new(members);
        let catalog = in_memory_if_needed(&union, &|_, _| {}, || {
            let folder = cache.store_folder(&Hash::of(union.location().as_bytes()))?;
            cached_catalog(&folder, &union, &|_, _| {})
        })?;
        Ok(Store { segments: Arc::new(union), catalog: Mutex::new(catalog) })
    }

    fn open_cached(
        place: &BucketPlace,
        cache: &Arc<DiskCache>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Store, StoreError> {
        let bucket = BucketSegments::open(place, Arc::clone(cache))?;
        let catalog = in_memory_if_needed(&bucket, progress, || {
            let folder = cache.store_folder(&bucket.identity())?;
            cached_catalog(&folder, &bucket, progress)
        })?;
        Ok(Store { segments: Arc::new(bucket), catalog: Mutex::new(catalog) })
    }

    /// The store, for people: its folder or its URL.
    pub fn location(&self) -> String {
        self.segments.location()
    }

    /// What is known of each group, in the order of their names.
    ///
    /// # Errors
    /// If the catalog cannot be read.
    pub fn groups(&self) -> Result<Vec<GroupSummary>, StoreError> {
        let catalog = self.catalog();
        catalog.group_names()?.iter().map(|group| catalog.summary(group)).collect()
    }

    /// What is known of one group.
    ///
    /// # Errors
    /// If there is no such group or the catalog cannot be read.
    pub fn group(&self, group: &GroupName) -> Result<GroupSummary, StoreError> {
        let catalog = self.catalog();
        check_known(&catalog, group)?;
        catalog.summary(group)
    }

    /// The group that this one is the seed of, if it is one: it was taken in by [`import_seed`](crate::import_seed).
    ///
    /// # Errors
    /// If the record of its writer cannot be read.
    pub fn seed_of(&self, group: &GroupName) -> Result<Option<GroupName>, StoreError> {
        self.segments.seed_of(group)
    }

    /// All points of a group, oldest first.
    ///
    /// # Errors
    /// If there is no such group or the catalog cannot be read.
    pub fn points(&self, group: &GroupName) -> Result<Vec<Point>, StoreError> {
        let catalog = self.catalog();
        check_known(&catalog, group)?;
        catalog.points(group)
    }

    /// Chooses a point.
    ///
    /// # Errors
    /// If there is no such group or point; the error names the nearest ones.
    pub fn select(&self, group: &GroupName, selector: &Selector) -> Result<Point, StoreError> {
        let catalog = self.catalog();
        check_known(&catalog, group)?;
        match self.seed_of(group)? {
            Some(of) => Err(StoreError::Seed { group: group.clone(), of }),
            None => select(&catalog, group, selector),
        }
    }

    /// Opens a point for reading.
    ///
    /// # Errors
    /// If a segment of its chain is missing or damaged, or its map is larger than the options allow.
    pub fn open_point(&self, point: &Point, options: &ViewOptions) -> Result<Arc<PointView>, StoreError> {
        let chain = self.chain(point)?;
        PointView::open(Arc::clone(&self.segments), point.clone(), chain, options)
    }

    /// The chain up to a point, oldest first.
    fn chain(&self, point: &Point) -> Result<Vec<SegmentRow>, StoreError> {
        self.catalog().chain(&point.group, point.sequence)
    }

    /// The whole chain of a group, oldest first.
    pub(crate) fn whole_chain(&self, group: &GroupName) -> Result<Vec<SegmentRow>, StoreError> {
        let catalog = self.catalog();
        check_known(&catalog, group)?;
        catalog.chain(group, Sequence(i64::MAX as u64))
    }

    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn segments(&self) -> &Arc<dyn Segments> {
        &self.segments
    }
}

/// The group that this one is the seed of, if it is one, by the record of its writer.
pub(crate) fn seed_of(disk: &Disk, group: &GroupName) -> Result<Option<GroupName>, StoreError> {
    let Some(of) = group.seed_of() else { return Ok(None) };
    let writer = writer_of(disk, group)?;
    Ok(writer.is_some_and(|writer| writer.as_str() == SEED_PEER).then_some(of))
}

/// Who writes a group, by the record of its writer.
pub(crate) fn writer_of(disk: &Disk, group: &GroupName) -> Result<Option<PeerName>, StoreError> {
    Claim::load(disk, group, None).map(|claim| claim.writer().cloned())
}

/// Makes a catalog, or builds one in memory if that cannot be used.
fn in_memory_if_needed(
    segments: &dyn Segments,
    progress: &dyn Fn(u64, u64),
    make: impl FnOnce() -> Result<Catalog, StoreError>,
) -> Result<Catalog, StoreError> {
    make().or_else(|error| {
        // What a catalog in memory needs as well will not be better the second time.
        if matches!(error, StoreError::Bucket { .. } | StoreError::BucketContent { .. }) {
            return Err(error);
        }
        tracing::info!(%error, "the catalog on disk cannot be used; building one in memory");
        let mut catalog = Catalog::in_memory()?;
        refresh_all(&mut catalog, segments, progress)?;
        Ok(catalog)
    })
}

fn catalog_on_disk(disk: &Disk) -> Result<Catalog, StoreError> {
    if let Some(_no_writer) = disk.try_lock(WRITER_LOCK, LockMode::Shared)? {
        let _alone = disk.lock(CATALOG_LOCK)?;
        let mut catalog = Catalog::open_or_rebuild(&disk.catalog_path())?;
        refresh_all(&mut catalog, disk, &|_, _| {})?;
        Ok(catalog)
    } else {
        Catalog::open_beside_writer(&disk.catalog_path())
    }
}

/// The catalog of a store that is elsewhere, in a folder of the cache.
fn cached_catalog(
    folder: &Path,
    segments: &dyn Segments,
    progress: &dyn Fn(u64, u64),
) -> Result<Catalog, StoreError> {
    let _alone = disk::lock_file(&folder.join(CATALOG_LOCK))?;
    let mut catalog = Catalog::open_or_rebuild(&folder.join("catalog.sqlite"))?;
    refresh_all(&mut catalog, segments, progress)?;
    Ok(catalog)
}

fn refresh_all(
    catalog: &mut Catalog,
    segments: &dyn Segments,
    progress: &dyn Fn(u64, u64),
) -> Result<(), StoreError> {
    let groups = segments.groups()?;
    for group in &groups {
        let chain = catalog.refresh(segments, group, progress)?;
        if let Some(first) = chain.unattached.first() {
            let (files, name) = (chain.unattached.len(), segments.place_listed(group, &first.file));
            tracing::warn!(%group, files, first = %name.display(), why = first.why, "segments are not reached by their chain");
        }
        match segments.heartbeat(group) {
            Ok(Some((heartbeat, at))) => catalog.put_heartbeat(group, &heartbeat, at)?,
            Ok(None) => {}
            // Points do not rest on it.
            Err(error) => {
                tracing::warn!(%group, error = with_causes(&error), "what the source last said cannot be read");
            }
        }
    }
    catalog.keep_only(&groups)
}

fn check_known(catalog: &Catalog, group: &GroupName) -> Result<(), StoreError> {
    let known = catalog.group_names()?;
    if known.contains(group) {
        return Ok(());
    }
    let known = known.iter().map(ToString::to_string).collect();
    Err(StoreError::UnknownGroup { group: group.clone(), known })
}
