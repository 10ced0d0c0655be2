//! The source's side: keeps one connection to the site and ships all groups over it.

mod call;
mod error;
mod group;
mod segment;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use journal_format::GroupName;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use call::{CallError, Caller, PendingCall};
pub use error::LinkError;

use crate::causes::causes;
use crate::frames::read_message;
use crate::identity::{Fingerprint, Identity, PublicKey};
use crate::quic::{CONTROL_STREAMS_MAX, IDLE_TIMEOUT, KEEP_ALIVE, code, source_endpoint, transport_config};
use crate::session::Backoff;
use crate::tls::{self, Presented};
use crate::traits::{LinkState, Outbox};
use crate::wire::{Receipt, Refusal, RefusalKind};
use group::{GOODBYE_TIMEOUT, GroupEnd, GroupLink, blocking};

/// Time for a handshake at one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// TLS alerts (RFC 8446, section 6.2) with which a site refuses a certificate.
const CERTIFICATE_ALERTS: [u64; 5] = [42, 46, 48, 49, 116];
/// TLS alert for a protocol that is not spoken.
const NO_APPLICATION_PROTOCOL: u64 = 120;
/// QUIC's error codes for TLS alerts begin here (RFC 9001, section 4.8).
const CRYPTO_ERROR: std::ops::Range<u64> = 0x100..0x200;
/// QUIC's error code of a server that takes no more connections.
const CONNECTION_REFUSED: u64 = 0x2;

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
    /// Segments that are being written at once, over all groups.
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
        }
    }
}

