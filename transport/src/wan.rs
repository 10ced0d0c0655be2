//! Links and sites over an emulated line, in virtual time.

mod limits;
mod outages;
mod rates;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::AsyncUdpSocket;
use tokio::runtime::Handle;
use tokio::time::Instant;
use wan_lab::{LinkProfile, VirtualNet};

use crate::testing::{Lab, MemoryOutbox};
use crate::{LinkOptions, Network, Outbox, SiteOptions, SiteServer, SourceLink};

const MIB: usize = 1 << 20;

/// Whether everything is tried.
fn is_full() -> bool {
    std::env::var_os("THIRDSITE_TEST_SCALE").is_some_and(|scale| scale == "full")
}

/// What lines carry, in megabits per second.
fn megabits() -> u64 {
    if is_full() { 50 } else { 16 }
}

/// One end of a line.
#[derive(Debug)]
struct LineEnd {
    net: VirtualNet,
    is_site: bool,
}

impl Network for LineEnd {
    fn bind(&self, _address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(if self.is_site { self.net.server_socket() } else { self.net.client_socket() })
    }

    fn source_address(&self, _remote: SocketAddr) -> io::Result<IpAddr> {
        Ok(IpAddr::from([192, 168, 99, 1]))
    }
}

/// A link and a site with a line between them.
struct Line {
    lab: Lab,
    net: VirtualNet,
    server: SiteServer,
}

impl Line {
    fn new(profile: &LinkProfile, seed: u64) -> Self {
        let lab = Lab::new();
        let (net, _, _) = VirtualNet::new(profile, seed);
        let network = Arc::new(LineEnd { net: net.clone(), is_site: true });
        let options = SiteOptions {
            network,
            enrolment_interval: Duration::from_secs(2),
            ..SiteOptions::new(net.server_address(), lab.enrolled())
        };
        let server = lab.serve_with(options, &Handle::current());
        Self { lab, net, server }
    }

    fn options(&self) -> LinkOptions {
        let network = Arc::new(LineEnd { net: self.net.clone(), is_site: false });
        LinkOptions { network, ..LinkOptions::new(self.net.server_address().to_string(), 1) }
    }

    fn ship(&self, options: LinkOptions, outboxes: &[&Arc<MemoryOutbox>]) -> SourceLink {
        let outboxes = outboxes.iter().map(|outbox| Arc::clone(outbox) as Arc<dyn Outbox>).collect();
        let sites = vec![self.lab.site.fingerprint()];
        SourceLink::start(options, self.lab.source.clone(), sites, outboxes, &Handle::current()).unwrap()
    }

    /// Bytes that the site took so far, needed or not.
    fn received(&self) -> u64 {
        self.lab.inbox.0.read(|state| state.received_bytes)
    }

    /// Bytes per second that arrive within `seconds` from now on.
    async fn rate(&self, seconds: f64) -> f64 {
        let before = self.received();
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        (self.received() - before) as f64 / seconds
    }

    async fn until_received(&self, bytes: u64, patience: Duration) -> Duration {
        let begun = Instant::now();
        while self.received() < bytes {
            assert!(begun.elapsed() < patience, "{} of {bytes} bytes arrived", self.received());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        begun.elapsed()
    }

    async fn end(self, link: SourceLink) {
        link.shutdown().await;
        self.server.shutdown().await;
    }
}

/// Bytes per second of segments that a line can carry at most: a packet of 1480 bytes on the wire has 1418 of them.
fn ceiling() -> f64 {
    megabits() as f64 * 1e6 / 8.0 * 1418.0 / 1480.0
}
