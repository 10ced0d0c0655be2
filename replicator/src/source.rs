//! The agent at the protected site: taps, journals and the links, wired together. On a host of a pair it is active or standby.

mod active;
mod compare;
mod confirmed;
mod cutter;
mod listeners;
mod lock;
mod member;
mod outbox;
mod pair;
mod standby;
mod status;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use journal::{Clock, SystemClock};
use journal_nbd::Listener;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;
use transport::{EnrolledPeer, Enrolment, Identity, PeerName, SiteOptions};

use crate::failure::{Failure, with_causes};
use crate::settings::{self, PairTable, SourceSettings};

pub(crate) use self::listeners::bind;
pub(crate) use self::pair::Role;

/// What both roles of a host need.
struct Host {
    settings: SourceSettings,
    identity: Arc<Identity>,
    /// The taps' sockets, which outlive a change of the role.
    listeners: Vec<Listener>,
    accept_resize: Vec<String>,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
}

/// How a role ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The process was told to end.
    Told,
    /// The host takes the other role.
    Change,
}

/// Tells when the process has to end.
struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    fn new() -> std::io::Result<Shutdown> {
        Ok(Shutdown {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn told(&mut self) {
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
    crate::identity::parse_fingerprint(&settings.site.fingerprint)?;
    let _lock: File = lock::lock_journal(&settings.journal)?;
    let listeners = listeners::listeners(&settings.tap.listen)?;
    let mut role = match &settings.pair {
        Some(pair) => {
            crate::identity::parse_fingerprint(&pair.fingerprint)?;
            Role::load(&settings.journal, pair.role)?
        }
        None => Role::Active,
    };
    let accept_resize = accept_resize.to_vec();
    let (clock, shutdown) = (Arc::new(SystemClock), Shutdown::new()?);
    let mut host = Host { settings, identity, listeners, accept_resize, clock, shutdown };
    loop {
        let (end, next) = match role {
            Role::Active => (active::run(&mut host).await?, Role::Standby),
            Role::Standby => (standby::run(&mut host).await?, Role::Active),
        };
        if end == End::Told {
            return Ok(());
        }
        next.save(&host.settings.journal)?;
        info!(role = ?next, "the host takes another role");
        role = next;
    }
}

impl Host {
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
        Enrolment::add(&path, EnrolledPeer { name, fingerprint, groups })
            .map_err(|error| Failure::invalid(with_causes(&error), "check [pair] in the settings"))?;
        Ok(SiteOptions::new(pair.listen, path))
    }
}

/// A time for people and programs.
fn time_text(time: journal_format::Timestamp) -> Value {
    json!(crate::output::rfc3339(time))
}
