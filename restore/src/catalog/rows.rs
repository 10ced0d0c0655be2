//! Rows and how they become values again. Numbers are stored as SQLite's signed 64 bits, bit for bit.

use journal_format::definition::GroupDefinition;
use journal_format::segment::{PointKind, SegmentIndex, SegmentSource, VolumeKind, VolumeRecord};
use journal_format::{Epoch, Generation, GroupName, Hash, PointId, Position, Sequence, Timestamp};
use rusqlite::{Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{HeartbeatRecord, Point};
use crate::segments::ListedSegment;

/// A segment of an attached chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRow {
    pub(crate) position: Position,
    pub(crate) parent: Hash,
    pub(crate) size_bytes: u64,
    /// Number of the claim under which it was put into a bucket; 0 in a folder.
    pub(crate) claim: u64,
}

impl SegmentRow {
    /// Whether it is what a listing shows.
    pub(crate) fn is_listed_as(&self, listed: &ListedSegment) -> bool {
        let same_generation =
            listed.generation.is_none_or(|generation| generation == self.position.generation);
        let same_place = (self.position.sequence, self.claim) == (listed.sequence, listed.claim);
        let same_hash = listed.hash.is_none_or(|hash| hash == self.position.hash);
        same_place && same_generation && same_hash && self.size_bytes == listed.size_bytes
    }

    /// The segment, as others refer to it.
    pub(crate) fn source(&self, group: &GroupName) -> SegmentSource {
        let Position { generation, sequence, hash, .. } = self.position;
        SegmentSource { group: group.clone(), generation, sequence, hash }
    }
}

#[derive(Serialize, Deserialize)]
struct VolumeColumn {
    name: String,
    firmware: bool,
    size_bytes: u64,
}

pub(super) const SEGMENT_COLUMNS: &str = "sequence, generation, last_epoch, hash, parent, size_bytes, claim";
pub(super) const POINT_COLUMNS: &str = "group_name, sequence, generation, epoch, time, kind, bookmark, definition, written_bytes, stored_bytes, volumes";
pub(super) const HEARTBEAT_COLUMNS: &str =
    "source_time, cut_epoch, cut_time, backlog_bytes, backlog_segments, state, received_at";

pub(super) fn segment_from(row: &Row<'_>) -> rusqlite::Result<SegmentRow> {
    let position = Position {
        sequence: Sequence(number(row, 0)?),
        generation: Generation(number(row, 1)?),
        epoch: Epoch(number(row, 2)?),
        hash: Hash(row.get(3)?),
    };
    let (parent, size_bytes, claim) = (Hash(row.get(4)?), number(row, 5)?, number(row, 6)?);
    Ok(SegmentRow { position, parent, size_bytes, claim })
}

pub(super) fn point_from(row: &Row<'_>) -> rusqlite::Result<Point> {
    let text = |column| row.get::<_, String>(column);
    let kind = match row.get::<_, i64>(5)? {
        0 => PointKind::Crash,
        1 => PointKind::Application,
        2 => PointKind::Warm,
        other => return Err(invalid(5, format!("unknown kind {other} of a point"))),
    };
    let bookmark: Option<String> = row.get(6)?;
    let volumes: Vec<VolumeColumn> =
        serde_json::from_str(&text(10)?).map_err(|error| invalid(10, error.to_string()))?;
    Ok(Point {
        group: text(0)?.parse().map_err(|error| invalid(0, format!("{error}")))?,
        sequence: Sequence(number(row, 1)?),
        id: PointId { generation: Generation(number(row, 2)?), epoch: Epoch(number(row, 3)?) },
        time: Timestamp(row.get(4)?),
        kind,
        bookmark: bookmark
            .map(|name| name.parse().map_err(|error| invalid(6, format!("{error}"))))
            .transpose()?,
        definition: Hash(row.get(7)?),
        written_bytes: number(row, 8)?,
        stored_bytes: number(row, 9)?,
        volumes: volumes.into_iter().map(volume_from).collect::<rusqlite::Result<_>>()?,
    })
}

pub(super) fn heartbeat_from(row: &Row<'_>) -> rusqlite::Result<HeartbeatRecord> {
    let epoch: Option<i64> = row.get(1)?;
    let time: Option<i64> = row.get(2)?;
    Ok(HeartbeatRecord {
        source_time: Timestamp(row.get(0)?),
        newest_cut: epoch.zip(time).map(|(epoch, time)| (Epoch(epoch as u64), Timestamp(time))),
        backlog_bytes: number(row, 3)?,
        backlog_segments: number(row, 4)?,
        state: row.get(5)?,
        received_at: Timestamp(row.get(6)?),
    })
}

