//! What the two sides implement. All functions are synchronous; those that may block are called on blocking threads.

use std::fs::File;
use std::io;
use std::sync::Arc;

use journal_format::{Generation, GroupName, Position, Sequence, Timestamp};
use tokio::sync::Notify;

use crate::link::LinkError;
use crate::names::PeerName;
use crate::wire::{CallAnswer, CallRequest, Heartbeat, Refusal, RefusalKind, SegmentDescriptor};

/// What is to be shipped for one group; implemented over the journal by the source's daemon.
///
/// Apart from `group` and `wake`, every function is called on a blocking thread, one at a time for a group, `open` and `due`
/// excepted, which several threads may call at once.
pub trait Outbox: Send + Sync + 'static {
    /// The group that is shipped.
    fn group(&self) -> &GroupName;

    /// The generation that this side writes.
    fn generation(&self) -> Generation;

    /// Position of the newest sealed segment; none before the first.
    fn head(&self) -> Option<Position>;

    /// Sequence of the oldest segment that can still be sent; that of the next one to be sealed if there is none.
    fn oldest(&self) -> Sequence;

    /// The site told its head, after each connection. The implementer trims what it covers, or rebases on divergence, and
    /// answers the sequence to send next.
    ///
    /// # Errors
    /// A refusal ends the session of this group, which is begun anew after a pause.
    fn site_head(&self, head: Option<Position>) -> Result<Sequence, Refusal>;

    /// Segments from `from` on that are sealed now, oldest first and without gaps, at most `limit`.
    fn pending(&self, from: Sequence, limit: usize) -> Vec<SegmentDescriptor>;

    /// Opens a segment that `pending` named; its first byte is the segment's first. A segment that was trimmed meanwhile
    /// is `NotFound`, which begins the session anew.
    ///
    /// # Errors
    /// Whatever the journal's disk answers.
    fn open(&self, sequence: Sequence) -> io::Result<File>;

    /// When a segment has to be at the site so that the group keeps its target: the time of the cut that it begins with, and the
    /// target. It decides which group of a link goes first; without an answer a group comes after those that have one.
    fn due(&self, segment: &SegmentDescriptor) -> Option<Timestamp> {
        let _ = segment;
        None
    }

    /// Told by `notify_one` each time something new was sealed; must always be the same object.
    fn wake(&self) -> &Notify;

    /// Everything up to `position` is received: by a receipt whose signature was verified against the site's pinned key, or, where a
    /// bucket's settings say so, by what the bucket has answered. Positions never go backwards within a connection; the same one may
    /// come again. The first one after a connection may repeat the head that `site_head` was told.
    fn receipt(&self, position: Position);

    /// What the site should know now; asked every heartbeat interval.
    fn heartbeat(&self) -> Heartbeat;

    /// The site, or this side's own checks, refused the group or one of its segments. It is tried again after a pause,
    /// beginning with `site_head`; [`RefusalKind::Diverged`](crate::RefusalKind::Diverged) and
    /// [`RefusalKind::Corrupt`](crate::RefusalKind::Corrupt) need the implementer to change what it will answer then.
    fn refused(&self, refusal: &Refusal);

    /// The state of the link changed, for `status`.
    fn link(&self, state: LinkState);
}

/// State of a group's link to its site.
#[derive(Clone, Debug)]
pub enum LinkState {
    /// An attempt to connect is under way.
    Connecting,
    /// The site welcomed the group; segments flow.
    Connected {
        /// Where the site is: its address, or its bucket.
        place: String,
        /// The site's head when it welcomed the group.
        site_head: Option<Position>,
    },
    /// The connection stands, but the site, or this side, refused the group; tried again after a pause.
    Refused(Refusal),
    /// There is no connection; another attempt follows.
    Disconnected(Arc<LinkError>),
    /// The link was shut down by this side.
    Stopped,
}

/// Where the site puts what arrives; implemented by the store.
///
/// For one group there is at most one session at a time: `open_group`, then the other functions, then `closed`. Within a
/// session `begin` and the sinks are used by several threads at once. A sink that is not complete when its session ends is kept, and
/// goes on in a later session of the same peer and generation; before any other session of the group begins, it is dropped.
pub trait Inbox: Send + Sync + 'static {
    /// An enrolled peer, entitled to the group, writes this generation of it. What is answered here decides, for good, who may write:
    /// whoever wrote an older generation is refused from now on, also with what it is sending just now. Called before `open_group`,
    /// while another session may have the group; that session's connection is closed if it is another peer's.
    ///
    /// # Errors
    /// [`RefusalKind::Fenced`] if a newer generation exists, or this one has another writer.
    fn claim(&self, peer: &PeerName, group: &GroupName, generation: Generation) -> Result<(), Refusal>;

    /// An enrolled peer, entitled to the group, wants to send. Answers the position up to which everything is durable and
    /// verified without gaps.
    ///
    /// # Errors
    /// The refusal is sent to the peer; `closed` is not called.
    fn open_group(&self, peer: &PeerName, group: &GroupName) -> Result<Option<Position>, Refusal>;

    /// A segment is about to arrive. Segments may begin and end in another order than that of the chain.
    ///
    /// # Errors
    /// The refusal is sent to the peer, which begins its session anew.
    fn begin(&self, group: &GroupName, segment: &SegmentDescriptor) -> Result<Begin, Refusal>;

    /// A question about an open group.
    ///
    /// # Errors
    /// The refusal is the answer.
    fn call(&self, group: &GroupName, request: CallRequest) -> Result<CallAnswer, Refusal> {
        let _ = (group, request);
        Err(Refusal::new(RefusalKind::Invalid, "nobody answers calls here", ""))
    }

    /// What the source said about itself. `received_at` is the site's time.
    fn heartbeat(&self, group: &GroupName, heartbeat: &Heartbeat, received_at: Timestamp);

    /// The session of this group ended: connection lost, enrolment removed, replaced by a newer one, or goodbye.
    fn closed(&self, peer: &PeerName, group: &GroupName);
}

/// What is to be done with a segment that is offered.
pub enum Begin {
    /// It is here already (durable and verified). Carries the contiguous head, whose receipt is sent again.
    Have(Option<Position>),
    /// Its bytes go into this sink.
    Receive(Box<dyn SegmentSink>),
}

/// Takes the bytes of one segment. Dropped without `commit` it discards what was written.
pub trait SegmentSink: Send {
    /// Takes bytes that begin at `offset`, within `size_bytes` of the descriptor. They come in any order, and some may come
    /// again.
    ///
    /// # Errors
    /// The refusal is sent to the peer and the sink is dropped.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal>;

    /// Every one of the `size_bytes` bytes is here: verifies, makes durable, and answers the contiguous head then.
    ///
    /// # Errors
    /// The refusal is sent to the peer.
    fn commit(self: Box<Self>) -> Result<Option<Position>, Refusal>;
}