/// A running link. Dropping it stops shipping at once, without goodbye.
#[derive(Debug)]
pub struct SourceLink {
    callers: HashMap<GroupName, Caller>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl SourceLink {
    /// Starts to ship `outboxes` to the site that has the fingerprint `site`. Never gives up; the outboxes are told how the link fares.
    ///
    /// # Errors
    /// [`LinkError::Groups`] or [`LinkError::Tls`]; what may pass is told to the outboxes instead.
    pub fn start(
        options: LinkOptions,
        identity: Arc<Identity>,
        site: Fingerprint,
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
        // Found out now, not at the first attempt.
        tls::source_config(&identity, site)?;
        let shutdown = CancellationToken::new();
        let backoff = Backoff::new(options.backoff_min, options.backoff_max, options.seed);
        let caller = |outbox: &Arc<dyn Outbox>| {
            let group = outbox.group().clone();
            (group.clone(), Caller::new(group, runtime.clone()))
        };
        let callers: HashMap<GroupName, Caller> = outboxes.iter().map(caller).collect();
        let link = Link {
            options: Arc::new(options),
            identity,
            site,
            outboxes,
            callers: callers.clone(),
            shutdown: shutdown.clone(),
        };
        let task = runtime.spawn(link.run(backoff));
        Ok(Self { callers, shutdown, task })
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
    identity: Arc<Identity>,
    site: Fingerprint,
    outboxes: Vec<Arc<dyn Outbox>>,
    callers: HashMap<GroupName, Caller>,
    shutdown: CancellationToken,
}

/// A connection whose site is the pinned one.
struct Connected {
    endpoint: Endpoint,
    connection: Connection,
    address: SocketAddr,
    presented: Arc<Presented>,
}

impl Link {
    async fn run(self, mut backoff: Backoff) {
        loop {
            self.tell(&LinkState::Connecting).await;
            let attempt = tokio::select! {
                attempt = self.connect() => attempt,
                () = self.shutdown.cancelled() => break,
            };
            let error = match attempt {
                Ok(connected) => {
                    let welcomed = AtomicBool::new(false).into();
                    let end = self.use_connection(connected, &welcomed).await;
                    if welcomed.load(Ordering::Relaxed) {
                        backoff.reset();
                    }
                    let Some(error) = end else { break };
                    error
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

    /// Tries the site's addresses one after the other.
    async fn connect(&self) -> Result<Connected, LinkError> {
        let unresolved = |source| LinkError::Resolve { address: self.options.site.clone(), source };
        let addresses: Vec<_> =
            tokio::net::lookup_host(&self.options.site).await.map_err(unresolved)?.collect();
        let mut last = unresolved(std::io::ErrorKind::NotFound.into());
        for address in addresses {
            match self.connect_to(address).await {
                Ok(connected) => return Ok(connected),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<Connected, LinkError> {
        let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let bind = self.options.bind.unwrap_or(SocketAddr::new(any, 0));
        let endpoint = source_endpoint(bind).map_err(|source| LinkError::Bind { address: bind, source })?;
        let (crypto, presented) = tls::source_config(&self.identity, self.site)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport_config(self.options.idle_timeout, self.options.keep_alive));
        let connecting = endpoint
            .connect_with(config, address, tls::SERVER_NAME)
            .map_err(|source| LinkError::Connect { address, source })?;
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(Connected { endpoint, connection, address, presented }),
            Ok(Err(error)) => {
                // Lets the alert that tells the site reach it.
                timeout(GOODBYE_TIMEOUT, endpoint.wait_idle()).await.ok();
                Err(self.explain(error, address, &presented))
            }
            Err(_) => Err(LinkError::Unreachable { address }),
        }
    }

    /// Ships until the connection ends; answers why, or nothing if this side is shutting down.
    async fn use_connection(&self, connected: Connected, welcomed: &Arc<AtomicBool>) -> Option<LinkError> {
        let Connected { endpoint, connection, address, presented } = connected;
        info!(%address, site = %self.site, "connected to the site");
        let permits = Arc::new(Semaphore::new(self.options.segments_in_flight_max.max(1)));
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
                connection: connection.clone(),
                address,
                receipts,
                permits: permits.clone(),
                shutdown: self.shutdown.clone(),
                welcomed: welcomed.clone(),
            };
            let task = groups.spawn(link.run());
            group_of_task.insert(task.id(), outbox.group().clone());
        }
        let mut receipts = JoinSet::new();
        if let Some(key) = presented.key() {
            receipts.spawn(read_receipts(connection.clone(), key.public_key, routes));
        }

        let mut failed = None;
        let mut stopping = false;
        while let Some(ended) = groups.join_next().await {
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
        let reason = connection.close_reason();
        connection.close(code::GOODBYE, b"goodbye");
        timeout(GOODBYE_TIMEOUT, endpoint.wait_idle()).await.ok();
        match (failed, reason) {
            (Some(error), _) => Some(error),
            _ if self.shutdown.is_cancelled() => None,
            _ if stopping => Some(LinkError::SiteStopped),
            (None, Some(reason)) => Some(self.explain(reason, address, &presented)),
            (None, None) => None,
        }
    }

    /// Says in the operator's terms why a connection, or an attempt, ended.
    fn explain(&self, error: ConnectionError, address: SocketAddr, presented: &Presented) -> LinkError {
        let expected = self.site;
        match error {
            ConnectionError::TransportError(ref fault) if CRYPTO_ERROR.contains(&u64::from(fault.code)) => {
                match presented.key().map(|key| key.fingerprint) {
                    Some(actual) if actual != expected => LinkError::WrongSite { address, expected, actual },
                    None => LinkError::NoIdentity { address, expected },
                    Some(_) => LinkError::Lost { address, source: error },
                }
            }
            ConnectionError::ConnectionClosed(ref close) => {
                let number = u64::from(close.error_code);
                let alert = number.wrapping_sub(CRYPTO_ERROR.start);
                if CERTIFICATE_ALERTS.contains(&alert) {
                    LinkError::NotEnrolled { address, own: self.identity.fingerprint() }
                } else if alert == NO_APPLICATION_PROTOCOL {
                    LinkError::OtherProtocol { address }
                } else if number == CONNECTION_REFUSED {
                    LinkError::Limit { address }
                } else {
                    LinkError::Lost { address, source: error }
                }
            }
            ConnectionError::ApplicationClosed(ref close) => match close.error_code {
                code::GOODBYE => LinkError::SiteStopped,
                code::REPLACED => LinkError::Replaced,
                code::ENROLMENT => LinkError::EnrolmentRemoved,
                code::LIMIT => LinkError::Limit { address },
                _ => LinkError::Protocol { reason: String::from_utf8_lossy(&close.reason).into_owned() },
            },
            ConnectionError::TimedOut if presented.key().is_none() => LinkError::Unreachable { address },
            ConnectionError::VersionMismatch => LinkError::OtherProtocol { address },
            source => LinkError::Lost { address, source },
        }
    }
}

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
