//! The catalog: what the segments say, in SQLite, so that points can be listed without reading segments.
//!
//! A cache. Whatever is wrong with its file, it is deleted and made again. It only ever holds segments of attached
//! chains, so that a point in it is a point whose whole chain was there when the catalog was brought up to date.

mod query;
mod refresh;
mod rows;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal_format::segment::{PointKind, VolumeRecord};
use journal_format::{BookmarkName, Epoch, GroupName, Hash, PointId, Position, Sequence, Timestamp};
use rusqlite::{Connection, OpenFlags};

use crate::error::{StoreError, io_error};

pub(crate) use rows::SegmentRow;

/// Version of the schema, kept as SQLite's `user_version`; another one is made anew.
const CATALOG_VERSION: i64 = 2;

/// How long a command waits for the daemon's transaction, and the other way round.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    CREATE TABLE segments (
        group_name TEXT NOT NULL, sequence INTEGER NOT NULL, generation INTEGER NOT NULL,
        last_epoch INTEGER NOT NULL, hash BLOB NOT NULL, parent BLOB NOT NULL,
        size_bytes INTEGER NOT NULL, claim INTEGER NOT NULL, PRIMARY KEY (group_name, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE points (
        group_name TEXT NOT NULL, sequence INTEGER NOT NULL, generation INTEGER NOT NULL,
        epoch INTEGER NOT NULL, time INTEGER NOT NULL, kind INTEGER NOT NULL, bookmark TEXT,
        definition BLOB NOT NULL, written_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL,
        volumes TEXT NOT NULL, PRIMARY KEY (group_name, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX points_by_id ON points (group_name, generation, epoch);
    CREATE INDEX points_by_time ON points (group_name, time);
    CREATE INDEX points_by_bookmark ON points (group_name, bookmark) WHERE bookmark IS NOT NULL;
    CREATE TABLE definitions (
        group_name TEXT NOT NULL, hash BLOB NOT NULL, sequence INTEGER NOT NULL, json BLOB NOT NULL,
        PRIMARY KEY (group_name, hash)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE checked (
        group_name TEXT NOT NULL, sequence INTEGER NOT NULL, hash BLOB NOT NULL,
        PRIMARY KEY (group_name, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE heartbeats (
        group_name TEXT NOT NULL PRIMARY KEY, source_time INTEGER NOT NULL, cut_epoch INTEGER,
        cut_time INTEGER, backlog_bytes INTEGER NOT NULL, backlog_segments INTEGER NOT NULL,
        state TEXT NOT NULL, received_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// A recovery point: the state of a whole group at one cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its group.
    pub group: GroupName,
    /// Its id.
    pub id: PointId,
    /// Place of the segment that completes it.
    pub sequence: Sequence,
    /// When it was cut, by the protected site's clock.
    pub time: Timestamp,
    /// How far the guest took part.
    pub kind: PointKind,
    /// Name, if an operator gave one.
    pub bookmark: Option<BookmarkName>,
    /// Hash of the VM definition in force, [`Hash::ZERO`] if the group has none.
    pub definition: Hash,
    /// Bytes that the guest wrote since the point before.
    pub written_bytes: u64,
    /// Bytes that the store keeps for it: its segments since the point before.
    pub stored_bytes: u64,
    /// Volumes with their sizes.
    pub volumes: Vec<VolumeRecord>,
}

/// What the store has of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    /// The group.
    pub group: GroupName,
    /// Up to where everything is durable and verified; what receipts name.
    pub head: Option<Position>,
    /// Attached segments.
    pub segments: u64,
    /// Their size in bytes.
    pub stored_bytes: u64,
    /// Points.
    pub points: u64,
    /// The newest point.
    pub newest: Option<Point>,
    /// What the source last said of itself.
    pub heartbeat: Option<HeartbeatRecord>,
}

/// What a source last said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatRecord {
    /// The source's time then.
    pub source_time: Timestamp,
    /// Its newest cut then.
    pub newest_cut: Option<(Epoch, Timestamp)>,
    /// Bytes of segments that had no receipt.
    pub backlog_bytes: u64,
    /// Segments that had no receipt.
    pub backlog_segments: u64,
    /// What it was doing, for people.
    pub state: String,
    /// The recovery site's time when this arrived.
    pub received_at: Timestamp,
}

/// A connection to the catalog.
pub(crate) struct Catalog {
    connection: Connection,
    path: PathBuf,
}

impl Catalog {
    /// Opens the catalog for writing; whatever is not a sound catalog of this version is deleted and begun anew. Nobody
    /// else may be writing.
    pub(crate) fn open_or_rebuild(path: &Path) -> Result<Catalog, StoreError> {
        if path.exists() {
            match Catalog::open(path, OpenFlags::SQLITE_OPEN_READ_WRITE).and_then(Catalog::checked) {
                Ok(catalog) => return Ok(catalog),
                Err(error) => tracing::warn!(%error, path = %path.display(), "the catalog is made anew"),
            }
        }
        remove(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let catalog = Catalog::open(path, flags)?;
        catalog.create()?;
        Ok(catalog)
    }

    /// Opens the catalog beside the process that writes it.
    pub(crate) fn open_beside_writer(path: &Path) -> Result<Catalog, StoreError> {
        let catalog = Catalog::open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        catalog.check_version()?;
        Ok(catalog)
    }

    /// Begins an empty catalog in memory.
    pub(crate) fn in_memory() -> Result<Catalog, StoreError> {
        let path = PathBuf::from(":memory:");
        let connection = Connection::open_in_memory()
            .map_err(|source| StoreError::Catalog { path: path.clone(), source })?;
        let catalog = Catalog { connection, path };
        catalog.create()?;
        Ok(catalog)
    }

    fn open(path: &Path, flags: OpenFlags) -> Result<Catalog, StoreError> {
        let failed = |source| StoreError::Catalog { path: path.to_owned(), source };
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        let catalog = Catalog { connection, path: path.to_owned() };
        catalog.configure().map_err(failed)?;
        Ok(catalog)
    }

    fn configure(&self) -> rusqlite::Result<()> {
        self.connection.busy_timeout(BUSY_TIMEOUT)?;
        self.connection.pragma_update(None, "trusted_schema", false)?;
        self.connection.pragma_update(None, "foreign_keys", false)?;
        if !self.connection.is_readonly("main")? {
            self.connection.pragma_update(None, "journal_mode", "wal")?;
            // The segments' folder is what counts after a loss of power; the catalog only has to stay readable.
            self.connection.pragma_update(None, "synchronous", "normal")?;
        }
        Ok(())
    }

    fn create(&self) -> Result<(), StoreError> {
        let schema = format!("BEGIN; {SCHEMA} PRAGMA user_version = {CATALOG_VERSION}; COMMIT;");
        self.connection.execute_batch(&schema).map_err(|source| self.failed(source))
    }

    fn checked(self) -> Result<Catalog, StoreError> {
        self.check_version()?;
        let verdict: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|source| self.failed(source))?;
        if verdict == "ok" { Ok(self) } else { Err(self.bad_row(format!("SQLite's check says: {verdict}"))) }
    }

    fn check_version(&self) -> Result<(), StoreError> {
        let found: i64 = self
            .connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(|source| self.failed(source))?;
        if found == CATALOG_VERSION {
            Ok(())
        } else {
            Err(self.bad_row(format!("schema version {found}, this build uses {CATALOG_VERSION}")))
        }
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Catalog { path: self.path.clone(), source }
    }

    fn bad_row(&self, reason: String) -> StoreError {
        StoreError::Row { path: self.path.clone(), reason }
    }
}

/// Deletes a catalog with the files that SQLite keeps beside it.
fn remove(path: &Path) -> Result<(), StoreError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let file = PathBuf::from(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("remove", &file)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
