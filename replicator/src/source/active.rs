//! The active agent: serves the taps, captures, seals and ships.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use journal::{CutRequest, KnownBlocks};
use journal_format::GroupName;
use journal_nbd::{Arena, Exports, Server, ServerOptions};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tracing::{error, info, warn};
use transport::{LinkOptions, Outbox, SiteServer, SourceLink};

use super::links::{LinkViews, Links};
use super::member::{self, Member, Opening};
use super::pair::replica::{PairOutbox, PairReplica, ReplicaOptions};
use super::pair::standby::ActiveInbox;
use super::reload::ReloadSender;
use super::{End, Host, reload, status};
use crate::control::{ControlHandler, ControlRequest, ControlServer};
use crate::failure::{Failure, exit, with_causes};
use crate::settings::{PairTable, SourceSettings};

/// A fenced host looks so often whether a VM still uses its taps.
const FENCED_PAUSE: Duration = Duration::from_millis(200);

/// The agent's groups. Those that could not be opened are kept with the reason, so that `status` says it.
struct Agent {
    members: Vec<Arc<Member>>,
    failed: Vec<(GroupName, Failure)>,
    known: Option<Arc<KnownBlocks>>,
    /// Set as soon as they are started.
    links: OnceLock<LinkViews>,
    reloads: u64,
    reload: ReloadSender,
}

/// Runs until the process is told to end, or until another host has taken over and no VM uses the taps here.
pub(super) async fn run(host: &mut Host) -> anyhow::Result<End> {
    let fenced = Arc::new(Notify::new());
    let arena = arena(&host.settings);
    let opening = Opening {
        settings: &host.settings,
        accept_resize: &host.accept_resize,
        arena: arena.clone(),
        clock: host.clock.clone(),
        fenced: fenced.clone(),
        known: host.known.clone(),
    };
    let agent = Arc::new(open_groups(&opening, host)?);
    let exports = Arc::new(Exports::new());
    agent.members.iter().try_for_each(|member| member.serve(&exports))?;
    let pair =
        host.settings.pair.as_ref().map(|pair| PairSide::start(host, pair, &agent, &fenced)).transpose()?;
    let running: Vec<_> = agent.members.iter().map(|member| member.start()).collect::<Result<_, _>>()?;
    // Whoever is served by a tap can ask the agent.
    let control = ControlServer::start(&host.settings.control, agent.clone())?;
    let server =
        Server::start(host.tap_sockets()?, exports, ServerOptions { arena, ..ServerOptions::default() })
            .context("the NBD server cannot be started")?;
    // The jitter of reconnecting only has to differ between agents.
    let seed = host.clock.now().0.cast_unsigned();
    let links = Links::start(&host.settings, &host.identity, &agent.members, seed)?;
    // Nobody else sets it.
    let _ = agent.links.set(links.views());
    let learners = links.start_comparing(&agent.members, host.known.as_ref())?;
    let groups = agent.members.len();
    info!(groups, "ready");
    let is_paired = host.settings.pair.is_some();
    let end = tokio::select! {
        end = host.told(|| server.open_exports()) => end,
        () = fenced.notified(), if is_paired => End::Change,
    };
    let end = if let End::Change = end { wait_until_unused(host, &server).await } else { end };
    info!("ending: what is captured is sealed, no more requests are taken");
    drop(control);
    if !matches!(end, End::Change) {
        let agent = agent.clone();
        tokio::task::spawn_blocking(move || agent.members.iter().for_each(|member| member.prepare_close()))
            .await?;
    }
    links.shutdown().await;
    tokio::task::spawn_blocking(move || {
        drop(learners);
        server.shutdown();
    })
    .await?;
    // The standby has to hear of every mark: of those of the last writes, too.
    if let Some(pair) = pair {
        pair.stop().await;
    }
    let known = host.known.clone();
    tokio::task::spawn_blocking(move || {
        running.into_iter().for_each(member::Running::stop);
        agent.members.iter().for_each(|member| member.close());
        if let Some(known) = known {
            known.flush();
        }
    })
    .await?;
    Ok(end)
}

/// A VM is not cut off from its disk because another host has taken over: whoever stops the VM decides that.
async fn wait_until_unused(host: &mut Host, server: &Server) -> End {
    if server.connections() > 0 {
        warn!(
            "another host has taken over, yet a VM still uses its disks here; it is served, nothing is shipped; stop the VM, and this host becomes the standby"
        );
    }
    while server.connections() > 0 {
        tokio::select! {
            () = host.signals.told_to_end() => return End::Told,
            () = tokio::time::sleep(FENCED_PAUSE) => {}
        }
    }
    End::Change
}

