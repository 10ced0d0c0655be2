//! One source's connection: gives its streams to the sessions of its groups.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use journal_format::GroupName;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use super::group::GroupSession;
use super::receipts::ReceiptQueue;
use super::{GREETING_TIMEOUT, Site};
use crate::enrolment::EnrolledPeer;
use crate::frames::{ReadFault, read_first, read_message, read_sized, write_message};
use crate::quic::{CALL_PRIORITY, code};
use crate::wire::{Call, CallAnswer, PieceHeader, Refusal, RefusalKind, call_preamble, parse_preamble};

/// A piece whose header was read.
pub(super) struct Offer {
    pub(super) header: PieceHeader,
    /// Bytes of the stream before those of the piece.
    pub(super) begin: u64,
    pub(super) stream: RecvStream,
}

/// What the sessions of a connection share.
pub(super) struct Peer {
    pub(super) site: Arc<Site>,
    pub(super) connection: Connection,
    pub(super) enrolled: EnrolledPeer,
    pub(super) receipts: ReceiptQueue,
    /// Where segments of each open group go.
    pub(super) groups: Mutex<HashMap<GroupName, mpsc::Sender<Offer>>>,
    /// Ends the sessions: the connection is gone, or the site shuts down.
    pub(super) ended: CancellationToken,
}

impl Peer {
    /// Closes the connection because its peer broke the protocol.
    pub(super) fn violation(&self, what: &str) {
        warn!(peer = %self.enrolled.name, what, "the source broke the protocol; its connection is closed");
        self.connection.close(code::PROTOCOL, what.as_bytes());
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve(site: Arc<Site>, connection: Connection, enrolled: EnrolledPeer) {
    let name = enrolled.name.clone();
    info!(peer = %name, address = %connection.remote_address(), "the source connected");
    site.registry.connected(&connection, &enrolled, (site.options.clock)());
    let peer = Arc::new(Peer {
        site: site.clone(),
        connection: connection.clone(),
        enrolled,
        receipts: ReceiptQueue::default(),
        groups: Mutex::default(),
        ended: CancellationToken::new(),
    });
    let tasks = TaskTracker::new();
    tokio::select! {
        () = accept(&peer, &tasks) => {}
        _ = connection.closed() => {}
        () = wait_for_shutdown(&peer, &tasks) => {}
    }
    peer.ended.cancel();
    tasks.close();
    tasks.wait().await;
    site.registry.disconnected(&connection, &name);
    let reason = connection.close_reason().map(|reason| reason.to_string());
    info!(peer = %name, reason, "the source disconnected");
}

/// Lets the sessions say goodbye, then waits until the source has closed the connection. The receipts of what is being
/// made durable still go out meanwhile.
async fn wait_for_shutdown(peer: &Peer, tasks: &TaskTracker) {
    peer.site.shutdown.cancelled().await;
    peer.ended.cancel();
    tasks.close();
    peer.connection.closed().await;
}

async fn accept(peer: &Arc<Peer>, tasks: &TaskTracker) {
    let streams = async {
        loop {
            tokio::select! {
                control = peer.connection.accept_bi() => {
                    let Ok((send, recv)) = control else { return };
                    tasks.spawn(begin(peer.clone(), send, recv));
                }
                segment = peer.connection.accept_uni() => {
                    let Ok(stream) = segment else { return };
                    tasks.spawn(offer(peer.clone(), stream));
                }
            }
        }
    };
    let receipts = async {
        if let Err(error) = peer.receipts.run(&peer.site, &peer.connection).await
            && peer.connection.close_reason().is_none()
        {
            debug!(%error, "the source does not take receipts");
            peer.violation("receipts are not taken");
        }
    };
    tokio::join!(streams, receipts);
}

/// Reads what a stream of the source is for: the control of a group, or a call.
async fn begin(peer: Arc<Peer>, send: SendStream, mut recv: RecvStream) {
    let read = tokio::select! {
        read = timeout(GREETING_TIMEOUT, read_first(&mut recv)) => read.unwrap_or(Err(ReadFault::Truncated)),
        () = peer.ended.cancelled() => return,
    };
    if let Ok(first) = &read
        && *first == call_preamble()
    {
        return answer(&peer, send, recv).await;
    }
    let version = read.and_then(|first| Ok(parse_preamble(first)?));
    GroupSession::new(peer, send).run(version, recv).await;
}

/// Answers a call.
async fn answer(peer: &Arc<Peer>, mut send: SendStream, mut recv: RecvStream) {
    let read = tokio::select! {
        read = timeout(GREETING_TIMEOUT, read_message::<Call>(&mut recv, "call")) => read,
        () = peer.ended.cancelled() => return,
    };
    let Call { group, request } = match read {
        Ok(Ok(Some(call))) => call,
        Ok(Ok(None) | Err(ReadFault::Truncated)) => return peer.violation("a call ends within its message"),
        Ok(Err(ReadFault::Wire(error))) => return peer.violation(&error.to_string()),
        Ok(Err(ReadFault::Stream(_))) => return,
        Err(_) => return peer.violation("a call took too long"),
    };
    let is_open = peer.groups.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&group);
    let answer = if is_open {
        let inbox = peer.site.inbox.clone();
        match spawn_blocking(move || inbox.call(&group, request)).await {
            Ok(answer) => answer,
            Err(error) => {
                error!(%error, "the store failed to answer a call");
                Err(Refusal::new(RefusalKind::Retry, "the site failed to answer", "see the site's log"))
            }
        }
    } else {
        let hint = "it is tried again when the group is open";
        Err(Refusal::new(RefusalKind::Retry, format!("group '{group}' is not open"), hint))
    };
    send.set_priority(CALL_PRIORITY).ok();
    // If the source is gone, nobody needs the answer.
    let _ = write_message(&mut send, &answer.unwrap_or_else(CallAnswer::Refused)).await;
    send.finish().ok();
}

/// Reads a piece's header and hands the stream to the session of its group.
async fn offer(peer: Arc<Peer>, mut stream: RecvStream) {
    let read = tokio::select! {
        read = timeout(GREETING_TIMEOUT, read_sized::<PieceHeader>(&mut stream, "piece header")) => read,
        () = peer.ended.cancelled() => return,
    };
    let (header, begin) = match read {
        Ok(Ok(Some(read))) => read,
        Ok(Ok(None) | Err(ReadFault::Truncated)) => {
            return peer.violation("the stream of a piece ends within its header");
        }
        Ok(Err(ReadFault::Wire(error))) => return peer.violation(&error.to_string()),
        // The source gave it up.
        Ok(Err(ReadFault::Stream(_))) => return,
        Err(_) => return peer.violation("a piece's header took too long"),
    };
    if !header.is_valid() {
        return peer.violation("a piece lies outside of its segment, or is too long");
    }
    let session = peer.groups.lock().unwrap_or_else(PoisonError::into_inner).get(&header.group).cloned();
    let Some(session) = session else {
        // What is left of a session that just ended, or a mistake; the source begins anew either way.
        stream.stop(code::STREAM_REFUSED).ok();
        return;
    };
    // If the session ends meanwhile, the stream is dropped with the offer, which stops it.
    session.send(Offer { header, begin, stream }).await.ok();
}
