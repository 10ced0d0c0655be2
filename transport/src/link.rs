//! The source's side: keeps one connection to the site and ships all groups over it.

mod call;
pub(crate) mod dial;
mod error;
mod group;
mod segment;
mod silence;
mod stats;
mod turns;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use journal_format::GroupName;
use quinn::Connection;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use call::{CallError, Caller, PendingCall};
pub use error::LinkError;
pub use stats::LinkStats;

use crate::asking::blocking;
use crate::causes::causes;
use crate::congestion::PathMemory;
use crate::frames::read_message;
use crate::identity::{Fingerprint, Identity, PublicKey};
use crate::meter::Meter;
use crate::network::{Network, SystemNetwork};
use crate::quic::{CONTROL_STREAMS_MAX, IDLE_TIMEOUT, KEEP_ALIVE, code, undelivered_max};
use crate::session::Backoff;
use crate::tls;
use crate::traits::{LinkState, Outbox};
use crate::wire::{Receipt, Refusal, RefusalKind};
use dial::{Connected, Dialer};
use group::{GOODBYE_TIMEOUT, GroupEnd, GroupLink};
use silence::Silence;
use stats::StatsKeeper;
use turns::Turns;

/// Time between two looks at a connection.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// Fingerprints of a site: its own and, while it changes its key, the next.
const SITES_MAX: usize = 2;

/// How a link behaves.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Address of the site as `HOST:PORT`, looked up anew at each attempt.
    pub site: String,
    /// Local address; none for any address and port.
    pub bind: Option<SocketAddr>,
    /// Version of this software, for people at the site.
    pub software: String,
    /// Time between two heartbeats of a group.
    pub heartbeat_interval: Duration,
    /// Segments of a group that are being written at once.
    pub segments_in_flight_max: usize,
    /// First pause after a loss; it doubles.
    pub backoff_min: Duration,
    /// Longest pause after a loss.
    pub backoff_max: Duration,
    /// Pause after a refusal, which usually needs a person.
    pub refused_pause: Duration,
    /// Time without a receipt, when everything was delivered, after which a group's session is begun anew.
    pub receipt_timeout: Duration,
    /// Decides the jitter of pauses.
    pub seed: u64,
    /// Silence after which the connection is lost.
    pub idle_timeout: Duration,
    /// Time between two signs of life.
    pub keep_alive: Duration,
    /// Hand batches of datagrams to the kernel, which splits them. Some drivers and carriers lose such batches.
    pub segmentation_offload: bool,
    /// Bytes per second that the path delivered when it was last used, as [`LinkHandle::stats`] told; none if that is not known.
    pub initial_rate: Option<u64>,
    /// What may be sent from the beginning on.
    pub limits: LinkLimits,
    /// Where sockets come from.
    pub network: Arc<dyn Network>,
}

/// What a link may put on the wire, in bytes per second with the headers of IP and UDP; none for as much as the path takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkLimits {
    /// Everything.
    pub link: Option<u64>,
    /// Segments of these groups.
    pub groups: HashMap<GroupName, u64>,
}

impl LinkOptions {
    /// The usual behaviour. `seed` should differ between sources.
    pub fn new(site: impl Into<String>, seed: u64) -> Self {
        Self {
            site: site.into(),
            bind: None,
            software: concat!("thirdsite ", env!("CARGO_PKG_VERSION")).to_owned(),
            heartbeat_interval: Duration::from_secs(2),
            segments_in_flight_max: 8,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(2),
            refused_pause: Duration::from_secs(5),
            receipt_timeout: Duration::from_secs(60),
            seed,
            idle_timeout: IDLE_TIMEOUT,
            keep_alive: KEEP_ALIVE,
            segmentation_offload: true,
            initial_rate: None,
            limits: LinkLimits::default(),
            network: Arc::new(SystemNetwork),
        }
    }
}

/// A running link. Dropping it stops shipping at once, without goodbye.
#[derive(Debug)]
pub struct SourceLink {
    callers: HashMap<GroupName, Caller>,
    handle: LinkHandle,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

/// Looks at a link, and limits it.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    turns: Arc<Turns>,
    meter: Arc<Meter>,
    memory: Arc<PathMemory>,
    stats: Arc<StatsKeeper>,
}

