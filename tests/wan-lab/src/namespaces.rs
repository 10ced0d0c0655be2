//! Real time through the kernel: two network namespaces joined by the model.
//!
//! Each namespace has a TUN device; a thread for each direction carries packets from one to the other. Any program runs in
//! them, with the kernel's own UDP, TCP, offloads and buffers. Namespaces and devices belong to descriptors of this
//! process, so they vanish with it, however it ends.

mod namespace;
mod port;

#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv4Addr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Instant;

use namespace::Namespace;
pub use namespace::SideThread;
use port::TunPort;
use tun_rs::SyncDevice;

use crate::error::LabError;
use crate::health::{Health, LatenessSummary};
use crate::model::Counters;
use crate::profile::{Change, LinkProfile, LinkState, Way};
use crate::pump::Pump;

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const SITE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// One end of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Sends *up*.
    Source,
    /// Sends *down*.
    Site,
}

impl Side {
    /// The address of this end.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Side::Source => SOURCE,
            Side::Site => SITE,
        }
    }
}

/// Two network namespaces with a link between them. They end when this is dropped.
#[derive(Debug)]
pub struct Namespaces {
    source: Namespace,
    site: Namespace,
    up: Pump,
    down: Pump,
    profile: LinkProfile,
}

impl Namespaces {
    /// Makes the namespaces and the link. The profile's script begins to count now.
    ///
    /// # Errors
    /// Missing rights, a kernel without TUN, a missing `ip` (iproute2).
    pub fn start(profile: &LinkProfile, seed: u64) -> Result<Namespaces, LabError> {
        let (source, source_device) = Namespace::make(SOURCE, profile.up.mtu)?;
        let (site, site_device) = Namespace::make(SITE, profile.down.mtu)?;
        let (source_device, site_device) = (Arc::new(source_device), Arc::new(site_device));
        let started = Instant::now();
        let start = |way, from: &Arc<SyncDevice>, to: &Arc<SyncDevice>| {
            Pump::start(profile, way, seed, started, TunPort::new(from.clone(), to.clone()))
        };
        let up = start(Way::Up, &source_device, &site_device)?;
        let down = start(Way::Down, &site_device, &source_device)?;
        Ok(Namespaces { source, site, up, down, profile: profile.clone() })
    }

    /// Runs a closure on a new thread inside a side's namespace. Sockets that it opens, threads and processes that it
    /// starts belong to the namespace, wherever they are used later.
    ///
    /// # Errors
    /// A thread that cannot be started, or may not enter the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        side: Side,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<SideThread<T>, LabError> {
        self.namespace(side).spawn(run)
    }

    /// Runs a closure inside a side's namespace and waits for it, for example to open a socket.
    ///
    /// # Errors
    /// Those of [`Namespaces::spawn`].
    ///
    /// # Panics
    /// If the closure panics.
    pub fn run<T: Send + 'static>(
        &self,
        side: Side,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LabError> {
        self.namespace(side).run(run)
    }

    /// Starts a program inside a side's namespace.
    ///
    /// # Errors
    /// Those of [`Namespaces::spawn`]; the inner ones are those of [`Command::spawn`].
    pub fn command(&self, side: Side, mut command: Command) -> Result<io::Result<Child>, LabError> {
        self.run(side, move || command.spawn())
    }

    /// Changes the link now; `change.time` is not looked at.
    pub fn apply(&self, change: &Change) {
        for way in Way::BOTH.into_iter().filter(|way| change.direction.contain(*way)) {
            self.pump(way).apply(change);
        }
    }

    /// Changes the state of both directions now.
    pub fn set_link(&self, state: LinkState) {
        self.apply(&Change::link(state));
    }

    /// What happened to the packets of a direction.
    pub fn counters(&self, way: Way) -> Counters {
        self.pump(way).counters()
    }

    /// Bytes that wait before the bottleneck of a direction, or are held.
    pub fn backlog_bytes(&self, way: Way) -> u64 {
        self.pump(way).backlog_bytes()
    }

    /// Whether the emulator kept up until now.
    ///
    /// # Errors
    /// A thread that has ended.
    pub fn health(&self) -> Result<Health, LabError> {
        for way in Way::BOTH {
            if let Some(source) = self.pump(way).failure() {
                return Err(LabError::Engine { way: way.name(), source });
            }
        }
        let refused = self.up.refused_packets() + self.down.refused_packets();
        Ok(Health {
            overload_packets: refused + self.source.device_drops()? + self.site.device_drops()?,
            realtime: self.up.is_realtime() && self.down.is_realtime(),
            lateness: Way::BOTH.map(|way| LatenessSummary::of(self.pump(way).lateness())),
            round_trip: self.profile.round_trip(),
        })
    }

    fn namespace(&self, side: Side) -> &Namespace {
        match side {
            Side::Source => &self.source,
            Side::Site => &self.site,
        }
    }

    fn pump(&self, way: Way) -> &Pump {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }
}
