//! `thirdsite store check`: the recovery site's word on a bucket.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use journal::{Clock, SystemClock};
use restore::{CheckedGroup, Checker, Place};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::place::{cache_options, place};
use crate::args::CheckArgs;
use crate::failure::{Failure, exit, store_failure, with_causes};
use crate::output::{print_json, print_table, progress, size};

/// Looks once, or until somebody ends it. Damage is a failure of a single look, after everything has been read and reported.
pub(crate) fn check(args: &CheckArgs, runtime: &Runtime) -> anyhow::Result<()> {
    let Place::Bucket(bucket) = place(&args.store, &args.bucket)? else {
        let hint = "a folder is verified by the daemon that writes it; 'thirdsite verify' reads it again";
        return Err(Failure::invalid(format!("'{}' is a folder, not a bucket", args.store), hint).into());
    };
    let identity = args.identity.as_deref().map(crate::identity::load).transpose()?;
    let mut checker = Checker::new(bucket, cache_options(&args.bucket), identity);
    let Some(every) = args.every else {
        let found = look(&mut checker).map_err(|error| store_failure(&error))?;
        report(args, &found)?;
        return damage(&found);
    };
    let ended = end_signals(runtime)?;
    loop {
        match look(&mut checker) {
            Ok(found) => report(args, &found)?,
            // It goes on: the bucket may be reached again.
            Err(error) => tracing::error!(
                error = with_causes(&error),
                hint = error.hint(),
                "a look at the bucket failed"
            ),
        }
        match ended.recv_timeout(every) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return Ok(()),
        }
    }
}

fn look(checker: &mut Checker) -> Result<Vec<CheckedGroup>, restore::StoreError> {
    checker.check(|| SystemClock.now(), &progress("verifying"))
}

/// Hears when the process is to end.
fn end_signals(runtime: &Runtime) -> anyhow::Result<Receiver<()>> {
    let (sender, ended) = channel();
    let _entered = runtime.enter();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    runtime.spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Nobody listens any more if the command has ended by itself.
        let _ = sender.send(());
    });
    Ok(ended)
}

fn report(args: &CheckArgs, found: &[CheckedGroup]) -> anyhow::Result<()> {
    if args.json {
        let groups: Vec<Value> = found.iter().map(describe).collect();
        return print_json(&json!({"store": args.store.to_string(), "groups": groups}));
    }
    let new = found.iter().any(|group| group.segments > 0 || group.receipted || !group.damaged.is_empty());
    if args.every.is_some() && !new {
        return Ok(());
    }
    let sequence = |position: Option<journal_format::Position>| {
        position.map_or_else(|| "-".to_owned(), |position| position.sequence.to_string())
    };
    let row = |group: &CheckedGroup| {
        vec![
            group.group.to_string(),
            sequence(group.head),
            sequence(group.checked),
            group.segments.to_string(),
            size(group.bytes),
            group.damaged.len().to_string(),
            if group.receipted { "put" } else { "-" }.to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    print_table(&["GROUP", "HEAD", "SOUND UP TO", "READ", "SIZE", "DAMAGED", "RECEIPT"], &rows);
    for group in found {
        for segment in &group.damaged {
            println!("group '{}', segment {}: {}", group.group, segment.sequence, segment.problem);
        }
        if let (Some(first), Some(last)) = (group.touched.first(), group.touched.last()) {
            println!("group '{}', points {first} to {last} rest on damaged segments", group.group);
        }
    }
    Ok(())
}

fn describe(group: &CheckedGroup) -> Value {
    let damaged = group.damaged.iter().map(|one| json!({"sequence": one.sequence, "problem": one.problem}));
    json!({
        "group": group.group,
        "head": group.head.map(|position| position.to_string()),
        "checked": group.checked.map(|position| position.to_string()),
        "segments": group.segments,
        "bytes": group.bytes,
        "damaged": damaged.collect::<Vec<_>>(),
        "touched_points": group.touched,
        "receipted": group.receipted,
    })
}

fn damage(found: &[CheckedGroup]) -> anyhow::Result<()> {
    let segments: usize = found.iter().map(|group| group.damaged.len()).sum();
    if segments == 0 {
        return Ok(());
    }
    let points: usize = found.iter().map(|group| group.touched.len()).sum();
    let hint = "nothing behind the damage was receipted; restore the objects if the bucket keeps versions, or name a second store with --store when restoring";
    let message = format!("{segments} segments are damaged; {points} points rest on them");
    Err(Failure::new(exit::CORRUPT, message, hint).into())
}
