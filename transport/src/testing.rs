//! Both sides in memory, for tests: an outbox, an inbox, identities, and waiting for events instead of sleeping.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use journal_format::{Epoch, Generation, GroupName, Hash, Position, Sequence, Timestamp};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use crate::{
    Begin, CallAnswer, CallRequest, EnrolledPeer, Enrolment, Heartbeat, Identity, Inbox, LinkOptions,
    LinkState, NewestCut, Outbox, PeerName, Refusal, RefusalKind, SegmentDescriptor, SegmentSink, SiteError,
    SiteOptions, SiteServer, SourceLink,
};

/// Longer than anything that is waited for takes, so that a fault fails a test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A value that can be waited for.
pub(crate) struct Watched<T>(watch::Sender<T>);

impl<T> Watched<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(watch::channel(value).0)
    }

    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut result = None;
        self.0.send_modify(|value| result = Some(change(value)));
        result.expect("the change was made")
    }

    pub(crate) fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.0.borrow())
    }

    pub(crate) async fn until(&self, what: &str, condition: impl FnMut(&T) -> bool) {
        let mut receiver = self.0.subscribe();
        let reached = tokio::time::timeout(PATIENCE, receiver.wait_for(condition)).await;
        assert!(matches!(reached, Ok(Ok(_))), "waited in vain until {what}");
    }
}

pub(crate) async fn until<T: Clone>(
    receiver: &mut watch::Receiver<T>,
    what: &str,
    condition: impl FnMut(&T) -> bool,
) -> T {
    let reached = tokio::time::timeout(PATIENCE, receiver.wait_for(condition)).await;
    match reached {
        Ok(Ok(value)) => value.clone(),
        _ => panic!("waited in vain until {what}"),
    }
}

pub(crate) fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

pub(crate) fn peer(name: &str) -> PeerName {
    name.parse().unwrap()
}

/// A segment whose bytes and hashes follow from its sequence, its size and its parent.
pub(crate) fn segment(sequence: u64, size: usize, parent: Hash) -> (SegmentDescriptor, Vec<u8>) {
    let bytes: Vec<u8> = (0..size).map(|index| (index as u64 * 31 + sequence) as u8).collect();
    let hash = Hash::of(&[&parent.0[..], &bytes].concat());
    let position = Position {
        generation: Generation(1),
        sequence: Sequence(sequence),
        epoch: Epoch(sequence * 2),
        hash,
    };
    (SegmentDescriptor { position, parent, size_bytes: size as u64 }, bytes)
}

#[derive(Default)]
pub(crate) struct OutboxState {
    pub(crate) segments: Vec<(SegmentDescriptor, Vec<u8>)>,
    pub(crate) receipts: Vec<Position>,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) links: Vec<LinkState>,
    pub(crate) site_heads: Vec<Option<Position>>,
    /// When it was asked for heartbeats.
    pub(crate) heartbeats_at: Vec<tokio::time::Instant>,
}

impl OutboxState {
    pub(crate) fn confirmed(&self) -> u64 {
        self.receipts.last().map_or(0, |receipt| receipt.sequence.0)
    }

    /// Errors with which the link was down so far.
    pub(crate) fn errors(&self) -> impl Iterator<Item = &crate::LinkError> {
        self.links.iter().filter_map(|state| match state {
            LinkState::Disconnected(error) => Some(&**error),
            _ => None,
        })
    }
}

pub(crate) struct MemoryOutbox {
    group: GroupName,
    wake: Notify,
    /// When its segments have to be at the site; zero for no target.
    due: AtomicI64,
    pub(crate) state: Watched<OutboxState>,
}

impl MemoryOutbox {
    pub(crate) fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            group: group(name),
            wake: Notify::new(),
            due: AtomicI64::new(0),
            state: Watched::new(OutboxState::default()),
        })
    }

    pub(crate) fn seal(&self, sizes: impl IntoIterator<Item = usize>) {
        self.state.change(|state| {
            for size in sizes {
                let parent = state.segments.last().map_or(Hash::ZERO, |(last, _)| last.position.hash);
                state.segments.push(segment(state.segments.len() as u64 + 1, size, parent));
            }
        });
        self.wake.notify_one();
    }

    pub(crate) fn set_due(&self, due: i64) {
        self.due.store(due, Ordering::Relaxed);
    }

    pub(crate) async fn until_confirmed(&self, sequence: u64) {
        self.state.until("everything is confirmed", |state| state.confirmed() >= sequence).await;
    }
}

