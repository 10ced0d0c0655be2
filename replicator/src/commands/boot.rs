//! `thirdsite boot`: a VM of a point, until it turns itself off or somebody ends it.

use std::time::Instant;

use restore::{BootError, BootOptions, BootReport, Console, Vm};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use super::recover::{open_point, program_failure};
use crate::args::{BootArgs, Network};
use crate::failure::{Failure, exit, store_failure};
use crate::output::{print_json, rfc3339};

/// Boots, reports when the guest is up, and waits for its end. QEMU is tied to the calling thread, which must be the main one.
pub(crate) fn boot(args: &BootArgs, runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
    let began = Instant::now();
    let view = open_point(&args.group, &args.point, &args.store)?;
    let point = view.point().clone();
    let mut vm = Vm::start(&view, options(args, began)).map_err(|error| failure(&error))?;
    info!(point = %point.id, "QEMU runs; waiting for the guest");
    let stopper = vm.stopper();
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    runtime.spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopper.stop();
    });
    let report = match vm.wait_until_ready() {
        Ok(report) => report,
        Err(BootError::Stopped) => return Ok(()),
        Err(error) => return Err(failure(&error).into()),
    };
    print_report(args, &point, &report)?;
    if args.check {
        return Ok(());
    }
    vm.wait_until_ended().map_err(|error| failure(&error))?;
    Ok(())
}

fn options(args: &BootArgs, began: Instant) -> BootOptions {
    // Standard output is for the report if that is for programs.
    let default = if args.json { Console::Error } else { Console::Output };
    BootOptions {
        vm: args.vm.clone(),
        console: args.console.clone().map_or(default, Console::File),
        ready: args.ready.clone(),
        timeout: args.timeout,
        network: match args.network {
            Network::Isolated => restore::Network::Isolated,
            Network::User => restore::Network::User,
        },
        keep: args.keep.clone(),
        scratch: args.scratch.clone(),
        began,
    }
}

fn print_report(args: &BootArgs, point: &restore::Point, report: &BootReport) -> anyhow::Result<()> {
    if args.json {
        return print_json(&json!({
            "group": args.group,
            "vm": report.vm,
            "point": point.id,
            "time": rfc3339(point.time),
            "open_seconds": report.open_seconds,
            "start_seconds": report.start_seconds,
            "ready_seconds": report.ready_seconds,
            "ready_text_seen": report.ready_text_seen,
            "process_id": report.process_id,
        }));
    }
    let how = if report.ready_text_seen {
        "is up"
    } else {
        "runs (its definition has no text that says when it is up)"
    };
    println!(
        "VM '{}' of point {} of {} {how} after {:.1} s (process {})",
        report.vm,
        point.id,
        rfc3339(point.time),
        report.ready_seconds,
        report.process_id
    );
    let kept = args.keep.as_ref().map_or("are gone then; --keep would keep them".to_owned(), |folder| {
        format!("stay in {}", folder.display())
    });
    println!("It ends with Ctrl-C or SIGTERM; its writes {kept}.");
    Ok(())
}

fn failure(error: &BootError) -> Failure {
    match error {
        BootError::Store(error) => store_failure(error),
        BootError::Program(error) => program_failure(error),
        BootError::NotReady { .. } => Failure::new(exit::TIMEOUT, error.to_string(), error.hint()),
        error => Failure::of(error, error.kind(), error.hint()),
    }
}
