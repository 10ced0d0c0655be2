//! The site's side: accepts enrolled sources and hands what they send to the inbox.

mod addresses;
mod connection;
mod group;
mod measure;
mod partials;
mod receipts;
mod registry;
mod segment;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use journal_format::{ErrorKind, GroupName, Timestamp};
use quinn::{Connection, Endpoint, Incoming, ServerConfig};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::causes::causes;
use crate::clock::Clock;
use crate::enrolment::{EnrolledPeer, Enrolment, EnrolmentError};
use crate::identity::{Fingerprint, Identity};
use crate::names::PeerName;
use crate::network::{Network, SystemNetwork};
use crate::quic::{ConnectionSettings, code, site_endpoint, transport_config};
use crate::tls;
use crate::traits::Inbox;
use crate::wire::SEGMENT_BYTES_MAX;
use addresses::Addresses;
use measure::Measuring;
pub use partials::PartialLimits;
use partials::Partials;
use registry::Registry;

/// Time for a handshake, for Hello, and for a segment's header.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at once.
const HANDSHAKES_MAX: usize = 64;
/// Handshakes under way from which on a peer has to show that it receives at its address.
const HANDSHAKES_UNVALIDATED_MAX: usize = 16;
/// Connections at once.
const CONNECTIONS_MAX: usize = 256;
/// Time for which a site that shuts down waits until sources have heard its goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for sources to hear that they are cut off; one that is gone drains for longer, and nobody waits for it.
const CUT_OFF_TIMEOUT: Duration = Duration::from_millis(250);
/// Between two looks whether the system has taken back an address.
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// How a site behaves.
#[derive(Clone, Debug)]
pub struct SiteOptions {
    /// Local address, for example `[::]:7443`.
    pub listen: SocketAddr,
    /// The list of sources that may connect; see [`Enrolment`].
    pub enrolled: PathBuf,
    /// Version of this software, for people at the source.
    pub software: String,
    /// Largest segment that is taken, in bytes; at most [`SEGMENT_BYTES_MAX`].
    pub segment_bytes_max: u64,
    /// Time between two looks at the list, which decides how soon a removed peer is disconnected.
    pub enrolment_interval: Duration,
    /// Time that a newer session of a group waits for the older one to end.
    pub takeover_timeout: Duration,
    /// What is kept of segments that are not complete.
    pub partials: PartialLimits,
    /// Hand batches of datagrams to the kernel, which splits them. Some drivers and carriers lose such batches.
    pub segmentation_offload: bool,
    /// Where the socket comes from.
    pub network: Arc<dyn Network>,
    /// The clock whose time is in receipts and reports.
    pub clock: Clock,
}

impl SiteOptions {
    /// The usual behaviour.
    pub fn new(listen: SocketAddr, enrolled: impl Into<PathBuf>) -> Self {
        Self {
            listen,
            enrolled: enrolled.into(),
            software: concat!("thirdsite ", env!("CARGO_PKG_VERSION")).to_owned(),
            segment_bytes_max: SEGMENT_BYTES_MAX,
            enrolment_interval: Duration::from_secs(2),
            takeover_timeout: Duration::from_secs(30),
            partials: PartialLimits::default(),
            segmentation_offload: true,
            network: Arc::new(SystemNetwork),
            clock: crate::clock::system_time,
        }
    }
}

/// Why a site cannot listen.
#[derive(Debug, Error)]
pub enum SiteError {
    /// Another process has the address.
    #[error(
        "UDP address {address} is in use; another site daemon may be running: stop it, or choose another 'listen' address in the site's settings"
    )]
    AddressInUse {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The address cannot be used.
    #[error("cannot listen on UDP address {address}; check the 'listen' address in the site's settings")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// TLS does not take the site's identity.
    #[error(
        "TLS cannot be set up with this site's identity; restore its folder from a backup or make it anew"
    )]
    Tls(#[from] rustls::Error),
    /// The list of sources cannot be used.
    #[error("the list of enrolled sources cannot be used")]
    Enrolment(#[from] EnrolmentError),
}

impl SiteError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SiteError::Enrolment(error) => error.kind(),
            _ => ErrorKind::Invalid,
        }
    }
}

/// What is to be told about a site's connections.
#[derive(Clone, Debug, Default)]
pub struct SiteStatus {
    /// Sources that are connected, by name.
    pub peers: Vec<PeerStatus>,
    /// The newest attempt of an identity that is not enrolled.
    pub refused: Option<RefusedIdentity>,
}

/// A source that is connected.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Its name in the list.
    pub name: PeerName,
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// Where it connects from.
    pub address: SocketAddr,
    /// Since when, by the site's clock.
    pub since: Timestamp,
    /// Groups with an open session.
    pub groups: Vec<GroupName>,
}

