//! `thirdsite pair takeover`.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::control::{ControlRequest, ask};
use crate::failure::{Failure, exit};
use crate::output::print_json;

const PAUSE: Duration = Duration::from_millis(50);

/// Makes the standby active and returns when its taps serve. Asking a host that is active changes nothing.
pub(crate) fn takeover(control: &Path, timeout: Duration, json: bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    let answer = ask(control, &ControlRequest::Takeover {})?;
    // The control socket is made anew by the agent in its new role.
    while !ask(control, &ControlRequest::Status {}).is_ok_and(|status| status["role"] == "source") {
        if Instant::now() > deadline {
            let hint = "see the agent's log; the takeover goes on";
            return Err(Failure::new(exit::TIMEOUT, "this host is not active yet", hint).into());
        }
        sleep(PAUSE);
    }
    if json {
        return print_json(&answer);
    }
    match answer["changed"].as_bool() {
        Some(true) => println!("this host is active now; start the VM here"),
        _ => println!("this host has been active already"),
    }
    Ok(())
}
