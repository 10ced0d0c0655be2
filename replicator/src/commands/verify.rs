//! `thirdsite verify`: whether a store is whole.

use restore::{GroupReport, verify_store};
use serde_json::{Value, json};

use super::place::open_store;
use crate::args::VerifyArgs;
use crate::failure::{Failure, exit, store_failure};
use crate::output::{print_json, print_table, progress, size};

/// Re-hashes everything. Damage is a failure, after everything has been read and reported.
pub(crate) fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let store = open_store(&args.store)?;
    let reports = verify_store(&store, &progress("verifying")).map_err(|error| store_failure(&error))?;
    if args.json {
        print_json(
            &json!({"groups": reports.iter().map(describe).collect::<Vec<_>>(), "whole": whole(&reports)}),
        )?;
    } else if reports.is_empty() {
        println!("the store is empty");
    } else {
        print(&reports);
    }
    if whole(&reports) {
        return Ok(());
    }
    let segments: usize = reports.iter().map(|report| report.damaged.len()).sum();
    let points: usize = reports.iter().map(|report| report.touched.len()).sum();
    let hint = "points before the damage are whole: restore from them; keep the store for analysis and check the disk under it";
    let message = format!("{segments} segments are damaged; {points} points rest on them");
    Err(Failure::new(exit::CORRUPT, message, hint).into())
}

fn whole(reports: &[GroupReport]) -> bool {
    reports.iter().all(|report| report.damaged.is_empty())
}

fn describe(report: &GroupReport) -> Value {
    let damaged = report.damaged.iter().map(|one| json!({"sequence": one.sequence, "problem": one.problem}));
    json!({
        "group": report.group,
        "seed_of": report.seed_of,
        "segments": report.segments,
        "bytes": report.bytes,
        "whole_points": report.points,
        "damaged": damaged.collect::<Vec<_>>(),
        "touched_points": report.touched,
    })
}

fn print(reports: &[GroupReport]) {
    let row = |report: &GroupReport| {
        let of = report.seed_of.as_ref().map_or_else(String::new, |of| format!(" (seed of {of})"));
        vec![
            format!("{}{of}", report.group),
            report.segments.to_string(),
            size(report.bytes),
            report.points.to_string(),
            report.touched.len().to_string(),
            report.damaged.len().to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = reports.iter().map(row).collect();
    print_table(&["GROUP", "SEGMENTS", "SIZE", "WHOLE POINTS", "TOUCHED POINTS", "DAMAGED SEGMENTS"], &rows);
    for report in reports {
        for segment in &report.damaged {
            println!("group '{}', segment {}: {}", report.group, segment.sequence, segment.problem);
        }
        if let (Some(first), Some(last)) = (report.touched.first(), report.touched.last()) {
            println!("group '{}', points {first} to {last} rest on damaged segments", report.group);
        }
    }
}