/// An identity that was refused because it is not enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedIdentity {
    /// The identity; none if the peer showed none of this product.
    pub fingerprint: Option<Fingerprint>,
    /// Where it connected from.
    pub address: SocketAddr,
    /// When, by the site's clock.
    pub at: Timestamp,
}

/// A site that listens. Dropping it stops at once, without goodbye.
#[derive(Debug)]
pub struct SiteServer {
    address: SocketAddr,
    status: watch::Receiver<SiteStatus>,
    shutdown: CancellationToken,
    without_goodbye: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl SiteServer {
    /// Listens for sources in the list, which may change while the site runs.
    ///
    /// # Errors
    /// [`SiteError`]: address in use, or identity or list unusable.
    pub fn bind(
        options: SiteOptions,
        identity: Arc<Identity>,
        inbox: Arc<dyn Inbox>,
        runtime: &Handle,
    ) -> Result<Self, SiteError> {
        let _entered = runtime.enter();
        let enrolment = Enrolment::load(&options.enrolled)?;
        if enrolment.peers().is_empty() {
            warn!(list = %options.enrolled.display(), "no source is enrolled, so every one is refused; add one with 'thirdsite site enroll'");
        }
        // Used for nothing but to begin with; each handshake has a configuration of its own.
        let server = server_config(&identity, Enrolment::default(), options.segmentation_offload)?.0;
        let address = options.listen;
        let bound = options.network.bind(address).and_then(|socket| site_endpoint(socket, &identity, server));
        let endpoint = bound.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => SiteError::AddressInUse { address, source },
            _ => SiteError::Bind { address, source },
        })?;
        let address = endpoint.local_addr().map_err(|source| SiteError::Bind { address, source })?;
        info!(%address, fingerprint = %identity.fingerprint(), "listening for sources");

        let shutdown = CancellationToken::new();
        let (registry, status) = Registry::new();
        let without_goodbye = Arc::new(AtomicBool::new(false));
        let site = Arc::new(Site {
            partials: Arc::new(Partials::new(options.partials)),
            options,
            identity,
            inbox,
            registry,
            addresses: Arc::default(),
            measuring: Measuring::default(),
            shutdown: shutdown.clone(),
            without_goodbye: without_goodbye.clone(),
        });
        let task = runtime.spawn(site.run(endpoint));
        Ok(Self { address, status, shutdown, without_goodbye, task })
    }

    /// The address that it listens on, with the port that the system chose if port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Who is connected, and who was refused; changes are told.
    pub fn status(&self) -> watch::Receiver<SiteStatus> {
        self.status.clone()
    }

    /// Ends all sessions in good order and stops listening. What is being made durable is finished, and its receipt sent.
    pub async fn shutdown(self) {
        self.end().await;
    }

    /// Ends all sessions at once, without waiting for what a source that may be dead has to say, and stops listening. What is being made durable
    /// is finished.
    pub async fn cut_off(self) {
        self.without_goodbye.store(true, Ordering::Release);
        self.end().await;
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            error!("the site's accepting task had failed before it was shut down");
        }
    }
}

impl Drop for SiteServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all connections share.
struct Site {
    options: SiteOptions,
    partials: Arc<Partials>,
    identity: Arc<Identity>,
    inbox: Arc<dyn Inbox>,
    registry: Arc<Registry>,
    /// Who is shaking hands.
    addresses: Arc<Addresses>,
    /// Who is measuring its path.
    measuring: Measuring,
    shutdown: CancellationToken,
    without_goodbye: Arc<AtomicBool>,
}

type Handshake = (ServerConfig, Arc<tls::Presented>);

fn server_config(
    identity: &Identity,
    enrolment: Enrolment,
    offload: bool,
) -> Result<Handshake, rustls::Error> {
    let (crypto, presented) = tls::site_config(identity, enrolment)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    let settings = ConnectionSettings { segmentation_offload: offload, ..ConnectionSettings::default() };
    config.transport_config(transport_config(settings)).max_incoming(HANDSHAKES_MAX);
    Ok((config, presented))
}

