//! `thirdsite export` and `thirdsite restore`: the bytes of a point for whoever needs them.

use std::sync::Arc;

use journal_nbd::{Server, ServerOptions};
use restore::{
    Access, ImageError, ImageOptions, PointView, ProgramError, ViewOptions, exports_of, restore_volume,
};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use super::place::open_store;
use super::point::select;
use crate::args::{ExportArgs, ImageFormat, PointArg, RestoreArgs, StoreArg};
use crate::failure::{Failure, exit, store_failure, with_causes};
use crate::output::{print_json, progress, rfc3339, size};
use crate::settings::Listen;
use crate::source::bind;

/// Opens the point that the arguments name.
pub(super) fn open_point(
    group: &journal_format::GroupName,
    point: &PointArg,
    store: &StoreArg,
) -> Result<Arc<PointView>, Failure> {
    let store = open_store(store)?;
    let point = select(&store, group, point)?;
    let view = store.open_point(&point, &ViewOptions::default()).map_err(|error| store_failure(&error))?;
    info!(
        point = %point.id,
        time = rfc3339(point.time),
        open_ms = view.open_duration().as_millis(),
        map = size(view.map_bytes()),
        "point is open"
    );
    Ok(view)
}

/// Serves the volumes of a point until SIGTERM or SIGINT.
pub(crate) async fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let view = open_point(&args.group, &args.point, &args.store)?;
    let access = if args.writable { Access::Overlay(&args.scratch) } else { Access::ReadOnly };
    let exports = Arc::new(exports_of(&view, access).map_err(|error| store_failure(&error))?);
    let listener = bind(&args.listen)?;
    let address = match &args.listen {
        Listen::Unix(_) => args.listen.to_string(),
        // The system has chosen a port if it was asked to.
        Listen::Tcp(_) => listener.to_string(),
    };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let server = Server::start(vec![listener], exports, ServerOptions::default())?;
    let uris: Vec<(String, String)> = view
        .volumes()
        .iter()
        .map(|volume| (volume.name.to_string(), uri(&address, volume.name.as_str())))
        .collect();
    if args.json {
        let exports: Vec<Value> =
            uris.iter().map(|(name, uri)| json!({"volume": name, "uri": uri})).collect();
        print_json(&json!({
            "group": args.group,
            "point": view.point().id,
            "listen": address,
            "writable": args.writable,
            "exports": exports,
        }))?;
    } else {
        println!("point {} of {}", view.point().id, rfc3339(view.point().time));
        uris.iter().for_each(|(_, uri)| println!("{uri}"));
        let kind = if args.writable { "writes are kept until it ends" } else { "read-only" };
        println!("serving ({kind}); ends with Ctrl-C or SIGTERM");
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::task::spawn_blocking(move || server.shutdown()).await?;
    Ok(())
}

/// Where a client finds a volume. <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>
fn uri(address: &str, volume: &str) -> String {
    match address.strip_prefix("unix:") {
        Some(path) => format!("nbd+unix:///{volume}?socket={path}"),
        None => format!("nbd://{address}/{volume}"),
    }
}

/// Writes a volume of a point to a file or device.
pub(crate) fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let view = open_point(&args.group, &args.point, &args.store)?;
    let volume = view.volume(&args.volume).map_err(|error| store_failure(&error))?;
    let format = match args.format {
        ImageFormat::Raw => restore::ImageFormat::Raw,
        ImageFormat::Qcow2 => restore::ImageFormat::Qcow2,
    };
    let options = ImageOptions { format, overwrite: args.overwrite };
    let done =
        restore_volume(&volume, &args.output, options, &progress("restoring")).map_err(|e| failure(&e))?;
    let seconds = done.duration.as_secs_f64();
    if args.json {
        return print_json(&json!({
            "group": args.group,
            "point": view.point().id,
            "volume": args.volume,
            "output": args.output,
            "size_bytes": done.size_bytes,
            "data_bytes": done.data_bytes,
            "seconds": seconds,
        }));
    }
    println!(
        "volume '{}' of point {} of {} is in {}: {}, {} of it data, in {seconds:.1} s",
        args.volume,
        view.point().id,
        rfc3339(view.point().time),
        args.output.display(),
        size(done.size_bytes),
        size(done.data_bytes),
    );
    Ok(())
}

fn failure(error: &ImageError) -> Failure {
    match error {
        ImageError::Store(error) => store_failure(error),
        ImageError::Program(error) => program_failure(error),
        error => Failure::of(error, error.kind(), error.hint()),
    }
}

/// A failure from a program of the host.
pub(super) fn program_failure(error: &ProgramError) -> Failure {
    let code = match error {
        ProgramError::Start { .. } => exit::UNREACHABLE,
        ProgramError::Failed { .. } => exit::FAILED,
    };
    Failure::new(code, with_causes(error), error.hint())
}