impl Outbox for MemoryOutbox {
    fn group(&self) -> &GroupName {
        &self.group
    }

    fn generation(&self) -> Generation {
        Generation(1)
    }

    fn head(&self) -> Option<Position> {
        self.state.read(|state| state.segments.last().map(|(segment, _)| segment.position))
    }

    fn oldest(&self) -> Sequence {
        Sequence(1)
    }

    fn site_head(&self, head: Option<Position>) -> Result<Sequence, Refusal> {
        self.state.change(|state| state.site_heads.push(head));
        Ok(head.map_or(Sequence(1), |head| head.sequence.next()))
    }

    fn pending(&self, from: Sequence, limit: usize) -> Vec<SegmentDescriptor> {
        self.state.read(|state| {
            let later = state.segments.iter().filter(|(segment, _)| segment.position.sequence >= from);
            later.map(|(segment, _)| *segment).take(limit).collect()
        })
    }

    fn open(&self, sequence: Sequence) -> io::Result<File> {
        let bytes = self.state.read(|state| state.segments[sequence.0 as usize - 1].1.clone());
        let mut file = tempfile::tempfile()?;
        file.write_all(&bytes)?;
        file.rewind()?;
        Ok(file)
    }

    fn due(&self, _segment: &SegmentDescriptor) -> Option<Timestamp> {
        Some(self.due.load(Ordering::Relaxed)).filter(|due| *due > 0).map(Timestamp)
    }

    fn wake(&self) -> &Notify {
        &self.wake
    }

    fn receipt(&self, position: Position) {
        self.state.change(|state| state.receipts.push(position));
    }

    fn heartbeat(&self) -> Heartbeat {
        self.state.change(|state| state.heartbeats_at.push(tokio::time::Instant::now()));
        let newest_cut = Some(NewestCut { epoch: Epoch(7), time: Timestamp(8) });
        Heartbeat {
            now: Timestamp(9),
            newest_cut,
            backlog_bytes: 10,
            backlog_segments: 11,
            state: "é".repeat(5000),
        }
    }

    fn refused(&self, refusal: &Refusal) {
        self.state.change(|state| state.refusals.push(refusal.clone()));
    }

    fn link(&self, link: LinkState) {
        self.state.change(|state| state.links.push(link));
    }
}

#[derive(Default)]
pub(crate) struct InboxState {
    /// What is durable, by group and sequence.
    pub(crate) segments: BTreeMap<(GroupName, Sequence), (SegmentDescriptor, Vec<u8>)>,
    /// Every segment that was begun to be received.
    pub(crate) begun: Vec<(GroupName, Sequence)>,
    pub(crate) heartbeats: Vec<Heartbeat>,
    pub(crate) heartbeats_at: Vec<tokio::time::Instant>,
    pub(crate) opened: Vec<GroupName>,
    pub(crate) closed: Vec<GroupName>,
    /// Answered to the next attempt to begin this segment.
    pub(crate) refuse: BTreeMap<Sequence, Refusal>,
    pub(crate) sinks: usize,
    /// Bytes that sinks took, whether or not they were needed.
    pub(crate) received_bytes: u64,
    /// The same by group.
    pub(crate) received_of: BTreeMap<GroupName, u64>,
}

impl InboxState {
    pub(crate) fn head(&self, group: &GroupName) -> Option<Position> {
        let mut head: Option<Position> = None;
        loop {
            let next = head.map_or(Sequence(1), |head| head.sequence.next());
            match self.segments.get(&(group.clone(), next)) {
                Some((segment, _)) => head = Some(segment.position),
                None => return head,
            }
        }
    }
}

#[derive(Clone)]
pub(crate) struct MemoryInbox(pub(crate) Arc<Watched<InboxState>>);

impl MemoryInbox {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Watched::new(InboxState::default())))
    }
}