impl LinkHandle {
    /// Changes what may be sent from now on.
    pub fn set_limits(&self, limits: &LinkLimits) {
        self.meter.set_rate(limits.link);
        self.turns.set_limits(&limits.groups);
    }

    /// How the line fares. Its rate is what `initial_rate` of the next process should be.
    pub fn stats(&self) -> LinkStats {
        self.stats.read(&self.memory, self.meter.sent_bytes())
    }
}

impl SourceLink {
    /// Starts to ship `outboxes` to the site that has one of the fingerprints `sites`: one, or two while the site changes its key.
    /// Never gives up; the outboxes are told how the link fares.
    ///
    /// # Errors
    /// [`LinkError::Groups`], [`LinkError::Sites`] or [`LinkError::Tls`]; what may pass is told to the outboxes instead.
    pub fn start(
        options: LinkOptions,
        identity: Arc<Identity>,
        sites: Vec<Fingerprint>,
        outboxes: Vec<Arc<dyn Outbox>>,
        runtime: &Handle,
    ) -> Result<Self, LinkError> {
        let limit = CONTROL_STREAMS_MAX as usize;
        for (index, outbox) in outboxes.iter().enumerate() {
            let again = outboxes[..index].iter().any(|other| other.group() == outbox.group());
            if again || index >= limit {
                return Err(LinkError::Groups { group: outbox.group().to_string(), limit });
            }
        }
        if sites.is_empty() || sites.len() > SITES_MAX {
            return Err(LinkError::Sites { actual: sites.len() });
        }
        // Found out now, not at the first attempt.
        tls::source_config(&identity, &sites, tls::ALPN)?;
        let shutdown = CancellationToken::new();
        let backoff = Backoff::new(options.backoff_min, options.backoff_max, options.seed);
        let caller = |outbox: &Arc<dyn Outbox>| {
            let group = outbox.group().clone();
            (group.clone(), Caller::new(group, runtime.clone()))
        };
        let callers: HashMap<GroupName, Caller> = outboxes.iter().map(caller).collect();
        let _entered = runtime.enter();
        let meter = Meter::new();
        meter.set_rate(options.limits.link);
        let turns = Turns::new(outboxes.iter().map(|outbox| outbox.group().clone()).collect());
        turns.set_limits(&options.limits.groups);
        let memory = Arc::new(PathMemory::with_rate(options.initial_rate));
        let stats = Arc::new(StatsKeeper::default());
        let options = Arc::new(options);
        let dialer = Dialer {
            options: options.clone(),
            identity,
            sites,
            meter: Arc::clone(&meter),
            memory: Arc::clone(&memory),
            protocol: tls::ALPN,
        };
        let link = Link {
            options,
            dialer,
            outboxes,
            callers: callers.clone(),
            turns: turns.clone(),
            stats: stats.clone(),
            shutdown: shutdown.clone(),
        };
        let task = runtime.spawn(link.run(backoff));
        let handle = LinkHandle { turns, meter, memory, stats };
        Ok(Self { callers, handle, shutdown, task })
    }

    /// What looks at the link, and limits it, from elsewhere.
    pub fn handle(&self) -> LinkHandle {
        self.handle.clone()
    }

    /// The way to ask the site about a group; works whenever the group's session is open. None if the group is not shipped here.
    pub fn caller(&self, group: &GroupName) -> Option<Caller> {
        self.callers.get(group).cloned()
    }

    /// Says goodbye and stops, within about 3 seconds. What was not confirmed is sent after the next start.
    pub async fn shutdown(mut self) {
        self.shutdown.cancel();
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            warn!("the link had failed before it was shut down");
        }
    }
}

impl Drop for SourceLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Link {
    options: Arc<LinkOptions>,
    dialer: Dialer,
    outboxes: Vec<Arc<dyn Outbox>>,
    callers: HashMap<GroupName, Caller>,
    turns: Arc<Turns>,
    stats: Arc<StatsKeeper>,
    shutdown: CancellationToken,
}

