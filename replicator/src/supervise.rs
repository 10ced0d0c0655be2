//! A small supervisor for hosts without systemd: it holds the taps' listening sockets and starts the agent again when it ends,
//! so that a crash or an upgrade of the agent is a pause for the VM and never a refused connection.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context;
use command_fds::{CommandFdExt, FdMapping};
use journal_nbd::Listener;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use crate::settings::{self, SourceSettings};
use crate::source::bind;

/// First descriptor that socket activation hands over.
const FIRST_FD: i32 = 3;
/// An agent that lived shorter than this is started again only after a pause.
const SHORT_LIFE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Runs the agent until told to stop by SIGTERM or SIGINT.
pub(crate) async fn run(config: &Path) -> anyhow::Result<()> {
    let settings: SourceSettings = settings::load(config)?;
    let sockets: Vec<Listener> = settings.tap.listen.iter().map(bind).collect::<Result<_, _>>()?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut pause = Duration::ZERO;
    loop {
        let started = Instant::now();
        let mut agent = start(config, &sockets)?;
        info!(pid = agent.id(), "agent started");
        tokio::select! {
            status = agent.wait() => pause = after_end(status?, started.elapsed(), pause),
            _ = terminate.recv() => return stop(agent).await,
            _ = interrupt.recv() => return stop(agent).await,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

fn after_end(status: ExitStatus, life: Duration, pause: Duration) -> Duration {
    let pause = if life > SHORT_LIFE {
        Duration::ZERO
    } else {
        (pause * 2).clamp(Duration::from_millis(100), PAUSE_MAX)
    };
    error!(%status, life_seconds = life.as_secs_f64(), pause_seconds = pause.as_secs_f64(), "the agent ended; the VM's disk requests wait until it is back");
    pause
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

async fn stop(mut agent: Child) -> anyhow::Result<()> {
    if let Some(pid) = agent.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    }
    let status = agent.wait().await?;
    info!(%status, "agent ended");
    Ok(())
}
