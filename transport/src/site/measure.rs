//! Connections that measure their path: bytes come, are counted and discarded.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::info;

use super::Site;
use crate::enrolment::EnrolledPeer;
use crate::frames::write_message;
use crate::measure::{MEASURE_BYTES_MAX, MEASURE_TIME_MAX};
use crate::names::PeerName;
use crate::quic::code;
use crate::tls::MEASURE_ALPN;
use crate::wire::Measured;

/// The sources that are measuring; each at most once.
#[derive(Default)]
pub(super) struct Measuring(Mutex<HashSet<PeerName>>);

impl Measuring {
    fn enter(&self, peer: &PeerName) -> Option<Place<'_>> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        peers.insert(peer.clone()).then(|| Place { measuring: self, peer: peer.clone() })
    }
}

struct Place<'a> {
    measuring: &'a Measuring,
    peer: PeerName,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.measuring.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.peer);
    }
}

/// Whether the source connected in order to measure.
pub(super) fn is_asked_for(connection: &Connection) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.is_some_and(|data| data.protocol.as_deref() == Some(MEASURE_ALPN))
}

/// Answers until the source goes, or has used what it may.
pub(super) async fn serve(site: &Site, connection: Connection, peer: &EnrolledPeer) {
    let Some(_place) = site.measuring.enter(&peer.name) else {
        connection.close(code::LIMIT, b"this source is measuring already");
        return;
    };
    info!(peer = %peer.name, address = %connection.remote_address(), "the source measures its path");
    let bytes = Arc::new(AtomicU64::new(0));
    tokio::select! {
        () = answer_all(&connection, &bytes) => {}
        _ = timeout(MEASURE_TIME_MAX, connection.closed()) => {
            connection.close(code::LIMIT, b"it measured long enough");
        }
        () = site.shutdown.cancelled() => connection.close(code::GOODBYE, b"the site is shutting down"),
    }
    info!(peer = %peer.name, bytes = bytes.load(Ordering::Relaxed), "the source has measured its path");
}

async fn answer_all(connection: &Connection, bytes: &Arc<AtomicU64>) {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => {
                let Ok((send, recv)) = stream else { return };
                streams.spawn(answer(connection.clone(), bytes.clone(), send, recv));
            }
            other = connection.accept_uni() => {
                if other.is_ok() {
                    connection.close(code::PROTOCOL, b"a measuring connection has no such streams");
                }
                return;
            }
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn answer(connection: Connection, all: Arc<AtomicU64>, mut send: SendStream, mut recv: RecvStream) {
    let mut bytes = 0;
    loop {
        match recv.read_chunk(usize::MAX, false).await {
            Ok(Some(chunk)) => {
                let length = chunk.bytes.len() as u64;
                bytes += length;
                if all.fetch_add(length, Ordering::Relaxed) + length > MEASURE_BYTES_MAX {
                    connection.close(code::LIMIT, b"it measured with enough bytes");
                    return;
                }
            }
            Ok(None) => break,
            // The source gave it up.
            Err(_) => return,
        }
    }
    // If the source is gone, nobody needs the answer.
    let _ = write_message(&mut send, &Measured { bytes }).await;
    send.finish().ok();
}