/// How the use of a connection ended.
enum End {
    /// This side is shutting down.
    Shutdown,
    /// Another connection answered while this one was silent.
    Moved(Connected),
    Failed(LinkError),
}

/// The runtime's clock, which a test or a simulation may have stopped.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Link {
    async fn run(self, backoff: Backoff) {
        let turns = self.turns.clone();
        tokio::select! {
            () = turns.run() => {}
            () = self.keep_connected(backoff) => {}
        }
    }

    async fn keep_connected(&self, mut backoff: Backoff) {
        let mut moved = None;
        loop {
            let connected = match moved.take() {
                Some(connected) => Ok(connected),
                None => {
                    self.tell(&LinkState::Connecting).await;
                    tokio::select! {
                        attempt = self.dialer.connect() => attempt,
                        () = self.shutdown.cancelled() => break,
                    }
                }
            };
            let error = match connected {
                Ok(connected) => {
                    let welcomed = AtomicBool::new(false).into();
                    let end = self.use_connection(connected, &welcomed).await;
                    if welcomed.load(Ordering::Relaxed) {
                        backoff.reset();
                    }
                    match end {
                        End::Shutdown => break,
                        End::Moved(connected) => {
                            moved = Some(connected);
                            continue;
                        }
                        End::Failed(error) => error,
                    }
                }
                Err(error) => error,
            };
            let pause = if error.wants_long_pause() { self.options.refused_pause } else { backoff.pause() };
            warn!(%error, cause = causes(&error), "no link to the site");
            self.tell(&LinkState::Disconnected(Arc::new(error))).await;
            tokio::select! {
                () = sleep(pause) => {}
                () = self.shutdown.cancelled() => break,
            }
        }
        self.tell(&LinkState::Stopped).await;
    }

    async fn tell(&self, state: &LinkState) {
        for outbox in &self.outboxes {
            let state = state.clone();
            blocking(outbox, move |outbox| outbox.link(state)).await;
        }
    }

    /// Ships until the connection ends, or falls silent and another one answers.
    async fn use_connection(&self, connected: Connected, welcomed: &Arc<AtomicBool>) -> End {
        let Connected { connection, address, presented, .. } = &connected;
        info!(%address, local = ?connected.source, "connected to the site");
        let (mut groups, group_of_task, routes) = self.start_groups(&connected, welcomed);
        let mut receipts = JoinSet::new();
        if let Some(key) = presented.key() {
            receipts.spawn(read_receipts(connection.clone(), key.public_key, routes));
        }

        let mut failed = None;
        let mut stopping = false;
        let mut moved = None;
        let mut watch = pin!(self.watch(&connected));
        loop {
            let ended = tokio::select! {
                ended = groups.join_next() => ended,
                next = &mut watch, if moved.is_none() => {
                    info!(%address, "another connection answered; the silent one is given up");
                    moved = Some(next);
                    // Ends the sessions.
                    connection.close(code::GOODBYE, b"silent");
                    continue;
                }
            };
            let Some(ended) = ended else { break };
            match ended {
                Ok(GroupEnd::Connection | GroupEnd::Goodbye) => {}
                Ok(GroupEnd::SiteStopping) => stopping = true,
                Err(error) => {
                    failed = group_of_task.get(&error.id()).cloned().map(|group| LinkError::Failed { group });
                }
            }
            // What ends one group ends the connection, and with it the others.
            if stopping || failed.is_some() {
                connection.close(code::GOODBYE, b"");
            }
        }
        self.stats.ended();
        if let (Some(connected), None) = (moved, &failed)
            && !self.shutdown.is_cancelled()
        {
            return End::Moved(connected);
        }
        let reason = connection.close_reason();
        connection.close(code::GOODBYE, b"goodbye");
        timeout(GOODBYE_TIMEOUT, connected.endpoint.wait_idle()).await.ok();
        match (failed, reason) {
            (Some(error), _) => End::Failed(error),
            _ if self.shutdown.is_cancelled() => End::Shutdown,
            _ if stopping => End::Failed(LinkError::SiteStopped),
            (None, Some(reason)) => End::Failed(self.dialer.explain(reason, *address, presented)),
            (None, None) => End::Shutdown,
        }
    }

    fn start_groups(&self, connected: &Connected, welcomed: &Arc<AtomicBool>) -> Started {
        let mut groups = JoinSet::new();
        let mut group_of_task = HashMap::new();
        let mut routes = HashMap::new();
        for outbox in &self.outboxes {
            let (route, receipts) = watch::channel(None);
            routes.insert(outbox.group().clone(), Route { outbox: outbox.clone(), route });
            let link = GroupLink {
                options: self.options.clone(),
                outbox: outbox.clone(),
                caller: self.callers[outbox.group()].clone(),
                connection: connected.connection.clone(),
                address: connected.address,
                receipts,
                turns: self.turns.clone(),
                shutdown: self.shutdown.clone(),
                welcomed: welcomed.clone(),
            };
            let task = groups.spawn(link.run());
            group_of_task.insert(task.id(), outbox.group().clone());
        }
        (groups, group_of_task, routes)
    }

    /// Looks after a connection: what it may hold, how it fares, whether it is silent. Returns another one that answered
    /// while it was.
    async fn watch(&self, connected: &Connected) -> Connected {
        let mut silence = Silence::default();
        let mut tick = interval(WATCH_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if !self.looks_silent(connected, &mut silence) {
                continue;
            }
            let mut race = pin!(self.dialer.race(connected));
            loop {
                tokio::select! {
                    next = &mut race => return next,
                    _ = tick.tick() => {}
                }
                if !self.looks_silent(connected, &mut silence) {
                    info!(address = %connected.address, "the silent line answers again");
                    break;
                }
            }
        }
    }

    fn looks_silent(&self, connected: &Connected, silence: &mut Silence) -> bool {
        let stats = connected.connection.stats();
        self.turns.set_undelivered_max(undelivered_max(stats.path.cwnd));
        let (sent, written) = (self.dialer.meter.sent_bytes(), self.turns.written());
        if let Some(overhead) = self.stats.observe(&stats, sent, written, now()) {
            self.turns.set_overhead(overhead);
        }
        silence.observe(now(), &stats);
        silence.is_silent(now(), stats.path.rtt)
    }
}

