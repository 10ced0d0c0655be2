//! What can go wrong with a store and with a point, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use journal_format::{ErrorKind, FormatError, GroupName, Hash, PointId, VolumeName};
use thiserror::Error;
use transport_bucket::RoadError;

/// Why a store cannot be opened, read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refuses.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The folder is not a store.
    #[error("{path} is not a store: {reason}")]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// How that is seen.
        reason: &'static str,
    },
    /// The store is of a version that this build does not read.
    #[error("{path} says store version {found}; this build reads version {supported}")]
    Version {
        /// The file that says so.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Version that this build reads.
        supported: u32,
    },
    /// Another process is writing to the store.
    #[error("another process holds {path}")]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
    /// There is no store in the bucket.
    #[error("{url} is not a bucket of thirdsite: it has no store.json")]
    NotABucket {
        /// The bucket.
        url: String,
    },
    /// A bucket does not answer, refuses, or lacks an object.
    #[error("cannot {action} {}", .place.display())]
    Bucket {
        /// What was tried.
        action: &'static str,
        /// The object's URL.
        place: PathBuf,
        /// What the server, or the way to it, said.
        #[source]
        source: Arc<object_store::Error>,
    },
    /// Something in a bucket is not what it should be.
    #[error("bucket {url} cannot be used")]
    BucketContent {
        /// The bucket.
        url: String,
        /// What is wrong with which object.
        #[source]
        source: Box<RoadError>,
    },
    /// So many stores cannot be read as one.
    #[error("{count} stores were named; 1 to {limit} are read as one")]
    TooMany {
        /// Number of stores.
        count: usize,
        /// Largest number.
        limit: usize,
    },
    /// SQLite refuses.
    #[error("the catalog {path} cannot be used")]
    Catalog {
        /// The catalog's file, or `:memory:`.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The catalog holds a row that this build did not write.
    #[error("the catalog {path} holds a row that is not valid: {reason}")]
    Row {
        /// The catalog's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A stored segment is damaged.
    #[error("segment {path} is damaged")]
    Damaged {
        /// The segment's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// A stored segment is whole, and yet not the one that should be there.
    #[error("segment {path} is not the one that belongs here: hash {actual}, expected {expected}")]
    OtherSegment {
        /// The segment's file.
        path: PathBuf,
        /// Hash that the chain names.
        expected: Hash,
        /// Hash of the file.
        actual: Hash,
    },
    /// Nothing is known of the group.
    #[error("the store has no group '{group}'{}", listed(". It has: ", .known))]
    UnknownGroup {
        /// The group.
        group: GroupName,
        /// Groups that it has.
        known: Vec<String>,
    },
    /// The group has no point yet.
    #[error("group '{group}' has no recovery point yet")]
    NoPoints {
        /// The group.
        group: GroupName,
    },
    /// The group is a seed, of which there are no points.
    #[error("group '{group}' is the seed of group '{of}': it has no points")]
    Seed {
        /// The seed.
        group: GroupName,
        /// The group that it is a first copy of.
        of: GroupName,
    },
    /// The point does not exist.
    #[error("group '{group}' has no {wanted}{}", listed(". Nearest: ", .nearest))]
    NoSuchPoint {
        /// The group.
        group: GroupName,
        /// What was asked for.
        wanted: String,
        /// Points near it, with their times.
        nearest: Vec<String>,
    },
    /// The point has no such volume.
    #[error("point {point} has no volume '{volume}'{}", listed(". It has: ", .known))]
    NoSuchVolume {
        /// The point.
        point: PointId,
        /// The volume.
        volume: String,
        /// Volumes that it has.
        known: Vec<String>,
    },
    /// The map of a point is larger than allowed.
    #[error("the map of point {point} needs more than {limit_bytes} bytes of memory")]
    MapTooLarge {
        /// The point.
        point: PointId,
        /// The limit.
        limit_bytes: u64,
    },
    /// The bytes of a point cannot be read.
    #[error("cannot read volume '{volume}' of point {point} at byte {offset}")]
    Read {
        /// The point.
        point: PointId,
        /// The volume.
        volume: VolumeName,
        /// Where, in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// The range is not one of the volume.
    #[error(
        "bytes {offset} to {end} of volume '{volume}' were asked for; it has {size_bytes} bytes in sectors of 512"
    )]
    Range {
        /// The volume.
        volume: VolumeName,
        /// First byte.
        offset: u64,
        /// The byte behind the last.
        end: u64,
        /// Size of the volume.
        size_bytes: u64,
    },
}

fn listed(before: &str, items: &[String]) -> String {
    if items.is_empty() { String::new() } else { format!("{before}{}", items.join(", ")) }
}

/// Whether the medium has no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

pub(crate) fn io_kind(error: &io::Error) -> ErrorKind {
    use io::ErrorKind::{AlreadyExists, InvalidInput, NotFound, PermissionDenied, ReadOnlyFilesystem};
    match error.kind() {
        _ if is_full(error) => ErrorKind::Full,
        AlreadyExists | InvalidInput | NotFound | PermissionDenied | ReadOnlyFilesystem => ErrorKind::Invalid,
        _ => ErrorKind::Retry,
    }
}

fn bucket_kind(error: &object_store::Error) -> ErrorKind {
    use object_store::Error::{Generic, JoinError, NotFound};
    match error {
        Generic { .. } | JoinError { .. } => ErrorKind::Retry,
        // Only objects that have to be there are errors when they are not.
        NotFound { .. } => ErrorKind::Corrupt,
        _ => ErrorKind::Invalid,
    }
}

fn content_hint(error: &RoadError) -> &'static str {
    match error {
        RoadError::Version { .. } => "install the same release of thirdsite wherever the bucket is used",
        RoadError::Prefix { .. } => "use parts of letters, digits, '-', '_' and '.', separated by single '/'",
        RoadError::Store { .. } => {
            "check the bucket's name, the endpoint, the keys' rights and the way to it, then try again"
        }
        _ => {
            "something else writes below the bucket's prefix, or an object was changed: restore it if the bucket keeps versions"
        }
    }
}

