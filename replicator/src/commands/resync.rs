//! `thirdsite resync`: asks an agent to compare everything of a group with the recovery site.

use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use crate::args::ResyncArgs;
use crate::control::{ControlRequest, ask};
use crate::output::{print_json, progress, size};

const PAUSE: Duration = Duration::from_millis(200);
/// The cut behind the resync waits for its receipt this long before it is asked for again.
const RECEIPT_SECONDS: u64 = 3600;

pub(crate) fn resync(args: &ResyncArgs) -> anyhow::Result<()> {
    let ResyncArgs { group, full, .. } = args;
    let mut answer = ask(&args.agent.control, &ControlRequest::Resync { group: group.clone(), full: *full })?;
    if args.wait {
        watch(args)?;
        let cut =
            ControlRequest::Cut { group: group.clone(), bookmark: None, wait_seconds: Some(RECEIPT_SECONDS) };
        answer["point"] = ask(&args.agent.control, &cut)?["point"].clone();
    }
    if args.json {
        return print_json(&answer);
    }
    let bytes = answer["total_bytes"].as_u64().map_or_else(|| "-".to_owned(), size);
    match answer["point"].as_str() {
        Some(point) => println!("{bytes} compared; the recovery site has confirmed point {point}"),
        None => println!("{bytes} are being compared; 'thirdsite status' shows how far it is"),
    }
    Ok(())
}

/// Shows the progress until nothing is left.
fn watch(args: &ResyncArgs) -> anyhow::Result<()> {
    let show = progress("comparing");
    loop {
        let status = ask(&args.agent.control, &ControlRequest::Status {})?;
        let groups = status["groups"].as_array().cloned().unwrap_or_default();
        let name = json!(args.group);
        let resync = groups.iter().find(|group| group["name"] == name).map(|group| &group["resync"]);
        let Some(resync) = resync.filter(|resync| !resync.is_null()) else { return Ok(()) };
        let bytes = |key: &str| resync[key].as_u64().unwrap_or(0);
        show(bytes("total_bytes") - bytes("left_bytes"), bytes("total_bytes"));
        sleep(PAUSE);
    }
}
