//! One source's connection: gives its streams to the sessions of its groups.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use journal_format::GroupName;
use quinn::{Connection, RecvStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::group::GroupSession;
use super::receipts::ReceiptQueue;
use super::{GREETING_TIMEOUT, Site};
use crate::enrolment::EnrolledPeer;
use crate::frames::{ReadFault, read_message};
use crate::quic::code;
use crate::wire::{SegmentDescriptor, SegmentHeader};

/// A segment whose header was read.
pub(super) struct Offer {
    pub(super) segment: SegmentDescriptor,
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
                    tasks.spawn(GroupSession::new(peer.clone(), send).run(recv));
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

/// Reads a segment's header and hands the stream to the session of its group.
async fn offer(peer: Arc<Peer>, mut stream: RecvStream) {
    let read = tokio::select! {
        read = timeout(GREETING_TIMEOUT, read_message::<SegmentHeader>(&mut stream, "segment header")) => read,
        () = peer.ended.cancelled() => return,
    };
    let header = match read {
        Ok(Ok(Some(header))) => header,
        Ok(Ok(None) | Err(ReadFault::Truncated)) => {
            return peer.violation("a segment stream ends within its header");
        }
        Ok(Err(ReadFault::Wire(error))) => return peer.violation(&error.to_string()),
        // The source gave it up.
        Ok(Err(ReadFault::Stream(_))) => return,
        Err(_) => return peer.violation("a segment's header took too long"),
    };
    let session = peer.groups.lock().unwrap_or_else(PoisonError::into_inner).get(&header.group).cloned();
    let Some(session) = session else {
        // What is left of a session that just ended, or a mistake; the source begins anew either way.
        stream.stop(code::STREAM_REFUSED).ok();
        return;
    };
    // If the session ends meanwhile, the stream is dropped with the offer, which stops it.
    session.send(Offer { segment: header.segment, stream }).await.ok();
}