impl Site {
    async fn run(self: Arc<Self>, endpoint: Endpoint) {
        let connections = TaskTracker::new();
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let mut recheck = interval(self.options.enrolment_interval);
        recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                incoming = endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    self.greet(incoming, &handshakes, &connections);
                }
                _ = recheck.tick() => {
                    self.recheck().await;
                    group::discard(self.partials.expire(tokio::time::Instant::now().into_std())).await;
                }
                () = self.shutdown.cancelled() => break,
            }
        }
        connections.close();
        // Connections end when their sources have answered the goodbye, or after a while.
        let says_goodbye = !self.without_goodbye.load(Ordering::Acquire);
        if says_goodbye {
            timeout(GOODBYE_TIMEOUT, connections.wait()).await.ok();
        }
        endpoint.close(code::GOODBYE, b"the site is shutting down");
        connections.wait().await;
        let patience = if says_goodbye { GOODBYE_TIMEOUT } else { CUT_OFF_TIMEOUT };
        timeout(patience, endpoint.wait_idle()).await.ok();
        release(&endpoint).await;
    }

    fn greet(self: &Arc<Self>, incoming: Incoming, handshakes: &Arc<Semaphore>, connections: &TaskTracker) {
        let under_way = HANDSHAKES_MAX - handshakes.available_permits();
        if under_way >= HANDSHAKES_UNVALIDATED_MAX && !incoming.remote_address_validated() {
            // Cannot fail for an address that is not validated; dropped, it is refused.
            incoming.retry().ok();
            return;
        }
        let Some(place) = self.addresses.enter(incoming.remote_address().ip()) else {
            incoming.refuse();
            return;
        };
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            return;
        };
        if connections.len() >= CONNECTIONS_MAX {
            incoming.refuse();
            return;
        }
        let site = self.clone();
        connections.spawn(async move {
            let address = incoming.remote_address();
            let greeted = timeout(GREETING_TIMEOUT, site.handshake(incoming)).await;
            drop((permit, place));
            match greeted {
                Ok(Some((connection, peer))) if measure::is_asked_for(&connection) => {
                    measure::serve(&site, connection, &peer).await;
                }
                Ok(Some((connection, peer))) => connection::serve(site, connection, peer).await,
                Ok(None) => {}
                Err(_) => warn!(%address, "a handshake took too long"),
            }
        });
    }

    /// Checks who connects against the list as it is now.
    async fn handshake(&self, incoming: Incoming) -> Option<(Connection, EnrolledPeer)> {
        let address = incoming.remote_address();
        let enrolment = match self.enrolment().await {
            Ok(enrolment) => enrolment,
            Err(error) => {
                error!(%address, %error, cause = causes(&error), "every new connection is refused, because the list of enrolled sources cannot be used");
                Enrolment::default()
            }
        };
        let (config, presented) =
            match server_config(&self.identity, enrolment.clone(), self.options.segmentation_offload) {
                Ok(config) => config,
                Err(error) => {
                    error!(%error, "TLS cannot be set up");
                    incoming.refuse();
                    return None;
                }
            };
        let connected = match incoming.accept_with(Arc::new(config)) {
            Ok(connecting) => connecting.await,
            Err(error) => Err(error),
        };
        let fingerprint = presented.key().map(|key| key.fingerprint);
        let peer = fingerprint.and_then(|fingerprint| enrolment.find(&fingerprint)).cloned();
        match (connected, peer) {
            (Ok(connection), Some(peer)) => {
                let fingerprint = fingerprint.unwrap_or(peer.fingerprint);
                Some((connection, EnrolledPeer { fingerprint, ..peer }))
            }
            (Ok(connection), None) => {
                connection.close(code::ENROLMENT, b"not enrolled");
                None
            }
            (Err(error), peer) => {
                if peer.is_none() {
                    warn!(%address, fingerprint = fingerprint.map(tracing::field::display), %error, "an identity that is not enrolled was refused; if it is one of yours: 'thirdsite site enroll --name NAME --group GROUP --fingerprint FINGERPRINT'");
                    self.registry.refused(RefusedIdentity {
                        fingerprint,
                        address,
                        at: (self.options.clock)(),
                    });
                } else {
                    warn!(%address, %error, "a handshake failed");
                }
                None
            }
        }
    }

    async fn enrolment(&self) -> Result<Enrolment, EnrolmentError> {
        let path = self.options.enrolled.clone();
        match tokio::task::spawn_blocking(move || Enrolment::load(&path)).await {
            Ok(loaded) => loaded,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Disconnects whoever is no longer entitled to what it is connected for.
    async fn recheck(&self) {
        match self.enrolment().await {
            Ok(enrolment) => self.registry.disconnect_unless(|peer| {
                enrolment.find(&peer.fingerprint).is_some_and(|entry| {
                    entry.name == peer.name && peer.groups.iter().all(|group| entry.groups.contains(group))
                })
            }),
            Err(error) => {
                error!(%error, cause = causes(&error), "the list of enrolled sources cannot be used; connections go on, new ones are refused");
            }
        }
    }
}

/// Lets go of the endpoint's address, also while connections of sources that are gone still drain: whoever serves there next, perhaps this
/// very process in another role, has to be able to bind it.
async fn release(endpoint: &Endpoint) {
    let Ok(address) = endpoint.local_addr() else { return };
    let unused: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, 0).into(),
    };
    // Twice, because quinn keeps the socket before the one in use for packets that are under way.
    for _ in 0..2 {
        if UdpSocket::bind(unused).and_then(|socket| endpoint.rebind(socket)).is_err() {
            return;
        }
    }
    let is_held = || UdpSocket::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    let released = async {
        while is_held() {
            sleep(RELEASE_PAUSE).await;
        }
    };
    timeout(GOODBYE_TIMEOUT, released).await.ok();
}

#[cfg(test)]
mod tests;
