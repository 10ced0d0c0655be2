//! `thirdsite point` and `thirdsite verify`: what is in a store, and whether it is whole.

use journal_format::GroupName;
use restore::{Point, Selector, Store};
use serde_json::{Value, json};

use super::place::open_store;
use crate::args::{PointArg, StoreArg};
use crate::failure::{Failure, store_failure};
use crate::output::{print_json, print_table, rfc3339, size};

/// Chooses a point of a group.
pub(super) fn select(store: &Store, group: &GroupName, arg: &PointArg) -> Result<Point, Failure> {
    let selector = match (arg.point, arg.at, &arg.bookmark) {
        (Some(id), ..) => Selector::Id(id),
        (_, Some(time), _) => {
            Selector::At(journal_format::Timestamp(time.timestamp_nanos_opt().unwrap_or(i64::MAX)))
        }
        (_, _, Some(name)) => Selector::Bookmark(name.clone()),
        _ => Selector::Latest,
    };
    store.select(group, &selector).map_err(|error| store_failure(&error))
}

pub(crate) fn list_points(
    group: &GroupName,
    store: &StoreArg,
    last: Option<usize>,
    as_json: bool,
) -> anyhow::Result<()> {
    let store = open_store(store)?;
    let mut points = store.points(group).map_err(|error| store_failure(&error))?;
    let seed_of = store.seed_of(group).map_err(|error| store_failure(&error))?;
    if let Some(last) = last {
        points.drain(..points.len().saturating_sub(last));
    }
    if as_json {
        let points: Vec<Value> = points.iter().map(describe).collect();
        return print_json(&json!({"group": group, "seed_of": seed_of, "points": points}));
    }
    if let Some(of) = seed_of {
        println!("group '{group}' is the seed of group '{of}': blocks that were carried here, no points");
        return Ok(());
    }
    if points.is_empty() {
        println!("group '{group}' has no recovery point yet");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = points.iter().map(row).collect();
    print_table(&["POINT", "TIME", "KIND", "WRITTEN", "STORED", "BOOKMARK"], &rows);
    Ok(())
}

/// A point for programs.
pub(super) fn describe(point: &Point) -> Value {
    let volumes =
        point.volumes.iter().map(|volume| json!({"name": volume.name, "size_bytes": volume.size_bytes}));
    json!({
        "id": point.id,
        "time": rfc3339(point.time),
        "kind": point.kind.as_str(),
        "bookmark": point.bookmark,
        "written_bytes": point.written_bytes,
        "stored_bytes": point.stored_bytes,
        "volumes": volumes.collect::<Vec<_>>(),
    })
}

fn row(point: &Point) -> Vec<String> {
    vec![
        point.id.to_string(),
        rfc3339(point.time),
        point.kind.as_str().to_owned(),
        size(point.written_bytes),
        size(point.stored_bytes),
        point.bookmark.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
    ]
}
