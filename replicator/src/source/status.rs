//! What `thirdsite status` says of the protected site.

use std::sync::Arc;

use journal::{GroupStatus, KnownBlocks, ResyncStatus, Tracking};
use journal_format::GroupName;
use serde_json::{Value, json};

use super::member::Member;
use super::targets::LinkReport;
use crate::failure::Failure;

pub(super) fn report(
    members: &[Arc<Member>],
    failed: &[(GroupName, Failure)],
    known: Option<&KnownBlocks>,
    reloads: u64,
    targets: Option<Vec<Value>>,
) -> Value {
    let mut groups: Vec<Value> = members.iter().map(|member| group(member)).collect();
    for (name, failure) in failed {
        groups
            .push(json!({"name": name, "state": "failed", "detail": failure.message, "hint": failure.hint}));
    }
    let known = known.map(|known| {
        let known = known.statistics();
        json!({
            "blocks": known.entries,
            "segments": known.segments,
            "memory_bytes": known.memory_bytes,
            "disk_bytes": known.disk_bytes,
            "hits": known.hits,
            "misses": known.misses,
        })
    });
    json!({
        "role": "source",
        "version": env!("CARGO_PKG_VERSION"),
        "reloads": reloads,
        "known": known,
        "targets": targets,
        "groups": groups,
    })
}

fn group(member: &Member) -> Value {
    let status = member.group.status();
    let link = member.targets.link();
    let confirmed = member.targets.confirmed.newest();
    let lag = confirmed.map(|point| lag_seconds(member, &status, point));
    let (state, detail) = state(&status, &link, confirmed.is_some());
    let volumes = member.group.volumes().iter().zip(&status.joining).map(|(volume, joining)| {
        let export = format!("{}/{}", member.name(), volume.name);
        json!({"name": volume.name, "size_bytes": volume.size_bytes, "export": export, "joining": joining})
    });
    json!({
        "name": member.name(),
        "state": state,
        "detail": detail,
        "connected": link.connected,
        "lag_seconds": lag,
        "last_point": status.last_point.map(|point| json!({"id": point.point, "time": super::time_text(point.time)})),
        "confirmed_point": confirmed.map(|point| json!({"id": point.point, "time": super::time_text(point.time)})),
        "open_epoch": status.open_epoch,
        "head": status.head.map(|position| position.to_string()),
        "acknowledged": status.acknowledged.map(|position| position.to_string()),
        "resync": status.resync.map(|resync| json!({
            "percent": percent(&resync),
            "left_bytes": resync.left_bytes,
            "total_bytes": resync.total_bytes,
            "left_seconds": resync.left_seconds,
        })),
        "targets": member.targets.report(),
        "pair": member.pair_report(),
        "marks": status.marks,
        "sealed": status.sealed,
        "counters": status.counters,
        "volumes": volumes.collect::<Vec<_>>(),
    })
}

/// How far the recovery site is behind: nothing, if it has the last point and nothing was written since.
fn lag_seconds(member: &Member, status: &GroupStatus, confirmed: journal::SealedCut) -> f64 {
    let newest = status.last_point.is_none_or(|point| point.point == confirmed.point);
    if newest && !member.group.wants_cut() {
        return 0.0;
    }
    member.clock.now().seconds_since(confirmed.time)
}

/// The state in one word, and what it means.
pub(super) fn state(status: &GroupStatus, link: &LinkReport, confirmed: bool) -> (&'static str, String) {
    let reason = || link.reason.clone().unwrap_or_else(|| "no connection yet".to_owned());
    if !link.connected {
        return ("disconnected", format!("the recovery site is not connected: {}", reason()));
    }
    if let Some(resync) = status.resync.as_ref().filter(|_| !status.whole) {
        return ("syncing", resync_text(resync));
    }
    if status.marks.tracking != Tracking::Durable {
        let detail = "the intent map cannot be written: after a crash everything would be compared; check the journal's disk";
        return ("degraded", detail.to_owned());
    }
    match &link.reason {
        Some(reason) => ("refused", format!("the recovery site refuses: {reason}")),
        None if !confirmed => {
            ("syncing", "everything is read; the recovery site has not confirmed a point yet".to_owned())
        }
        None => ("protected", protected_text(status)),
    }
}

fn protected_text(status: &GroupStatus) -> String {
    let joining = status.joining.iter().filter(|joining| **joining).count();
    match (&status.resync, joining) {
        (Some(resync), 1..) => format!(
            "the recovery site confirms points; {joining} added volume(s) join them when all is sent: {} %",
            percent(resync)
        ),
        _ => "the recovery site confirms points".to_owned(),
    }
}

fn percent(resync: &ResyncStatus) -> u64 {
    (resync.total_bytes - resync.left_bytes) * 100 / resync.total_bytes.max(1)
}

fn resync_text(resync: &ResyncStatus) -> String {
    let left = resync.left_seconds.map_or_else(String::new, |seconds| format!(", about {seconds:.0} s left"));
    format!("degraded: resync {} %{left}; older points stay, no new one until it is done", percent(resync))
}