impl Inbox for MemoryInbox {
    fn claim(&self, _peer: &PeerName, _group: &GroupName, _generation: Generation) -> Result<(), Refusal> {
        Ok(())
    }

    fn call(&self, group: &GroupName, request: CallRequest) -> Result<CallAnswer, Refusal> {
        match request {
            // Echoes, so that a test sees that question and answer belong together.
            CallRequest::Pair(bytes) => Ok(CallAnswer::Pair(bytes)),
            CallRequest::Attached { .. } | CallRequest::Blocks { .. } => {
                Err(Refusal::new(RefusalKind::Invalid, "this site lists nothing", ""))
            }
            CallRequest::Compare { .. } => Ok(CallAnswer::Compared {
                head: self.0.change(|state| state.head(group)),
                regions: Vec::new(),
            }),
        }
    }

    fn open_group(&self, _peer: &PeerName, group: &GroupName) -> Result<Option<Position>, Refusal> {
        self.0.change(|state| {
            state.opened.push(group.clone());
            assert_eq!(
                state.opened.iter().filter(|open| *open == group).count(),
                state.closed.iter().filter(|closed| *closed == group).count() + 1,
                "a group has one session at a time"
            );
            Ok(state.head(group))
        })
    }

    fn begin(&self, group: &GroupName, segment: &SegmentDescriptor) -> Result<Begin, Refusal> {
        let sequence = segment.position.sequence;
        self.0.change(|state| {
            if let Some(refusal) = state.refuse.remove(&sequence) {
                return Err(refusal);
            }
            if state.segments.contains_key(&(group.clone(), sequence)) {
                return Ok(Begin::Have(state.head(group)));
            }
            state.begun.push((group.clone(), sequence));
            state.sinks += 1;
            Ok(Begin::Receive(Box::new(MemorySink {
                inbox: self.clone(),
                group: group.clone(),
                segment: *segment,
                bytes: vec![0; segment.size_bytes as usize],
            })))
        })
    }

    fn heartbeat(&self, _group: &GroupName, heartbeat: &Heartbeat, _received_at: Timestamp) {
        self.0.change(|state| {
            state.heartbeats.push(heartbeat.clone());
            state.heartbeats_at.push(tokio::time::Instant::now());
        });
    }

    fn closed(&self, _peer: &PeerName, group: &GroupName) {
        self.0.change(|state| {
            state.closed.push(group.clone());
        });
    }
}

struct MemorySink {
    inbox: MemoryInbox,
    group: GroupName,
    segment: SegmentDescriptor,
    bytes: Vec<u8>,
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        self.inbox.0.change(|state| state.sinks -= 1);
    }
}

impl SegmentSink for MemorySink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.inbox.0.change(|state| {
            state.received_bytes += bytes.len() as u64;
            *state.received_of.entry(self.group.clone()).or_default() += bytes.len() as u64;
        });
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<Option<Position>, Refusal> {
        let bytes = std::mem::take(&mut self.bytes);
        let hash = Hash::of(&[&self.segment.parent.0[..], &bytes].concat());
        if hash != self.segment.position.hash {
            return Err(Refusal::new(crate::RefusalKind::Corrupt, "the hash does not match", ""));
        }
        self.inbox.0.change(|state| {
            state
                .segments
                .insert((self.group.clone(), self.segment.position.sequence), (self.segment, bytes));
            Ok(state.head(&self.group))
        })
    }
}

/// A site and a source with their identities, in a folder that goes away.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) site: Arc<Identity>,
    pub(crate) source: Arc<Identity>,
    pub(crate) inbox: MemoryInbox,
    /// Address of the site, once it has one.
    address: Mutex<Option<SocketAddr>>,
}

impl Lab {
    /// With the source enrolled for groups `a` and `b`.
    pub(crate) fn new() -> Self {
        let lab = Self::without_enrolment();
        lab.enrol(&lab.source, "pair", &["a", "b"]);
        lab
    }

    pub(crate) fn without_enrolment() -> Self {
        let dir = TempDir::new().unwrap();
        let identity = |name: &str| Arc::new(Identity::create(&dir.path().join(name), &peer(name)).unwrap());
        let (site, source) = (identity("site"), identity("pair"));
        Self { site, source, inbox: MemoryInbox::new(), address: Mutex::new(None), dir }
    }

