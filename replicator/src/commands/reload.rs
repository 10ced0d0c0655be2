//! `thirdsite source reload`.

use std::path::Path;
use std::time::Duration;

use crate::control::{ControlRequest, ask, ask_until};
use crate::output::print_json;

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
