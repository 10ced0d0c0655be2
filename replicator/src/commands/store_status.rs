//! `thirdsite status --store`: what a store knows of its groups, without any daemon.

use journal::{Clock, SystemClock};
use journal_format::{GroupName, Timestamp};
use restore::{GroupSummary, HeartbeatRecord, Store};
use serde_json::{Value, json};

use super::place::open_locations;
use crate::args::StatusArgs;
use crate::failure::{Failure, store_failure};
use crate::output::{print_json, print_table, rfc3339, size};

/// Prints the actual RPO, and what would be lost now, from the points and from what the sources last said.
pub(super) fn store_status(args: &StatusArgs) -> anyhow::Result<()> {
    let store = open_locations(&args.store, &args.bucket)?;
    let now = SystemClock.now();
    let groups = store.groups().map_err(|error| store_failure(&error))?;
    let describe = |group: &GroupSummary| {
        let seed_of = store.seed_of(&group.group).map_err(|error| store_failure(&error))?;
        Ok(describe(group, seed_of.as_ref(), now))
    };
    let groups = groups.iter().map(describe).collect::<Result<Vec<Value>, Failure>>()?;
    let answer = json!({
        "role": "store",
        "version": env!("CARGO_PKG_VERSION"),
        "store": store.location(),
        "groups": groups,
    });
    if args.json {
        return print_json(&answer);
    }
    print(&store, &groups);
    Ok(())
}

fn describe(group: &GroupSummary, seed_of: Option<&GroupName>, now: Timestamp) -> Value {
    let newest = group.newest.as_ref();
    json!({
        "name": group.group,
        "seed_of": seed_of,
        "actual_rpo_seconds": newest.map(|point| now.seconds_since(point.time)),
        "points": group.points,
        "segments": group.segments,
        "stored_bytes": group.stored_bytes,
        "head": group.head.map(|position| position.to_string()),
        "last_point": newest.map(|point| json!({"id": point.id, "time": rfc3339(point.time)})),
        "heartbeat": group.heartbeat.as_ref().map(|said| heartbeat(said, now)),
        "loss": loss(group, now),
    })
}

fn heartbeat(said: &HeartbeatRecord, now: Timestamp) -> Value {
    let cut = said.newest_cut.map(|(epoch, time)| json!({"epoch": epoch, "time": rfc3339(time)}));
    json!({
        "source_time": rfc3339(said.source_time),
        "silent_seconds": now.seconds_since(said.received_at),
        "newest_cut": cut,
        "backlog_bytes": said.backlog_bytes,
        "backlog_segments": said.backlog_segments,
        "state": said.state,
    })
}

/// What would be lost if the protected site were gone now. What it wrote since it last said anything is not known.
fn loss(group: &GroupSummary, now: Timestamp) -> Value {
    let Some(point) = &group.newest else { return Value::Null };
    let said = group.heartbeat.as_ref();
    let known =
        said.and_then(|said| said.newest_cut).map(|(_, time)| time.seconds_since(point.time).max(0.0));
    json!({
        "since": rfc3339(point.time),
        "seconds_max": now.seconds_since(point.time),
        "cut_seconds": known,
        "sealed_bytes": said.map(|said| said.backlog_bytes),
    })
}

fn print(store: &Store, groups: &[Value]) {
    println!("store {}", store.location());
    if groups.is_empty() {
        println!("no groups yet");
        return;
    }
    let rows: Vec<Vec<String>> = groups.iter().map(row).collect();
    print_table(&["GROUP", "ACTUAL RPO", "POINTS", "LAST POINT", "TIME", "SOURCE SAID"], &rows);
    for group in groups.iter().filter(|group| !group["loss"].is_null()) {
        println!("{}", loss_statement(group));
    }
}

fn row(group: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let seconds = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), |s| format!("{s:.1} s"));
    let said = &group["heartbeat"];
    let said = match (said["state"].as_str(), said["silent_seconds"].as_f64()) {
        (Some(state), Some(ago)) => format!("{state}, {ago:.0} s ago"),
        _ => "-".to_owned(),
    };
    vec![
        text(&group["name"]),
        seconds(&group["actual_rpo_seconds"]),
        group["points"].to_string(),
        text(&group["last_point"]["id"]),
        text(&group["last_point"]["time"]),
        said,
    ]
}

fn loss_statement(group: &Value) -> String {
    let loss = &group["loss"];
    let (name, since) = (&group["name"], &loss["since"]);
    let (name, since) = (name.as_str().unwrap_or("-"), since.as_str().unwrap_or("-"));
    let all = loss["seconds_max"].as_f64().unwrap_or_default();
    let known = match (loss["cut_seconds"].as_f64(), loss["sealed_bytes"].as_u64()) {
        (Some(seconds), Some(bytes)) => {
            format!(
                "; of that, {seconds:.1} s and {} had been sealed and not sent when the source last spoke",
                size(bytes)
            )
        }
        _ => String::new(),
    };
    format!(
        "group '{name}': if the protected site is lost now, what was written since {since} is lost, at most {all:.1} s{known}"
    )
}