    pub(crate) fn enrolled(&self) -> PathBuf {
        self.dir.path().join("enrolled.toml")
    }

    pub(crate) fn identity(&self, name: &str) -> Arc<Identity> {
        Arc::new(Identity::create(&self.dir.path().join(name), &peer(name)).unwrap())
    }

    pub(crate) fn enrol(&self, identity: &Identity, name: &str, groups: &[&str]) {
        let groups = groups.iter().map(|name| group(name)).collect();
        let entry = EnrolledPeer {
            name: peer(name),
            fingerprint: identity.fingerprint(),
            next_fingerprint: None,
            groups,
        };
        Enrolment::add(&self.enrolled(), entry).unwrap();
    }

    pub(crate) fn site_options(&self) -> SiteOptions {
        let listen = self.address.lock().unwrap().unwrap_or("127.0.0.1:0".parse().unwrap());
        SiteOptions {
            enrolment_interval: Duration::from_millis(20),
            ..SiteOptions::new(listen, self.enrolled())
        }
    }

    /// Starts the site, on the address it had before if it had one.
    pub(crate) fn serve(&self) -> SiteServer {
        self.serve_on(&Handle::current())
    }

    pub(crate) fn serve_on(&self, runtime: &Handle) -> SiteServer {
        self.serve_with(self.site_options(), runtime)
    }

    pub(crate) fn serve_with(&self, options: SiteOptions, runtime: &Handle) -> SiteServer {
        let begun = Instant::now();
        let server = loop {
            let inbox = Arc::new(self.inbox.clone());
            match SiteServer::bind(options.clone(), self.site.clone(), inbox, runtime) {
                // quinn closes the socket of a site that was shut down in a task of its own.
                Err(SiteError::AddressInUse { .. }) if begun.elapsed() < PATIENCE => thread::yield_now(),
                bound => break bound.unwrap(),
            }
        };
        *self.address.lock().unwrap() = Some(server.local_addr());
        server
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address.lock().unwrap().expect("the site was started")
    }

    pub(crate) fn link_options(&self) -> LinkOptions {
        LinkOptions {
            heartbeat_interval: Duration::from_millis(50),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(50),
            refused_pause: Duration::from_millis(50),
            ..LinkOptions::new(self.address().to_string(), 1)
        }
    }

    pub(crate) fn ship(&self, outboxes: &[&Arc<MemoryOutbox>]) -> SourceLink {
        self.ship_as(&self.source, self.site.fingerprint(), outboxes)
    }

    pub(crate) fn ship_as(
        &self,
        identity: &Arc<Identity>,
        site: crate::Fingerprint,
        outboxes: &[&Arc<MemoryOutbox>],
    ) -> SourceLink {
        self.ship_with(self.link_options(), identity, site, outboxes)
    }

    pub(crate) fn ship_with(
        &self,
        options: LinkOptions,
        identity: &Arc<Identity>,
        site: crate::Fingerprint,
        outboxes: &[&Arc<MemoryOutbox>],
    ) -> SourceLink {
        let outboxes =
            outboxes.iter().map(|outbox| Arc::clone(outbox) as Arc<dyn Outbox>).collect::<Vec<_>>();
        SourceLink::start(options, identity.clone(), vec![site], outboxes, &Handle::current()).unwrap()
    }
}

/// Every kind of refusal.
pub(crate) const REFUSAL_KINDS: [RefusalKind; 10] = [
    RefusalKind::NotEnrolled,
    RefusalKind::Version,
    RefusalKind::Busy,
    RefusalKind::Full,
    RefusalKind::Diverged,
    RefusalKind::Fenced,
    RefusalKind::Corrupt,
    RefusalKind::Retry,
    RefusalKind::Invalid,
    RefusalKind::Lacking,
];

pub(crate) fn heartbeat() -> Heartbeat {
    Heartbeat {
        now: Timestamp(5),
        newest_cut: None,
        backlog_bytes: 1,
        backlog_segments: 2,
        state: "streaming".into(),
    }
}
