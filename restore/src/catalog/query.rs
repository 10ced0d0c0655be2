//! Questions to the catalog.

use journal_format::{GroupName, PointId, Position, Sequence, Timestamp};
use rusqlite::{OptionalExtension, Params, Row, params};

use super::rows::{
    HEARTBEAT_COLUMNS, POINT_COLUMNS, SEGMENT_COLUMNS, heartbeat_from, point_from, segment_from,
};
use super::{Catalog, GroupSummary, HeartbeatRecord, Point, SegmentRow};
use crate::error::StoreError;
use transport::Heartbeat;

/// Of the segments of a group.
const UNCHECKED: &str = "group_name = ?1 AND NOT EXISTS (SELECT 1 FROM checked WHERE
     checked.group_name = segments.group_name AND checked.sequence = segments.sequence AND checked.hash = segments.hash)";

impl Catalog {
    /// Groups that have a segment or a heartbeat.
    pub(crate) fn group_names(&self) -> Result<Vec<GroupName>, StoreError> {
        let sql =
            "SELECT DISTINCT group_name FROM segments UNION SELECT group_name FROM heartbeats ORDER BY 1";
        let names: Vec<String> = self.rows(sql, [], |row| row.get(0))?;
        names.iter().map(|name| name.parse().map_err(|error| self.bad_row(format!("{error}")))).collect()
    }

    /// What is known of a group.
    pub(crate) fn summary(&self, group: &GroupName) -> Result<GroupSummary, StoreError> {
        let of = params![group.as_str()];
        let sql = "SELECT count(*), coalesce(sum(size_bytes), 0) FROM segments WHERE group_name = ?";
        let counts = self.row(sql, of, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        let (segments, stored_bytes) = counts.unwrap_or_default();
        let sql = "SELECT count(*) FROM points WHERE group_name = ?";
        let points = self.row(sql, of, |row| row.get::<_, i64>(0))?.unwrap_or_default();
        let sql = format!(
            "SELECT {SEGMENT_COLUMNS} FROM segments WHERE group_name = ? ORDER BY sequence DESC LIMIT 1"
        );
        let head = self.row(&sql, of, segment_from)?.map(|row| row.position);
        Ok(GroupSummary {
            group: group.clone(),
            head,
            segments: segments as u64,
            stored_bytes: stored_bytes as u64,
            points: points as u64,
            newest: self.latest(group)?,
            heartbeat: self.heartbeat(group)?,
        })
    }

    /// All points of a group, oldest first.
    pub(crate) fn points(&self, group: &GroupName) -> Result<Vec<Point>, StoreError> {
        let sql = format!("SELECT {POINT_COLUMNS} FROM points WHERE group_name = ? ORDER BY sequence");
        self.rows(&sql, params![group.as_str()], point_from)
    }

    pub(crate) fn latest(&self, group: &GroupName) -> Result<Option<Point>, StoreError> {
        self.one_point("TRUE", params![group.as_str()], "DESC")
    }

    pub(crate) fn by_id(&self, group: &GroupName, id: PointId) -> Result<Option<Point>, StoreError> {
        let of = params![group.as_str(), id.generation.0 as i64, id.epoch.0 as i64];
        self.one_point("generation = ? AND epoch = ?", of, "DESC")
    }

    pub(crate) fn by_bookmark(&self, group: &GroupName, name: &str) -> Result<Option<Point>, StoreError> {
        self.one_point("bookmark = ?", params![group.as_str(), name], "DESC")
    }

    /// The newest point that was cut at `time` or before.
    pub(crate) fn at_or_before(
        &self,
        group: &GroupName,
        time: Timestamp,
    ) -> Result<Option<Point>, StoreError> {
        self.one_point("time <= ?", params![group.as_str(), time.0], "DESC")
    }

    /// The oldest point that was cut after `time`.
    pub(crate) fn after(&self, group: &GroupName, time: Timestamp) -> Result<Option<Point>, StoreError> {
        self.one_point("time > ?", params![group.as_str(), time.0], "ASC")
    }

    /// The newest point whose id is lower.
    pub(crate) fn id_before(&self, group: &GroupName, id: PointId) -> Result<Option<Point>, StoreError> {
        let of = params![group.as_str(), id.generation.0 as i64, id.epoch.0 as i64];
        self.one_point("(generation, epoch) < (?, ?)", of, "DESC")
    }

    /// The oldest point whose id is higher.
    pub(crate) fn id_after(&self, group: &GroupName, id: PointId) -> Result<Option<Point>, StoreError> {
        let of = params![group.as_str(), id.generation.0 as i64, id.epoch.0 as i64];
        self.one_point("(generation, epoch) > (?, ?)", of, "ASC")
    }

    /// Names of all bookmarks of a group, newest first, at most `limit`.
    pub(crate) fn bookmarks(&self, group: &GroupName, limit: u32) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT bookmark FROM points WHERE group_name = ? AND bookmark IS NOT NULL
                   ORDER BY sequence DESC LIMIT ?";
        self.rows(sql, params![group.as_str(), limit], |row| row.get(0))
    }