fn bucket_hint(error: &object_store::Error) -> &'static str {
    use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
    match error {
        NotFound { .. } => {
            "an object is gone that has to be there: restore it if the bucket keeps versions; 'thirdsite verify' tells which points are touched"
        }
        PermissionDenied { .. } => "allow this key to list and read objects below the bucket's prefix",
        Unauthenticated { .. } => "check the access key, the secret, and the clock of this host",
        _ => "check the bucket's name, the endpoint and the way to it, then try again",
    }
}

/// Makes [`StoreError::Io`] of an I/O error.
pub(crate) fn io_error<'a>(
    action: &'static str,
    path: &'a std::path::Path,
) -> impl Fn(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

impl StoreError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StoreError::Io { source, .. } => io_kind(source),
            StoreError::Damaged { source, .. } => source.kind(),
            StoreError::Read { source, .. } => source.kind(),
            StoreError::Bucket { source, .. } => bucket_kind(source),
            StoreError::BucketContent { source, .. } => source.kind(),
            StoreError::OtherSegment { .. } => ErrorKind::Corrupt,
            StoreError::MapTooLarge { .. } => ErrorKind::Full,
            StoreError::Catalog { .. } | StoreError::Row { .. } => ErrorKind::Retry,
            StoreError::Locked { .. }
            | StoreError::NotAStore { .. }
            | StoreError::NotABucket { .. }
            | StoreError::TooMany { .. }
            | StoreError::Version { .. }
            | StoreError::UnknownGroup { .. }
            | StoreError::NoPoints { .. }
            | StoreError::Seed { .. }
            | StoreError::NoSuchPoint { .. }
            | StoreError::NoSuchVolume { .. }
            | StoreError::Range { .. } => ErrorKind::Invalid,
        }
    }

    /// What an operator should do now.
    pub fn hint(&self) -> &'static str {
        match self {
            StoreError::Io { source, .. } if is_full(source) => {
                "make room on the store's file system; the points that are listed stay whole"
            }
            StoreError::Io { .. } => "look at the path, its owner and the system's log, then try again",
            StoreError::NotAStore { .. } => {
                "give the folder that 'thirdsite site run' writes to (key 'store' of its settings), or an empty one to make a new store"
            }
            StoreError::NotABucket { .. } => {
                "give the URL that the protected site writes to (its settings name it); it makes store.json when it first connects"
            }
            StoreError::TooMany { .. } => "name fewer stores",
            StoreError::Bucket { source, .. } => bucket_hint(source),
            StoreError::BucketContent { source, .. } => content_hint(source),
            StoreError::Version { .. } => {
                "use the release of thirdsite that wrote this store, or a later one"
            }
            StoreError::Locked { .. } => {
                "a second daemon must not write to one store: stop the other 'thirdsite site run', or give this one its own store"
            }
            StoreError::Catalog { .. } | StoreError::Row { .. } => {
                "the catalog is only a cache: stop the daemon, delete catalog.sqlite, and it is made again from the segments"
            }
            StoreError::Damaged { .. } | StoreError::OtherSegment { .. } => {
                "run 'thirdsite verify' to learn which points are touched; older points are not; check the disk under the store"
            }
            StoreError::Read { source, .. } => source.hint(),
            StoreError::UnknownGroup { .. } => {
                "check the name; a group appears when its source has delivered the first segment"
            }
            StoreError::NoPoints { .. } => {
                "the first sync is not complete: 'thirdsite status' tells how far it is"
            }
            StoreError::Seed { .. } => "points are those of the group that it is the seed of: name that one",
            StoreError::NoSuchPoint { .. } => "'thirdsite point list' prints all points of the group",
            StoreError::NoSuchVolume { .. } => {
                "'thirdsite point list --json' prints the volumes of each point"
            }
            StoreError::MapTooLarge { .. } => {
                "use a machine with more memory and raise the limit of the view"
            }
            StoreError::Range { .. } => "ask for ranges inside the volume, in multiples of 512 bytes",
        }
    }
}
