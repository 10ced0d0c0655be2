//! The state of a virtual link: both directions, who has which address, what is under way.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::task::Waker;

use tokio::time::Instant;

use super::SERVER;
use crate::model::{Direction, DropCause, Verdict, nanoseconds};
use crate::profile::{Change, LinkProfile, LinkState, Way};

/// IPv4 and UDP headers.
const HEADER_BYTES: u32 = 28;
const CLIENT_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 99, 1);
const NAT_HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const FIRST_PORT: u16 = 20_000;

/// A datagram on its way.
#[derive(Debug, Clone)]
pub(super) struct Datagram {
    /// As the receiver sees it.
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) content: Vec<u8>,
}

/// What has been sent to a socket and not been read.
#[derive(Debug, Default)]
struct Mailbox {
    /// Sorted by the time of arrival, then by the order in which they were sent.
    arriving: BTreeMap<(u64, u64), Datagram>,
    waker: Option<Waker>,
}

impl Mailbox {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
pub(super) struct Net {
    started: Instant,
    directions: [Direction; 2],
    held: [VecDeque<Datagram>; 2],
    script: VecDeque<Change>,
    mailboxes: BTreeMap<SocketAddr, Mailbox>,
    next_port: u16,
    /// How far outside ports are from inside ones.
    nat_shift: u16,
    sent: u64,
    unroutable_packets: u64,
    trace: Trace,
}

impl Net {
    pub(super) fn new(profile: &LinkProfile, seed: u64) -> Net {
        Net {
            started: Instant::now(),
            directions: Way::BOTH.map(|way| Direction::new(profile, way, seed)),
            held: Default::default(),
            script: profile.script.clone().into(),
            mailboxes: BTreeMap::new(),
            next_port: FIRST_PORT,
            nat_shift: 0,
            sent: 0,
            unroutable_packets: 0,
            trace: Trace::new(),
        }
    }

    pub(super) fn open_client(&mut self) -> SocketAddr {
        let local = SocketAddr::from((CLIENT_HOST, self.next_port));
        self.next_port += 1;
        self.open(local);
        local
    }

    pub(super) fn open(&mut self, address: SocketAddr) {
        self.mailboxes.insert(address, Mailbox::default());
    }

    /// Outside ports are taken from ranges of a thousand, one range after the other.
    pub(super) fn rebind_nat(&mut self) {
        self.nat_shift += 1000;
    }

    pub(super) fn direction(&self, way: Way) -> &Direction {
        &self.directions[way as usize]
    }

    pub(super) fn backlog_bytes(&mut self, way: Way) -> u64 {
        let now_ns = self.catch_up();
        self.directions[way as usize].backlog_bytes(now_ns)
    }

    pub(super) fn unroutable_packets(&self) -> u64 {
        self.unroutable_packets
    }

    pub(super) fn trace(&self) -> u64 {
        self.trace.0
    }

    pub(super) fn apply_now(&mut self, change: &Change) {
        let now_ns = self.catch_up();
        self.apply(change, now_ns);
    }

    /// Puts a datagram on the link.
    pub(super) fn send(&mut self, way: Way, datagram: Datagram) {
        let now_ns = self.catch_up();
        let length = datagram.content.len() as u32 + HEADER_BYTES;
        let verdict = self.directions[way as usize].offer(now_ns, length);
        self.trace.record(now_ns, way, length, verdict);
        match verdict {
            Verdict::Hold => {
                // The receiver may sleep without an alarm for the change that releases this.
                if let Some(mailbox) = self.mailbox(datagram.to) {
                    mailbox.wake();
                }
                self.held[way as usize].push_back(datagram);
            }
            verdict => self.settle(datagram, verdict),
        }
    }

