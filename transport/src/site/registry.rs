//! Who is connected, and which groups are open: one connection for a peer, one session for a group.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal_format::{GroupName, Timestamp};
use quinn::Connection;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch};
use tracing::{info, warn};

use super::{PeerStatus, RefusedIdentity, SiteStatus};
use crate::enrolment::EnrolledPeer;
use crate::names::PeerName;
use crate::quic::{code, receive_window};

struct Entry {
    connection: Connection,
    status: PeerStatus,
}

#[derive(Default)]
struct State {
    peers: HashMap<PeerName, Entry>,
    /// Held by the session of the group. Groups stay here for ever: their number is bounded by the list.
    groups: HashMap<GroupName, Arc<AsyncMutex<()>>>,
    refused: Option<RefusedIdentity>,
}

pub(super) struct Registry {
    state: Mutex<State>,
    status: watch::Sender<SiteStatus>,
}

impl Registry {
    pub(super) fn new() -> (Arc<Self>, watch::Receiver<SiteStatus>) {
        let (status, receiver) = watch::channel(SiteStatus::default());
        (Arc::new(Self { state: Mutex::default(), status }), receiver)
    }

    /// Adds a connection; an older one of the same peer is closed.
    pub(super) fn connected(&self, connection: &Connection, peer: &EnrolledPeer, since: Timestamp) {
        let mut state = self.lock();
        let status = PeerStatus {
            name: peer.name.clone(),
            fingerprint: peer.fingerprint,
            address: connection.remote_address(),
            since,
            groups: Vec::new(),
        };
        let entry = Entry { connection: connection.clone(), status };
        if let Some(older) = state.peers.insert(peer.name.clone(), entry)
            && older.connection.close_reason().is_none()
        {
            warn!(peer = %peer.name, older = %older.status.address, newer = %connection.remote_address(), "the source connected again; its older connection is closed");
            older.connection.close(code::REPLACED, b"replaced by a newer connection of the same identity");
        }
        share_windows(&state);
        self.publish(&state);
    }

    /// Removes a connection, unless a newer one has taken its place.
    pub(super) fn disconnected(&self, connection: &Connection, peer: &PeerName) {
        let mut state = self.lock();
        if state.peers.get(peer).is_some_and(|entry| same(&entry.connection, connection)) {
            state.peers.remove(peer);
            share_windows(&state);
            self.publish(&state);
        }
    }

    /// The lock of a group, which its session holds.
    pub(super) async fn group(&self, group: &GroupName) -> OwnedMutexGuard<()> {
        let lock = self.lock().groups.entry(group.clone()).or_default().clone();
        lock.lock_owned().await
    }

    /// Closes the connections of other peers that have a session of the group.
    pub(super) fn replace_others(&self, peer: &PeerName, group: &GroupName) {
        for (name, entry) in &self.lock().peers {
            if name != peer
                && entry.status.groups.contains(group)
                && entry.connection.close_reason().is_none()
            {
                warn!(older = %name, newer = %peer, %group, "another host writes the group now; the older one's connection is closed");
                entry.connection.close(code::REPLACED, b"another host writes the group now");
            }
        }
    }

    /// A session was opened on a connection.
    pub(super) fn opened(&self, connection: &Connection, peer: &PeerName, group: &GroupName) {
        self.change_groups(connection, peer, |groups| groups.push(group.clone()));
    }

    /// A session ended.
    pub(super) fn closed(&self, connection: &Connection, peer: &PeerName, group: &GroupName) {
        self.change_groups(connection, peer, |groups| groups.retain(|open| open != group));
    }

    /// Remembers the newest identity that was refused.
    pub(super) fn refused(&self, refused: RefusedIdentity) {
        let mut state = self.lock();
        state.refused = Some(refused);
        self.publish(&state);
    }

    /// Closes the connections of peers that are not entitled any more.
    pub(super) fn disconnect_unless(&self, entitled: impl Fn(&PeerStatus) -> bool) {
        for entry in self.lock().peers.values() {
            if entry.connection.close_reason().is_none() && !entitled(&entry.status) {
                info!(peer = %entry.status.name, "the source's enrolment was removed or changed; it is disconnected");
                entry.connection.close(code::ENROLMENT, b"enrolment was removed or changed");
            }
        }
    }

    fn change_groups(
        &self,
        connection: &Connection,
        peer: &PeerName,
        change: impl FnOnce(&mut Vec<GroupName>),
    ) {
        let mut state = self.lock();
        if let Some(entry) = state.peers.get_mut(peer)
            && same(&entry.connection, connection)
        {
            change(&mut entry.status.groups);
            self.publish(&state);
        }
    }

    fn publish(&self, state: &State) {
        let mut peers: Vec<_> = state.peers.values().map(|entry| entry.status.clone()).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        self.status.send_replace(SiteStatus { peers, refused: state.refused });
    }

    /// Each change above is complete before anything can panic, so a poisoned lock guards a sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all connections may leave unread together is shared by those that there are.
fn share_windows(state: &State) {
    let window = receive_window(state.peers.len());
    state.peers.values().for_each(|entry| entry.connection.set_receive_window(window));
}

fn same(one: &Connection, other: &Connection) -> bool {
    one.stable_id() == other.stable_id()
}
