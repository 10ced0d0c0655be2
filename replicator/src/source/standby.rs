//! The standby agent: keeps what the active host sends, and waits for its turn.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use journal::{Standby, StandbySettings};
use journal_nbd::Listener;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tracing::info;
use transport::SiteServer;

use super::member::{open_leg, open_storage};
use super::pair::standby::StandbyInbox;
use super::reload::ReloadSender;
use super::{End, Host, reload};
use crate::control::{ControlHandler, ControlRequest, ControlServer};
use crate::failure::{Failure, exit};
use crate::settings::TakeoverWord;

/// Time between two looks for marks that can be taken away.
const CLEAR_INTERVAL: Duration = Duration::from_secs(15);

/// Time between two looks for a VM that connects.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// What the control socket of a standby is asked.
struct Control {
    inbox: Arc<StandbyInbox>,
    takeover: Arc<Notify>,
    reloads: u64,
    reload: ReloadSender,
}

impl ControlHandler for Control {
    fn handle(&self, request: ControlRequest) -> Result<Value, Failure> {
        match request {
            ControlRequest::Status {} => Ok(json!({
                "role": "standby",
                "version": env!("CARGO_PKG_VERSION"),
                "reloads": self.reloads,
                "groups": self.inbox.report(),
            })),
            ControlRequest::Reload { accept_resize } => reload::request(&self.reload, accept_resize),
            ControlRequest::Takeover {} => {
                self.takeover.notify_one();
                Ok(json!({"role": "active", "changed": true}))
            }
            ControlRequest::Cut { .. } | ControlRequest::Resync { .. } | ControlRequest::Limit { .. } => {
                let hint = "ask the active host; 'thirdsite pair takeover' makes this one active";
                Err(Failure::new(exit::INVALID, "this host is the standby of its pair", hint))
            }
        }
    }
}

/// Runs until the process is told to end, or until this host takes over.
pub(super) async fn run(host: &mut Host) -> anyhow::Result<End> {
    let pair = host.settings.pair.clone().context("a standby needs [pair] in its settings")?;
    let groups = open_groups(host)?;
    let inbox = Arc::new(StandbyInbox::new(groups, host.clock.clone()));
    let options = host.pair_options(&pair)?;
    let server = SiteServer::bind(options, host.identity.clone(), inbox.clone(), &Handle::current())
        .map_err(|error| Failure::of(&error, error.kind(), "check [pair] listen in the settings"))?;
    let takeover = Arc::new(Notify::new());
    let control = ControlServer::start(
        &host.settings.control,
        Arc::new(Control {
            inbox: inbox.clone(),
            takeover: takeover.clone(),
            reloads: host.reloads,
            reload: host.reload_sender.clone(),
        }),
    )?;
    let sockets = match pair.takeover {
        TakeoverWord::OnConnect => host.tap_sockets()?,
        TakeoverWord::Manual => Vec::new(),
    };
    info!("standing by");
    let mut clear = tokio::time::interval(CLEAR_INTERVAL);
    let connected = somebody_connects(sockets);
    tokio::pin!(connected);
    let end = loop {
        tokio::select! {
            end = host.told(Vec::new) => break end,
            () = takeover.notified() => break End::Change,
            result = &mut connected => {
                result?;
                info!("a VM connects to the tap of this host: it takes over");
                break End::Change;
            }
            _ = clear.tick() => {
                let inbox = inbox.clone();
                tokio::task::spawn_blocking(move || inbox.clear_marks()).await?;
            }
        }
    };
    // Nothing of the other host comes in behind the decision.
    if let End::Change = end {
        server.cut_off().await;
        tokio::task::spawn_blocking(move || inbox.take_over()).await??;
    } else {
        server.shutdown().await;
    }
    drop(control);
    Ok(end)
}

fn open_groups(host: &Host) -> anyhow::Result<Vec<Arc<Standby>>> {
    let open = |table: &crate::settings::GroupTable| {
        let failed = |error: journal::JournalError| Failure::of(&error, error.kind(), error.hint());
        let volumes =
            table.volumes.iter().map(|volume| Ok((volume.name.clone(), volume.kind(), open_leg(volume)?)));
        let settings = StandbySettings {
            name: table.name.clone(),
            volumes: volumes.collect::<Result<_, _>>().map_err(failed)?,
            journal_limit_bytes: table.journal_limit,
        };
        let folder = host.settings.journal.join(table.name.as_str());
        let storage = open_storage(table, &folder).map_err(failed)?;
        Ok(Standby::open(settings, storage, host.clock.clone()).map_err(failed)?)
    };
    host.settings.groups.iter().map(open).collect()
}

/// Returns when a connection waits at one of the sockets; without sockets, never. It is not accepted: the tap that is started next
/// does that.
async fn somebody_connects(sockets: Vec<Listener>) -> std::io::Result<()> {
    if sockets.is_empty() {
        return std::future::pending().await;
    }
    loop {
        let mut polled: Vec<PollFd<'_>> =
            sockets.iter().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)).collect();
        if poll(&mut polled, Some(&Timespec::default()))? > 0 {
            return Ok(());
        }
        drop(polled);
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}
