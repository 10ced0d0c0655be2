//! From one TUN device to another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use tun_rs::SyncDevice;

use crate::pump::Port;

pub(super) struct TunPort {
    from: Arc<SyncDevice>,
    to: Arc<SyncDevice>,
}

impl TunPort {
    pub(super) fn new(from: Arc<SyncDevice>, to: Arc<SyncDevice>) -> TunPort {
        TunPort { from, to }
    }
}

impl Port for TunPort {
    fn source(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.from.recv(buffer)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.to.send(packet).map(drop)
    }

    /// A TUN device hands over whole IP packets.
    fn header_bytes(&self) -> u32 {
        0
    }
}