fn volume_from(column: VolumeColumn) -> rusqlite::Result<VolumeRecord> {
    let name = column.name.parse().map_err(|error| invalid(10, format!("{error}")))?;
    let kind = if column.firmware { VolumeKind::Firmware } else { VolumeKind::Disk };
    Ok(VolumeRecord { name, kind, size_bytes: column.size_bytes, joining: false })
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)? as u64)
}

fn invalid(column: usize, reason: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, reason.into())
}

/// Adds what a segment says, which is the newest of its chain.
pub(super) fn insert(tx: &Transaction<'_>, index: &SegmentIndex, claim: u64) -> rusqlite::Result<()> {
    let (group, position) = (index.header.group.as_str(), index.position());
    let sequence = position.sequence.0 as i64;
    // Another segment may have had this place before.
    for table in ["points", "definitions"] {
        let sql = format!("DELETE FROM {table} WHERE group_name = ? AND sequence = ?");
        tx.prepare_cached(&sql)?.execute(params![group, sequence])?;
    }
    tx.prepare_cached(
        "INSERT OR REPLACE INTO segments
         (group_name, sequence, generation, last_epoch, hash, parent, size_bytes, claim)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        group,
        sequence,
        position.generation.0 as i64,
        position.epoch.0 as i64,
        position.hash.0,
        index.header.parent.0,
        index.trailer.file_bytes as i64,
        claim as i64,
    ])?;
    if let Some(definition) = &index.meta.definition {
        insert_definition(tx, group, sequence, definition)?;
    }
    if index.meta.point.is_some() {
        insert_point(tx, index)?;
    }
    Ok(())
}

fn insert_definition(
    tx: &Transaction<'_>,
    group: &str,
    sequence: i64,
    definition: &GroupDefinition,
) -> rusqlite::Result<()> {
    let json = definition.encode();
    // The first segment that carries it stays named, so that dropping a later one does not drop it.
    tx.prepare_cached(
        "INSERT OR IGNORE INTO definitions (group_name, hash, sequence, json) VALUES (?, ?, ?, ?)",
    )?
    .execute(params![group, Hash::of(&json).0, sequence, json])?;
    Ok(())
}

fn insert_point(tx: &Transaction<'_>, index: &SegmentIndex) -> rusqlite::Result<()> {
    let Some(point) = &index.meta.point else { return Ok(()) };
    let (group, sequence) = (index.header.group.as_str(), index.header.sequence.0 as i64);
    let kind = match point.kind {
        PointKind::Crash => 0,
        PointKind::Application => 1,
        PointKind::Warm => 2,
    };
    let volumes: Vec<VolumeColumn> = index.meta.point_volumes().map(volume_column).collect();
    let volumes = serde_json::to_string(&volumes).expect("names and numbers are JSON");
    tx.prepare_cached(
        "INSERT OR REPLACE INTO points
         (group_name, sequence, generation, epoch, time, kind, bookmark, definition, written_bytes, volumes, stored_bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, (
             SELECT sum(size_bytes) FROM segments WHERE group_name = ?1 AND sequence <= ?2 AND sequence >
             coalesce((SELECT max(sequence) FROM points WHERE group_name = ?1 AND sequence < ?2), 0)))",
    )?
    .execute(params![
        group,
        sequence,
        index.header.generation.0 as i64,
        point.epoch.0 as i64,
        point.time.0,
        kind,
        point.bookmark.as_ref().map(|name| name.as_str()),
        point.definition.0,
        point.written_bytes as i64,
        volumes,
    ])?;
    Ok(())
}

fn volume_column(volume: &VolumeRecord) -> VolumeColumn {
    VolumeColumn {
        name: volume.name.as_str().to_owned(),
        firmware: volume.kind == VolumeKind::Firmware,
        size_bytes: volume.size_bytes,
    }
}

/// Drops what the segments behind `last` said.
pub(super) fn drop_behind(
    tx: &Transaction<'_>,
    group: &GroupName,
    last: Sequence,
) -> rusqlite::Result<usize> {
    let of = params![group.as_str(), last.0 as i64];
    tx.execute("DELETE FROM points WHERE group_name = ? AND sequence > ?", of)?;
    tx.execute("DELETE FROM definitions WHERE group_name = ? AND sequence > ?", of)?;
    tx.execute("DELETE FROM segments WHERE group_name = ? AND sequence > ?", of)
}