/// The active host's part of the pair.
struct PairSide {
    link: SourceLink,
    server: SiteServer,
    replicas: Vec<(Arc<PairReplica>, std::thread::JoinHandle<()>)>,
}

impl PairSide {
    fn start(host: &Host, pair: &PairTable, agent: &Agent, fenced: &Arc<Notify>) -> anyhow::Result<PairSide> {
        let groups = agent.members.iter().map(|member| (member.name().clone(), member.group.generation()));
        let inbox = Arc::new(ActiveInbox { groups: groups.collect(), fenced: fenced.clone() });
        let options = host.pair_options(pair)?;
        let server = SiteServer::bind(options, host.identity.clone(), inbox, &Handle::current())
            .map_err(|error| Failure::of(&error, error.kind(), "check [pair] listen in the settings"))?;
        let mut replicas = Vec::new();
        let mut outboxes: Vec<Arc<dyn Outbox>> = Vec::new();
        for member in &agent.members {
            // A standby of before this process may count on being asked; one of before a takeover is fenced.
            let waits_for = if host.took_over { Duration::ZERO } else { pair.patience };
            let options = ReplicaOptions { patience: pair.patience, waits_for };
            let (replica, thread) = PairReplica::start(member.group.clone(), options, fenced.clone())?;
            *member.pair.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(replica.clone());
            let (member, wake) = (member.clone(), member.wake_pair.clone());
            outboxes.push(Arc::new(PairOutbox { member, replica: replica.clone(), wake }));
            replicas.push((replica, thread));
        }
        let peer = crate::identity::parse_fingerprint(&pair.fingerprint)?;
        let seed = host.clock.now().0.cast_unsigned();
        // Both hosts are near: silence means something.
        let options = LinkOptions {
            idle_timeout: pair.patience,
            keep_alive: pair.patience / 5,
            refused_pause: Duration::from_secs(1),
            backoff_max: Duration::from_millis(500),
            ..LinkOptions::new(&pair.peer, seed)
        };
        let link =
            SourceLink::start(options, host.identity.clone(), vec![peer], outboxes, &Handle::current())
                .map_err(|error| Failure::invalid(with_causes(&error), "check [pair] in the settings"))?;
        for (member, (replica, _)) in agent.members.iter().zip(&replicas) {
            replica.set_caller(link.caller(member.name()));
        }
        Ok(PairSide { link, server, replicas })
    }

    async fn stop(self) {
        self.link.shutdown().await;
        self.server.shutdown().await;
        for (replica, thread) in self.replicas {
            replica.stop();
            // A panic in the thread has been reported by its hook.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// Memory for payloads: as much as all groups may hold, and what lies unused beside them in the same pieces. Pages that are fresh from the system cost the tap more than a write
/// does.
fn arena(settings: &SourceSettings) -> Arena {
    let budget: u64 = settings.groups.iter().map(|group| group.memory_budget).sum();
    Arena::new(usize::try_from(budget + journal::PINNED_SLACK_BYTES).unwrap_or(usize::MAX))
}

fn open_groups(opening: &Opening<'_>, host: &Host) -> anyhow::Result<Agent> {
    let (reloads, reload) = (host.reloads, host.reload_sender.clone());
    let known = opening.known.clone();
    let mut agent =
        Agent { members: Vec::new(), failed: Vec::new(), known, links: OnceLock::new(), reloads, reload };
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
            ControlRequest::Status {} => {
                let links = self.links.get().map(LinkViews::report);
                Ok(status::report(&self.members, &self.failed, self.known.as_deref(), self.reloads, links))
            }
            ControlRequest::Limit { target, group, rate_max } => {
                let group =
                    group.map(|group| Ok::<_, Failure>(self.member(&group)?.name().clone())).transpose()?;
                let starting = || Failure::unreachable("the agent is starting", "try again");
                self.links.get().ok_or_else(starting)?.limit(&target, group, rate_max)
            }
            ControlRequest::Reload { accept_resize } => reload::request(&self.reload, accept_resize),
            ControlRequest::Takeover {} => Ok(serde_json::json!({"role": "active", "changed": false})),
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