    /// The chain up to a segment, oldest first.
    pub(crate) fn chain(&self, group: &GroupName, last: Sequence) -> Result<Vec<SegmentRow>, StoreError> {
        let sql = format!(
            "SELECT {SEGMENT_COLUMNS} FROM segments WHERE group_name = ? AND sequence <= ? ORDER BY sequence"
        );
        self.rows(&sql, params![group.as_str(), last.0 as i64], segment_from)
    }

    /// Segments of a group before one, newest first.
    pub(crate) fn segments_before(
        &self,
        group: &GroupName,
        before: Sequence,
        limit: usize,
    ) -> Result<Vec<SegmentRow>, StoreError> {
        let sql = format!(
            "SELECT {SEGMENT_COLUMNS} FROM segments WHERE group_name = ? AND sequence < ? ORDER BY sequence DESC LIMIT ?"
        );
        self.rows(&sql, params![group.as_str(), before.0 as i64, limit as i64], segment_from)
    }

    /// Segments of a group's chain that nobody has read whole, oldest first.
    pub(crate) fn unchecked(&self, group: &GroupName) -> Result<Vec<SegmentRow>, StoreError> {
        let sql = format!("SELECT {SEGMENT_COLUMNS} FROM segments WHERE {UNCHECKED} ORDER BY sequence");
        self.rows(&sql, params![group.as_str()], segment_from)
    }

    /// The last segment of a group's chain before the first that nobody has read whole.
    pub(crate) fn checked_up_to(&self, group: &GroupName) -> Result<Option<Position>, StoreError> {
        let sql = format!(
            "SELECT {SEGMENT_COLUMNS} FROM segments WHERE group_name = ?1 AND sequence <
             coalesce((SELECT min(sequence) FROM segments WHERE {UNCHECKED}), {})
             ORDER BY sequence DESC LIMIT 1",
            i64::MAX
        );
        Ok(self.row(&sql, params![group.as_str()], segment_from)?.map(|row| row.position))
    }

    /// Remembers that a segment was read whole, with all that it refers to.
    pub(crate) fn put_checked(&self, group: &GroupName, row: &SegmentRow) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO checked (group_name, sequence, hash) VALUES (?, ?, ?)";
        let values = params![group.as_str(), row.position.sequence.0 as i64, row.position.hash.0];
        let put = self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values));
        put.map(drop).map_err(|source| self.failed(source))
    }

    pub(crate) fn heartbeat(&self, group: &GroupName) -> Result<Option<HeartbeatRecord>, StoreError> {
        let sql = format!("SELECT {HEARTBEAT_COLUMNS} FROM heartbeats WHERE group_name = ?");
        self.row(&sql, params![group.as_str()], heartbeat_from)
    }

    /// Keeps what a source said of itself.
    pub(crate) fn put_heartbeat(
        &self,
        group: &GroupName,
        heartbeat: &Heartbeat,
        received_at: Timestamp,
    ) -> Result<(), StoreError> {
        let cut = heartbeat.newest_cut;
        let sql = format!(
            "INSERT OR REPLACE INTO heartbeats (group_name, {HEARTBEAT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        );
        let values = params![
            group.as_str(),
            heartbeat.now.0,
            cut.map(|cut| cut.epoch.0 as i64),
            cut.map(|cut| cut.time.0),
            heartbeat.backlog_bytes as i64,
            heartbeat.backlog_segments as i64,
            heartbeat.state,
            received_at.0,
        ];
        let put = self.connection.prepare_cached(&sql).and_then(|mut statement| statement.execute(values));
        put.map(drop).map_err(|source| self.failed(source))
    }

    fn one_point(
        &self,
        condition: &str,
        values: impl Params,
        order: &str,
    ) -> Result<Option<Point>, StoreError> {
        let sql = format!(
            "SELECT {POINT_COLUMNS} FROM points WHERE group_name = ? AND {condition} ORDER BY sequence {order} LIMIT 1"
        );
        self.row(&sql, values, point_from)
    }

    fn row<T>(
        &self,
        sql: &str,
        values: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(values, read).optional())
            .map_err(|source| self.failed(source))
    }

    fn rows<T>(
        &self,
        sql: &str,
        values: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_map(values, read)?.collect())
            .map_err(|source| self.failed(source))
    }
}