/// Sessions of all groups of a connection, whose they are, and where receipts go.
type Started = (JoinSet<GroupEnd>, HashMap<Id, GroupName>, HashMap<GroupName, Route>);

struct Route {
    outbox: Arc<dyn Outbox>,
    route: watch::Sender<Option<Receipt>>,
}

/// Reads receipts, checks their signatures, and hands them to their groups.
async fn read_receipts(connection: Connection, key: PublicKey, routes: HashMap<GroupName, Route>) {
    let Ok(mut stream) = connection.accept_uni().await else { return };
    loop {
        let receipt: Receipt = match read_message(&mut stream, "receipt").await {
            Ok(Some(receipt)) => receipt,
            Ok(None) => return,
            Err(fault) => {
                if connection.close_reason().is_none() {
                    warn!(%fault, cause = causes(&fault), "the site's receipts cannot be read");
                    connection.close(code::PROTOCOL, b"receipts cannot be read");
                }
                return;
            }
        };
        let Some(Route { outbox, route }) = routes.get(&receipt.group) else {
            warn!(group = %receipt.group, "a receipt for a group that is not sent from here was ignored");
            continue;
        };
        if receipt.is_signed_by(&key) {
            route.send_replace(Some(receipt));
            continue;
        }
        let refusal = Refusal::new(
            RefusalKind::Corrupt,
            format!(
                "a receipt for {} is not signed by the site's identity and was ignored",
                receipt.position
            ),
            "the journal keeps everything; check the site's host and release",
        );
        warn!(group = %receipt.group, reason = %refusal, "a receipt was ignored");
        blocking(outbox, move |outbox| outbox.refused(&refusal)).await;
    }
}

#[cfg(test)]
mod tests;
