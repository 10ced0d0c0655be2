//! A small supervisor for hosts without systemd: it holds the taps' listening sockets and starts the agent again when it ends,
//! so that a crash or an upgrade of the agent is a pause for the VM and never a refused connection. SIGHUP is passed on to the agent.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use command_fds::{CommandFdExt, FdMapping};
use journal_nbd::Listener;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use crate::settings::{self, SourceSettings};
use crate::source::bind;

/// First descriptor that socket activation hands over.
const FIRST_FD: i32 = 3;
/// An agent that lived shorter than this is started again only after a pause.
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// So many short lives in a row may be crashes; more are a fault that goes on, and the pause grows.
const SHORT_LIVES_MAX: u32 = 5;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Runs the agent until told to stop by SIGTERM or SIGINT.
pub(crate) async fn run(config: &Path) -> anyhow::Result<()> {
    let settings: SourceSettings = settings::load(config)?;
    let sockets: Vec<Listener> = settings.tap.listen.iter().map(bind).collect::<Result<_, _>>()?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let mut short_lives = 0;
    loop {
        let started = Instant::now();
        let mut agent = start(config, &sockets)?;
        info!(pid = agent.id(), "agent started");
        let status = loop {
            tokio::select! {
                status = agent.wait() => break status?,
                _ = terminate.recv() => return stop(agent).await,
                _ = interrupt.recv() => return stop(agent).await,
                _ = hangup.recv() => tell(&agent, Signal::HUP)?,
            }
        };
        let life = started.elapsed();
        short_lives = if life > SHORT_LIFE { 0 } else { short_lives + 1 };
        let pause = pause_after(short_lives);
        error!(%status, life_seconds = life.as_secs_f64(), pause_seconds = pause.as_secs_f64(), "the agent ended; the VM's disk requests wait until it is back");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// How long to wait after so many short lives in a row.
fn pause_after(short_lives: u32) -> Duration {
    match short_lives {
        0 => Duration::ZERO,
        _ => {
            let factor = 2_u32.saturating_pow(short_lives.saturating_sub(SHORT_LIVES_MAX));
            PAUSE_MIN.saturating_mul(factor).min(PAUSE_MAX)
        }
    }
}

fn start(config: &Path, sockets: &[Listener]) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("the path of this program")?;
    let mut command = Command::new(program);
    command.args(["source", "run", "--config"]).arg(config);
    command.env("LISTEN_FDS", sockets.len().to_string()).env_remove("LISTEN_PID");
    let mappings = sockets.iter().zip(FIRST_FD..).map(|(socket, child_fd)| {
        Ok(FdMapping { parent_fd: socket.as_fd().try_clone_to_owned()?, child_fd })
    });
    command.fd_mappings(mappings.collect::<std::io::Result<_>>()?)?;
    tokio::process::Command::from(command).spawn().context("the agent cannot be started")
}

fn tell(agent: &Child, signal: Signal) -> anyhow::Result<()> {
    if let Some(pid) = agent.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        kill_process(pid, signal)?;
    }
    Ok(())
}

async fn stop(mut agent: Child) -> anyhow::Result<()> {
    tell(&agent, Signal::TERM)?;
    let status = agent.wait().await?;
    info!(%status, "agent ended");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_are_short_pauses_and_a_fault_that_goes_on_is_not_tried_all_the_time() {
        let pauses = [0, 1, 5, 6, 7, 40].map(|lives| pause_after(lives).as_millis());
        assert_eq!(pauses, [0, 100, 100, 200, 400, 10_000]);
    }
}
