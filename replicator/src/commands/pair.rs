//! `thirdsite pair takeover`.

use std::path::Path;
use std::time::Duration;

use crate::control::{ControlRequest, ask, ask_until};
use crate::output::print_json;

/// Makes the standby active and returns when its taps serve. Asking a host that is active changes nothing.
pub(crate) fn takeover(control: &Path, timeout: Duration, json: bool) -> anyhow::Result<()> {
    let answer = ask(control, &ControlRequest::Takeover {})?;
    // The control socket is made anew by the agent in its new role.
    ask_until(control, timeout, "this host is not active yet", |status| status["role"] == "source")?;
    if json {
        return print_json(&answer);
    }
    match answer["changed"].as_bool() {
        Some(true) => println!("this host is active now; start the VM here"),
        _ => println!("this host has been active already"),
    }
    Ok(())
}
