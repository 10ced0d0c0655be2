//! Connects to the site, and connects again beside a connection that has fallen silent.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info};

use super::{LinkError, LinkOptions};
use crate::congestion::PathMemory;
use crate::identity::{Fingerprint, Identity};
use crate::meter::Meter;
use crate::network::any_address;
use crate::quic::{ConnectionSettings, code, source_endpoint, transport_config};
use crate::tls::{self, Presented};

/// Time for all attempts at one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time from one attempt to the next; the ones before go on beside it.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(2);
/// Time for one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6);
/// Attempts beside a silent connection of which one comes from a new socket, whatever the system says of its addresses.
const ATTEMPTS_PER_SOCKET: u32 = 4;

/// TLS alerts (RFC 8446, section 6.2) with which a site refuses a certificate.
const CERTIFICATE_ALERTS: [u64; 5] = [42, 46, 48, 49, 116];
/// TLS alert for a protocol that is not spoken.
const NO_APPLICATION_PROTOCOL: u64 = 120;
/// QUIC's error codes for TLS alerts begin here (RFC 9001, section 4.8).
const CRYPTO_ERROR: std::ops::Range<u64> = 0x100..0x200;
/// QUIC's error code of a server that takes no more connections.
const CONNECTION_REFUSED: u64 = 0x2;

/// A connection whose site is a pinned one.
#[derive(Clone)]
pub(crate) struct Connected {
    pub(crate) endpoint: Endpoint,
    pub(crate) connection: Connection,
    pub(crate) address: SocketAddr,
    /// Local address at the time.
    pub(crate) source: Option<IpAddr>,
    pub(crate) presented: Arc<Presented>,
}

/// What attempts to connect have in common.
pub(crate) struct Dialer {
    pub(crate) options: Arc<LinkOptions>,
    pub(crate) identity: Arc<Identity>,
    /// Fingerprints of which the site has one.
    pub(crate) sites: Vec<Fingerprint>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) memory: Arc<PathMemory>,
    /// Application protocol that is asked for.
    pub(crate) protocol: &'static [u8],
}

impl Dialer {
    /// Tries the site's addresses one after the other.
    pub(crate) async fn connect(&self) -> Result<Connected, LinkError> {
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
        let bind = self.local_address(address);
        let endpoint =
            self.options.network.bind(bind).and_then(|socket| source_endpoint(self.meter.wrap(socket)));
        let endpoint = endpoint.map_err(|source| LinkError::Bind { address: bind, source })?;
        let mut attempts = Attempts::new();
        let connect = async {
            loop {
                if let Some(result) = attempts.next(self, &endpoint, address).await {
                    return result;
                }
            }
        };
        let result =
            timeout(CONNECT_TIMEOUT, connect).await.unwrap_or(Err(LinkError::Unreachable { address }));
        if result.is_err() {
            attempts.tasks.abort_all();
            // Lets the alert that tells the site reach it.
            timeout(super::GOODBYE_TIMEOUT, endpoint.wait_idle()).await.ok();
        }
        result
    }

    fn local_address(&self, remote: SocketAddr) -> SocketAddr {
        self.options.bind.unwrap_or_else(|| any_address(remote))
    }

    /// Connects anew beside `silent` until an attempt succeeds.
    pub(crate) async fn race(&self, silent: &Connected) -> Connected {
        let Connected { endpoint, address, .. } = silent;
        info!(%address, "the line is silent; connections are tried beside the one that there is");
        let mut attempts = Attempts::new();
        loop {
            self.renew_socket(silent, attempts.begun);
            match attempts.next(self, endpoint, *address).await {
                Some(Ok(connected)) => return connected,
                Some(Err(error)) => debug!(%error, "an attempt beside a silent connection failed"),
                None => {}
            }
        }
    }

