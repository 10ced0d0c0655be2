//! `thirdsite source reload` and `source limit`: what changes while the agent runs.

use std::path::Path;
use std::time::Duration;

use journal_format::GroupName;
use transport::PeerName;

use crate::control::{ControlRequest, ask, ask_until};
use crate::output::{print_json, size};

/// Lets the agent take in its settings and returns when it works by them.
pub(crate) fn reload(
    control: &Path,
    accept_resize: Vec<String>,
    timeout: Duration,
    json: bool,
) -> anyhow::Result<()> {
    let before = ask(control, &ControlRequest::Status {})?["reloads"].clone();
    let answer = ask(control, &ControlRequest::Reload { accept_resize })?;
    // The control socket is made anew.
    ask_until(control, timeout, "the agent does not answer yet", |status| status["reloads"] != before)?;
    if json {
        return print_json(&answer);
    }
    let list = |key: &str| {
        let names = answer[key].as_array().into_iter().flatten();
        names.filter_map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
    };
    println!("the agent works by its new settings");
    for (key, text) in [("added", "added"), ("removed", "removed")] {
        if !list(key).is_empty() {
            println!("{text}: {}", list(key));
        }
    }
    Ok(())
}

/// Limits how fast a target is sent to.
pub(crate) fn limit(
    control: &Path,
    target: &PeerName,
    rate_max: Option<u64>,
    group: Option<GroupName>,
    json: bool,
) -> anyhow::Result<()> {
    let of_group = group.as_ref().map_or_else(String::new, |group| format!(" of group {group}"));
    let answer = ask(control, &ControlRequest::Limit { target: target.to_string(), group, rate_max })?;
    if json {
        return print_json(&answer);
    }
    match rate_max {
        Some(rate) => println!("target {target} is sent {}/s{of_group} at most", size(rate)),
        None => println!("target {target} is sent to without a limit{of_group}"),
    }
    Ok(())
}
