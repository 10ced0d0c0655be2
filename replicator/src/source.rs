//! The agent at the protected site: taps, journals and the links, wired together. On a host of a pair it is active or standby.

mod active;
mod compare;
mod confirmed;
mod cutter;
mod learn;
mod links;
mod listeners;
mod lock;
mod member;
mod outbox;
mod pair;
mod reload;
mod standby;
mod status;
mod targets;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use journal::{Clock, KnownBlocks, SystemClock};
use journal_format::BLOCK_BYTES;
use journal_nbd::Listener;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info};
use transport::{EnrolledPeer, Enrolment, Identity, PeerName, SiteOptions};

use crate::failure::{Failure, with_causes};
use crate::settings::{self, PairTable, SourceSettings};

pub(crate) use self::listeners::bind;
pub(crate) use self::pair::Role;
use self::reload::{Accepted, Reload, ReloadSender};

/// What both roles of a host need.
struct Host {
    settings: SourceSettings,
    identity: Arc<Identity>,
    /// The taps' sockets, which outlive a change of the role.
    listeners: Vec<Listener>,
    /// The settings' file.
    config: PathBuf,
    accept_resize: Vec<String>,
    /// Counts the times that changed settings were taken in.
    reloads: u64,
    /// It has been the standby until now: nobody stands by for it yet.
    took_over: bool,
    clock: Arc<dyn Clock>,
    /// What the site has; `None` if nothing is to be known of it, or the index cannot be used.
    known: Option<Arc<KnownBlocks>>,
    signals: Signals,
    hangup: Signal,
    /// Requests of the control socket to take in changed settings.
    reload_requests: mpsc::Receiver<Reload>,
    reload_sender: ReloadSender,
}

/// How a role ended.
enum End {
    /// The process was told to end.
    Told,
    /// The host takes the other role.
    Change,
    /// It goes on in its role with other settings.
    Reload(Box<Accepted>),
}

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns when the process has to end.
    async fn told_to_end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs the agent until SIGTERM or SIGINT.
pub(crate) async fn run(config: &Path, accept_resize: &[String]) -> anyhow::Result<()> {
    let settings: SourceSettings = settings::load(config)?;
    let identity = Arc::new(crate::identity::load(&settings.identity)?);
    settings.check_fingerprints()?;
    let _lock: File = lock::lock_journal(&settings.journal)?;
    let listeners = listeners::listeners(&settings.tap.listen)?;
    let mut role = match &settings.pair {
        Some(pair) => Role::load(&settings.journal, pair.role)?,
        None => Role::Active,
    };
    let accept_resize = accept_resize.to_vec();
    let known = open_known(&settings);
    let (reload_sender, reload_requests) = mpsc::channel(1);
    let mut host = Host {
        settings,
        identity,
        listeners,
        config: config.to_owned(),
        accept_resize,
        reloads: 0,
        took_over: false,
        clock: Arc::new(SystemClock),
        known,
        signals: Signals::new()?,
        hangup: signal(SignalKind::hangup())?,
        reload_requests,
        reload_sender,
    };
    loop {
        let (end, next) = match role {
            Role::Active => (active::run(&mut host).await?, Role::Standby),
            Role::Standby => (standby::run(&mut host).await?, Role::Active),
        };
        match end {
            End::Told => return Ok(()),
            End::Change => {
                next.save(&host.settings.journal)?;
                host.took_over = next == Role::Active;
                info!(role = ?next, "the host takes another role");
                role = next;
            }
            End::Reload(accepted) => {
                info!("changed settings are taken in");
                (host.settings, host.accept_resize) = (accepted.settings, accepted.accept_resize);
                host.reloads += 1;
                // By now a standby may count on being asked for every mark.
                host.took_over = false;
            }
        }
    }
}

/// Opens the index of what the site has. A VM is protected without it, too.
fn open_known(settings: &SourceSettings) -> Option<Arc<KnownBlocks>> {
    if settings.dedup.covers == 0 {
        return None;
    }
    // No group has a name with a dot.
    let folder = settings.journal.join("known.blocks");
    match KnownBlocks::open(&folder, settings.dedup.covers / BLOCK_BYTES) {
        Ok(known) => Some(Arc::new(known)),
        Err(error) => {
            error!(folder = %folder.display(), error = with_causes(&error), "the index of what the site has cannot be used; every block is sent whole");
            None
        }
    }
}

impl Host {
    /// Waits until the process is told to end, or to take in settings that can be taken in. `in_use` tells the exports that VMs have opened.
    async fn told(&mut self, in_use: impl Fn() -> Vec<String>) -> End {
        loop {
            tokio::select! {
                () = self.signals.told_to_end() => return End::Told,
                Some(reload) = self.reload_requests.recv() => {
                    if let Some(accepted) = reload.decide(&self.settings, &self.config, &in_use()) {
                        return End::Reload(Box::new(accepted));
                    }
                }
                _ = self.hangup.recv() => match reload::decide(&self.settings, &self.config, &in_use()) {
                    Ok((settings, _)) => return End::Reload(Box::new(Accepted { settings, accept_resize: Vec::new() })),
                    Err(failure) => error!(hint = failure.hint, "the settings are not taken in: {failure}"),
                },
            }
        }
    }

    /// Second handles of the taps' sockets.
    fn tap_sockets(&self) -> std::io::Result<Vec<Listener>> {
        self.listeners.iter().map(Listener::try_clone).collect()
    }

    /// How this host listens for the pair's other one, which alone may connect.
    fn pair_options(&self, pair: &PairTable) -> anyhow::Result<SiteOptions> {
        let fingerprint = crate::identity::parse_fingerprint(&pair.fingerprint)?;
        let path = self.settings.journal.join("pair-peer.toml");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let name: PeerName = "pair".parse().map_err(|_| anyhow::anyhow!("a name that is not one"))?;
        let groups = self.settings.groups.iter().map(|group| group.name.clone()).collect();
        Enrolment::add(&path, EnrolledPeer { name, fingerprint, next_fingerprint: None, groups })
            .map_err(|error| Failure::invalid(with_causes(&error), "check [pair] in the settings"))?;
        Ok(SiteOptions::new(pair.listen, path))
    }
}

/// A time for people and programs.
fn time_text(time: journal_format::Timestamp) -> Value {
    json!(crate::output::rfc3339(time))
}
