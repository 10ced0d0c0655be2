//! The agent at the protected site: taps, journals and the link, wired together.

mod confirmed;
mod cutter;
mod listeners;
mod lock;
mod member;
mod outbox;
mod status;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use journal::{Clock, CutRequest, SystemClock};
use journal_format::GroupName;
use journal_nbd::{Arena, Exports, Server, ServerOptions};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use self::member::{Member, Opening};
use crate::control::{ControlHandler, ControlRequest, ControlServer};
use crate::failure::{Failure, exit};
use crate::settings::{self, SourceSettings};

pub(crate) use self::listeners::bind;

/// The agent's groups. Those that could not be opened are kept with the reason, so that `status` says it.
struct Agent {
    members: Vec<Arc<Member>>,
    failed: Vec<(GroupName, Failure)>,
}

/// Runs the agent until SIGTERM or SIGINT.
pub(crate) async fn run(config: &Path, accept_resize: &[String]) -> anyhow::Result<()> {
    let settings: SourceSettings = settings::load(config)?;
    let identity = crate::identity::load(&settings.identity)?;
    crate::identity::parse_fingerprint(&settings.site.fingerprint)?;
    let _lock: File = lock::lock_journal(&settings.journal)?;
    let listeners = listeners::listeners(&settings.tap.listen)?;
    let arena = arena(&settings);
    let opening =
        Opening { settings: &settings, accept_resize, arena: arena.clone(), clock: Arc::new(SystemClock) };
    let agent = Arc::new(open_groups(&opening)?);
    let exports = Arc::new(Exports::new());
    agent.members.iter().try_for_each(|member| member.serve(&exports))?;
    let running: Vec<_> = agent.members.iter().map(|member| member.start()).collect::<Result<_, _>>()?;
    let server = Server::start(listeners, exports, ServerOptions { arena, ..ServerOptions::default() })
        .context("the NBD server cannot be started")?;
    // The jitter of reconnecting only has to differ between agents.
    let seed = SystemClock.now().0.cast_unsigned();
    let link = member::start_link(&settings, identity, &agent.members, seed)?;
    let control = ControlServer::start(&settings.control, agent.clone())?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let groups = agent.members.len();
    info!(groups, "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("ending: no more requests are taken, what is captured is sealed");
    drop(control);
    link.shutdown().await;
    tokio::task::spawn_blocking(move || {
        server.shutdown();
        running.into_iter().for_each(member::Running::stop);
        agent.members.iter().for_each(|member| member.close());
    })
    .await?;
    Ok(())
}

/// Memory that is kept for payloads: as much as all groups may hold. Pages that are fresh from the system cost the tap more than a write
/// does.
fn arena(settings: &SourceSettings) -> Arena {
    let budget: u64 = settings.groups.iter().map(|group| group.memory_budget).sum();
    Arena::new(usize::try_from(budget).unwrap_or(usize::MAX))
}

fn open_groups(opening: &Opening<'_>) -> anyhow::Result<Agent> {
    let mut agent = Agent { members: Vec::new(), failed: Vec::new() };
    for table in &opening.settings.groups {
        match Member::open(opening, table) {
            Ok(member) => agent.members.push(Arc::new(member)),
            Err(failure) => {
                error!(group = %table.name, hint = failure.hint, "group not opened: {failure}");
                agent.failed.push((table.name.clone(), failure));
            }
        }
    }
    match agent.failed.first() {
        // With other groups to serve, one that failed must not take them down.
        Some((_, failure)) if agent.members.is_empty() => Err(failure.clone().into()),
        _ => Ok(agent),
    }
}

impl ControlHandler for Agent {
    fn handle(&self, request: ControlRequest) -> Result<Value, Failure> {
        match request {
            ControlRequest::Status {} => Ok(status::report(&self.members, &self.failed)),
            ControlRequest::Resync { group, full } => Ok(self.member(&group)?.resync(full)),
            ControlRequest::Cut { group, bookmark, wait_seconds } => {
                let member = self.member(&group)?;
                member.cut(&CutRequest { bookmark }, wait_seconds.map(Duration::from_secs))
            }
        }
    }
}

impl Agent {
    fn member(&self, group: &GroupName) -> Result<&Arc<Member>, Failure> {
        if let Some((_, failure)) = self.failed.iter().find(|(name, _)| name == group) {
            return Err(failure.clone());
        }
        self.members.iter().find(|member| member.name() == group).ok_or_else(|| {
            let names: Vec<&str> = self.members.iter().map(|member| member.name().as_str()).collect();
            let hint = format!("this agent's groups are: {}", names.join(", "));
            Failure::new(exit::INVALID, format!("there is no group '{group}'"), &hint)
        })
    }
}

/// A time for people and programs.
fn time_text(time: journal_format::Timestamp) -> Value {
    json!(crate::output::rfc3339(time))
}