    /// A datagram that is due at a socket; or when to ask again, the socket's task being woken if that becomes sooner.
    pub(super) fn receive(&mut self, local: SocketAddr, waker: &Waker) -> Result<Datagram, Option<Instant>> {
        let now_ns = self.catch_up();
        // What is released by a change to come may be for this socket.
        let change_at = match self.held.iter().all(VecDeque::is_empty) {
            true => None,
            false => self.script.front().map(|change| nanoseconds(change.time)),
        };
        let Some(mailbox) = self.mailboxes.get_mut(&local) else { return Err(None) };
        let first = mailbox.arriving.first_key_value().map(|(key, _)| key.0);
        if first.is_some_and(|at_ns| at_ns <= now_ns)
            && let Some((_, datagram)) = mailbox.arriving.pop_first()
        {
            return Ok(datagram);
        }
        mailbox.waker = Some(waker.clone());
        let next_ns = first.into_iter().chain(change_at).min();
        Err(next_ns.map(|at_ns| self.started + std::time::Duration::from_nanos(at_ns)))
    }

    /// The address under which the other side knows a socket.
    pub(super) fn outside(&self, local: SocketAddr) -> SocketAddr {
        match local {
            SERVER => SERVER,
            client => SocketAddr::from((NAT_HOST, client.port() + self.nat_shift)),
        }
    }

    /// The mailbox of the socket that the other side knows under an address.
    fn mailbox(&mut self, outside: SocketAddr) -> Option<&mut Mailbox> {
        let local = match outside {
            SERVER => SERVER,
            nat if nat.ip() == NAT_HOST => {
                SocketAddr::from((CLIENT_HOST, nat.port().checked_sub(self.nat_shift)?))
            }
            _ => return None,
        };
        self.mailboxes.get_mut(&local)
    }

    /// Performs the changes of the script that are due, each at its time, and returns the time.
    fn catch_up(&mut self) -> u64 {
        let now_ns = nanoseconds(self.started.elapsed());
        while let Some(change) = self.script.pop_front_if(|change| nanoseconds(change.time) <= now_ns) {
            let at_ns = nanoseconds(change.time);
            self.apply(&change, at_ns);
        }
        now_ns
    }

    fn apply(&mut self, change: &Change, at_ns: u64) {
        for way in Way::BOTH.into_iter().filter(|way| change.direction.contain(*way)) {
            self.directions[way as usize].apply(change);
            if self.directions[way as usize].link() == LinkState::Hold {
                continue;
            }
            for datagram in std::mem::take(&mut self.held[way as usize]) {
                let length = datagram.content.len() as u32 + HEADER_BYTES;
                let verdict = self.directions[way as usize].release(at_ns, length);
                self.trace.record(at_ns, way, length, verdict);
                self.settle(datagram, verdict);
            }
        }
    }

    /// Puts a datagram whose fate is known into the mailbox of its receiver.
    fn settle(&mut self, datagram: Datagram, verdict: Verdict) {
        let Verdict::Deliver { at_ns, duplicate_at_ns } = verdict else { return };
        // Numbers of packets that arrive at the same time keep the order in which they were sent.
        self.sent += 2;
        let sent = self.sent;
        let Some(mailbox) = self.mailbox(datagram.to) else {
            self.unroutable_packets += 1;
            return;
        };
        if let Some(at_ns) = duplicate_at_ns {
            mailbox.arriving.insert((at_ns, sent + 1), datagram.clone());
        }
        mailbox.arriving.insert((at_ns, sent), datagram);
        // Only when this one is first can the task be sleeping for too long.
        if mailbox.arriving.first_key_value().is_some_and(|(key, _)| *key == (at_ns, sent)) {
            mailbox.wake();
        }
    }
}

/// FNV-1a, 64 bits.
#[derive(Debug)]
struct Trace(u64);

impl Trace {
    fn new() -> Trace {
        Trace(0xcbf2_9ce4_8422_2325)
    }

    fn record(&mut self, now_ns: u64, way: Way, length: u32, verdict: Verdict) {
        let (at_ns, fate) = match verdict {
            Verdict::Drop(cause) => {
                (0, DropCause::ALL.iter().position(|other| *other == cause).unwrap_or(0) as u64)
            }
            Verdict::Hold => (0, 10),
            Verdict::Deliver { at_ns, duplicate_at_ns } => (at_ns, 11 + u64::from(duplicate_at_ns.is_some())),
        };
        for value in [now_ns, way as u64, u64::from(length), at_ns, fate] {
            for byte in value.to_le_bytes() {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
}
