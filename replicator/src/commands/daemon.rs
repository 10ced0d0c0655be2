//! Commands that ask a running daemon.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::store_status::store_status;
use crate::args::{CutArgs, StatusArgs};
use crate::control::{ControlRequest, ask};
use crate::failure::Failure;
use crate::output::{print_json, print_table, size};

const DEFAULT_CONTROLS: [&str; 2] = ["/run/thirdsite/source.sock", "/run/thirdsite/site.sock"];

pub(crate) fn cut(args: &CutArgs) -> anyhow::Result<()> {
    let request = ControlRequest::Cut {
        group: args.group.clone(),
        bookmark: args.bookmark.clone(),
        wait_seconds: args.wait.then(|| args.timeout.as_secs().max(1)),
    };
    let answer = ask(&args.agent.control, &request)?;
    if args.json {
        return print_json(&answer);
    }
    let text = |key: &str| answer[key].as_str().unwrap_or("-").to_owned();
    let state = match (answer["is_point"] == true, answer["confirmed"] == true) {
        (true, true) => "a point, confirmed by the recovery site",
        (true, false) => "a point, sealed in the journal",
        (false, _) => "not a point: a resync is under way; the first cut after it will be one",
    };
    println!(
        "group     {}\npoint     {}\ntime      {}\nposition  {}\nstate     {state}",
        text("group"),
        text("point"),
        text("time"),
        text("position")
    );
    Ok(())
}

pub(crate) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    if !args.store.is_empty() {
        return store_status(args);
    }
    let named = !args.control.is_empty();
    let defaults = || DEFAULT_CONTROLS.iter().map(PathBuf::from).filter(|path| path.exists()).collect();
    let controls: Vec<PathBuf> = if named { args.control.clone() } else { defaults() };
    if controls.is_empty() {
        let hint = "start a daemon, name its control socket with --control, or a store with --store";
        return Err(Failure::unreachable("no daemon runs on this host", hint).into());
    }
    for control in &controls {
        let answer = ask(control, &ControlRequest::Status {})?;
        if args.json { print_json(&answer)? } else { print_status(control, &answer) }
    }
    Ok(())
}

fn print_status(control: &Path, answer: &Value) {
    let role = answer["role"].as_str().unwrap_or("-");
    println!("{role} ({})", control.display());
    let groups = answer["groups"].as_array().cloned().unwrap_or_default();
    if groups.is_empty() {
        println!("no groups yet");
        return;
    }
    if role == "source" {
        let rows: Vec<_> = groups.iter().map(source_row).collect();
        print_table(&["GROUP", "STATE", "LAG", "BACKLOG", "LAST POINT", "CONFIRMED POINT", "DETAIL"], &rows);
        let rows: Vec<_> = groups.iter().flat_map(target_rows).collect();
        if rows.len() > groups.len() {
            println!();
            print_table(&["GROUP", "TARGET", "KIND", "STATE", "CONFIRMED POINT", "DETAIL"], &rows);
        }
    } else {
        let rows: Vec<_> = groups.iter().map(site_row).collect();
        print_table(&["GROUP", "STATE", "ACTUAL RPO", "POINTS", "LAST POINT", "TIME", "DETAIL"], &rows);
    }
}

fn source_row(group: &Value) -> Vec<String> {
    let backlog = group["counters"]["backlog_bytes"].as_u64().map_or_else(|| "-".to_owned(), size);
    vec![
        text(&group["name"]),
        text(&group["state"]),
        seconds(&group["lag_seconds"]),
        backlog,
        text(&group["last_point"]["id"]),
        text(&group["confirmed_point"]["id"]),
        text(&group["detail"]),
    ]
}

fn target_rows(group: &Value) -> Vec<Vec<String>> {
    let row = |target: &Value| {
        let reason = |key: &str| target[key].as_str();
        let (state, detail) = match (reason("lost_place"), target["connected"] == true, reason("reason")) {
            (Some(reason), ..) => ("behind", reason),
            (None, true, None) => ("connected", ""),
            (None, true, Some(reason)) => ("refused", reason),
            (None, false, reason) => ("disconnected", reason.unwrap_or("no connection yet")),
        };
        vec![
            text(&group["name"]),
            text(&target["name"]),
            text(&target["kind"]),
            state.to_owned(),
            text(&target["confirmed_point"]["id"]),
            detail.to_owned(),
        ]
    };
    group["targets"].as_array().map_or_else(Vec::new, |targets| targets.iter().map(row).collect())
}

fn site_row(group: &Value) -> Vec<String> {
    vec![
        text(&group["name"]),
        text(&group["state"]),
        seconds(&group["actual_rpo_seconds"]),
        group["points"].as_u64().map_or_else(|| "-".to_owned(), |points| points.to_string()),
        text(&group["last_point"]["id"]),
        text(&group["last_point"]["time"]),
        text(&group["detail"]),
    ]
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn seconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"))
}
