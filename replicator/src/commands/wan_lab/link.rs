//! The two engines that can carry the transport, behind one face.

use std::net::{Ipv4Addr, SocketAddr};

use wan_lab::{Counters, Health, LabError, LinkProfile, Namespaces, Side, UdpRelay, Way};

use crate::args::Engine;
use crate::failure::{Failure, exit, with_causes};

/// Where the site listens inside its namespace.
const SITE_PORT: u16 = 7443;

/// A link whose ends threads can be put on. The site's end is used first: a relay starts when it knows where that is.
pub(super) enum Link {
    Namespaces(Box<Namespaces>),
    Relay(Option<Box<UdpRelay>>),
}

impl Link {
    pub(super) fn new(engine: Engine, profile: &LinkProfile, seed: u64) -> Result<Link, Failure> {
        Ok(match engine {
            Engine::Namespaces => {
                Link::Namespaces(Box::new(Namespaces::start(profile, seed).map_err(failure)?))
            }
            Engine::Relay => Link::Relay(None),
        })
    }

    /// Where the site has to listen.
    pub(super) fn listen_address(&self) -> SocketAddr {
        match self {
            Link::Namespaces(_) => SocketAddr::from((Side::Site.address(), SITE_PORT)),
            Link::Relay(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        }
    }

    /// Where the source has to connect to, for a site that listens at `site`.
    pub(super) fn open(
        &mut self,
        profile: &LinkProfile,
        seed: u64,
        site: SocketAddr,
    ) -> Result<SocketAddr, Failure> {
        let Link::Relay(relay) = self else { return Ok(site) };
        let started = UdpRelay::start(profile, site, seed).map_err(failure)?;
        Ok(relay.insert(Box::new(started)).address())
    }

    /// Runs a closure on a side; threads and sockets that it makes stay there.
    pub(super) fn run<T: Send + 'static>(
        &self,
        side: Side,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        match self {
            Link::Namespaces(namespaces) => namespaces.run(side, run).map_err(failure),
            Link::Relay(_) => Ok(run()),
        }
    }

    pub(super) fn counters(&self, way: Way) -> Counters {
        match self {
            Link::Namespaces(namespaces) => namespaces.counters(way),
            Link::Relay(relay) => relay.as_ref().map(|relay| relay.counters(way)).unwrap_or_default(),
        }
    }

    pub(super) fn backlog_bytes(&self, way: Way) -> u64 {
        match self {
            Link::Namespaces(namespaces) => namespaces.backlog_bytes(way),
            Link::Relay(relay) => relay.as_ref().map_or(0, |relay| relay.backlog_bytes(way)),
        }
    }

    /// What the engine says of itself; to be asked of a link that was opened.
    pub(super) fn health(&self) -> Result<Health, Failure> {
        match self {
            Link::Namespaces(namespaces) => namespaces.health().map_err(failure),
            Link::Relay(Some(relay)) => relay.health().map_err(failure),
            Link::Relay(None) => Err(Failure::new(exit::FAILED, "the relay was not started", "")),
        }
    }
}

fn failure(error: LabError) -> Failure {
    Failure::unreachable(with_causes(&error), error.hint())
}