    /// Takes a new socket if the old one may be of no use any more.
    fn renew_socket(&self, silent: &Connected, begun: u32) {
        let bind = self.local_address(silent.address);
        if bind.port() != 0 {
            // The operator wants this port; the kernel finds the way.
            return;
        }
        let source = self.options.network.source_address(silent.address).ok();
        let moved = source.is_some() && source != silent.source;
        if !moved && !self.meter.take_unreachable() && begun % ATTEMPTS_PER_SOCKET != ATTEMPTS_PER_SOCKET - 1
        {
            return;
        }
        let renewed = self.options.network.bind(bind);
        let renewed = renewed.and_then(|socket| silent.endpoint.rebind_abstract(self.meter.wrap(socket)));
        if let Err(error) = renewed {
            debug!(%error, "no new socket for the silent line");
        }
    }

    async fn attempt(
        config: ClientConfig,
        endpoint: Endpoint,
        address: SocketAddr,
    ) -> Result<Connection, Option<ConnectionError>> {
        let connecting = endpoint.connect_with(config, address, tls::SERVER_NAME);
        let connecting = connecting.map_err(|error| {
            debug!(%error, "an attempt cannot be begun");
            None
        })?;
        match timeout(ATTEMPT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Some(error)),
            Err(_) => Err(None),
        }
    }

    /// Says in the operator's terms why a connection, or an attempt, ended.
    pub(crate) fn explain(
        &self,
        error: ConnectionError,
        address: SocketAddr,
        presented: &Presented,
    ) -> LinkError {
        let expected = self.sites[0];
        match error {
            ConnectionError::TransportError(ref fault) if CRYPTO_ERROR.contains(&u64::from(fault.code)) => {
                match presented.key().map(|key| key.fingerprint) {
                    Some(actual) if !self.sites.contains(&actual) => {
                        LinkError::WrongSite { address, expected, actual }
                    }
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

/// Why an attempt failed, and who answered.
type Unsuccessful = (ConnectionError, Arc<Presented>);

/// Attempts that go on beside each other.
struct Attempts {
    tasks: JoinSet<Result<Connected, Option<Unsuccessful>>>,
    tick: tokio::time::Interval,
    begun: u32,
}

impl Attempts {
    fn new() -> Self {
        let mut tick = interval(ATTEMPT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { tasks: JoinSet::new(), tick, begun: 0 }
    }

    /// Begins an attempt, or answers what became of one that says something.
    async fn next(
        &mut self,
        dialer: &Dialer,
        endpoint: &Endpoint,
        address: SocketAddr,
    ) -> Option<Result<Connected, LinkError>> {
        tokio::select! {
            biased;
            Some(ended) = self.tasks.join_next() => match ended {
                Ok(Ok(connected)) => {
                    if let Some(reason) = connected.connection.close_reason() {
                        return Some(Err(dialer.explain(reason, address, &connected.presented)));
                    }
                    Some(Ok(connected))
                }
                Ok(Err(Some((error, presented)))) => Some(Err(dialer.explain(error, address, &presented))),
                Ok(Err(None)) | Err(_) => None,
            },
            _ = self.tick.tick() => {
                self.begun += 1;
                let (crypto, presented) = match tls::source_config(&dialer.identity, &dialer.sites, dialer.protocol) {
                    Ok(config) => config,
                    Err(error) => return Some(Err(error.into())),
                };
                let mut config = ClientConfig::new(Arc::new(crypto));
                config.transport_config(transport_config(ConnectionSettings {
                    idle_timeout: dialer.options.idle_timeout,
                    keep_alive: dialer.options.keep_alive,
                    segmentation_offload: dialer.options.segmentation_offload,
                    memory: Some(dialer.memory.clone()),
                }));
                let (endpoint, source) =
                    (endpoint.clone(), dialer.options.network.source_address(address).ok());
                self.tasks.spawn(async move {
                    match Dialer::attempt(config, endpoint.clone(), address).await {
                        Ok(connection) => Ok(Connected { endpoint, connection, address, source, presented }),
                        Err(error) => Err(error.map(|error| (error, presented))),
                    }
                });
                None
            }
        }
    }
}

impl Drop for Attempts {
    /// One that was late by a little is not needed any more; the site shall not take it for the newest.
    fn drop(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Ok(Ok(connected)) = ended {
                connected.connection.close(code::GOODBYE, b"another connection was first");
            }
        }
    }
}
