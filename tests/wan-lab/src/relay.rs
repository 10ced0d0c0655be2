//! Real time without any rights: relays on loopback that send what they get through the model.
//!
//! [`UdpRelay`] carries datagrams, for QUIC; [`TcpRelay`] carries connections, for object storage. What they cannot do is
//! in `WAN-LAB.md`.

mod tcp;
mod udp;

#[cfg(test)]
mod tests;

pub use tcp::{TcpCounters, TcpRelay};
pub use udp::UdpRelay;
