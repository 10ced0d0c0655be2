//! Choosing a point.

use chrono::{DateTime, SecondsFormat};
use journal_format::{BookmarkName, GroupName, PointId, Timestamp};

use crate::catalog::{Catalog, Point};
use crate::error::StoreError;

/// Which point is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// This one.
    Id(PointId),
    /// The newest that was cut at this time or before, by the protected site's clock.
    At(Timestamp),
    /// The newest.
    Latest,
    /// The newest with this name.
    Bookmark(BookmarkName),
}

pub(crate) fn select(catalog: &Catalog, group: &GroupName, selector: &Selector) -> Result<Point, StoreError> {
    let found = match selector {
        Selector::Id(id) => catalog.by_id(group, *id)?,
        Selector::At(time) => catalog.at_or_before(group, *time)?,
        Selector::Latest => catalog.latest(group)?,
        Selector::Bookmark(name) => catalog.by_bookmark(group, name.as_str())?,
    };
    match found {
        Some(point) => Ok(point),
        None if catalog.latest(group)?.is_none() => Err(StoreError::NoPoints { group: group.clone() }),
        None => {
            let (wanted, nearest) = nearest(catalog, group, selector)?;
            Err(StoreError::NoSuchPoint { group: group.clone(), wanted, nearest })
        }
    }
}

/// What was asked for, in words, and what there is near it.
fn nearest(
    catalog: &Catalog,
    group: &GroupName,
    selector: &Selector,
) -> Result<(String, Vec<String>), StoreError> {
    let (wanted, points) = match selector {
        Selector::Id(id) => {
            (format!("point {id}"), [catalog.id_before(group, *id)?, catalog.id_after(group, *id)?])
        }
        Selector::At(time) => {
            (format!("point at {} or before", rfc3339(*time)), [None, catalog.after(group, *time)?])
        }
        Selector::Latest => ("point".to_owned(), [None, None]),
        Selector::Bookmark(name) => {
            return Ok((format!("bookmark '{name}'"), catalog.bookmarks(group, 8)?));
        }
    };
    let listed = points.iter().flatten().map(|point| format!("{} ({})", point.id, rfc3339(point.time)));
    Ok((wanted, listed.collect()))
}

fn rfc3339(time: Timestamp) -> String {
    DateTime::from_timestamp_nanos(time.0).to_rfc3339_opts(SecondsFormat::Millis, true)
}
