//! Runs one group's session at the site: fetches events, performs actions.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use journal_format::{Generation, GroupName, Position, Sequence};
use quinn::{RecvStream, SendStream};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::connection::{Offer, Peer};
use super::partials::{Discarded, Owner};
use super::segment::{Outcome, Receiver};
use crate::frames::{ReadFault, read_message, write_message};
use crate::quic::CONTROL_PRIORITY;
use crate::session::{Opened, SiteAction, SiteSession};
use crate::wire::{Refusal, RefusalKind, SiteMessage, SourceMessage, preamble, shortened};

/// Time for which the source may leave a control message unread.
const CONTROL_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

enum ControlEvent {
    Version(u32),
    Message(SourceMessage),
    Violation(String),
}

/// A session, from the opening of its control stream to its end.
pub(super) struct GroupSession {
    peer: Arc<Peer>,
    machine: SiteSession,
    send: SendStream,
    open: Option<OpenGroup>,
    offers: mpsc::Receiver<Offer>,
    offer_sender: mpsc::Sender<Offer>,
    segments: JoinSet<(Sequence, Outcome)>,
    ended: CancellationToken,
}

/// A group that the inbox has opened; no other session has it meanwhile.
struct OpenGroup {
    name: GroupName,
    owner: Owner,
    _lock: OwnedMutexGuard<()>,
}

impl GroupSession {
    pub(super) fn new(peer: Arc<Peer>, send: SendStream) -> Self {
        let options = &peer.site.options;
        let machine = SiteSession::new(shortened(options.software.clone()), options.segment_bytes_max);
        let (offer_sender, offers) = mpsc::channel(1);
        let ended = peer.ended.child_token();
        Self { peer, machine, send, open: None, offers, offer_sender, segments: JoinSet::new(), ended }
    }

    pub(super) async fn run(mut self, version: Result<u32, ReadFault>, mut recv: RecvStream) {
        // Only fails if the stream is gone, which the first write tells as well.
        self.send.set_priority(CONTROL_PRIORITY).ok();
        let (events, mut control) = mpsc::channel(16);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            match read_control(version, &mut recv, &events).await {
                Ok(()) | Err(ReadFault::Stream(_)) => {}
                Err(fault) => {
                    // The session may have ended; then nobody needs to know.
                    events.send(ControlEvent::Violation(fault.to_string())).await.ok();
                }
            }
        });
        if self.write_preamble().await {
            self.serve(&mut control).await;
        }
        self.close().await;
    }

    async fn write_preamble(&mut self) -> bool {
        let preamble = preamble();
        let write = self.send.write_all(&preamble);
        matches!(timeout(CONTROL_WRITE_TIMEOUT, write).await, Ok(Ok(())))
    }

    async fn serve(&mut self, control: &mut mpsc::Receiver<ControlEvent>) {
        let mut stopping = false;
        loop {
            if self.perform_all().await {
                return;
            }
            tokio::select! {
                event = control.recv() => match event {
                    Some(ControlEvent::Version(version)) => self.machine.handle_version(version),
                    Some(ControlEvent::Message(message)) => {
                        self.machine.handle_message(message, (self.peer.site.options.clock)());
                    }
                    Some(ControlEvent::Violation(what)) => return self.peer.violation(&what),
                    None => self.machine.handle_lost(),
                },
                Some(offer) = self.offers.recv() => self.begin(offer),
                Some(result) = self.segments.join_next() => self.handle_outcome(result),
                () = self.ended.cancelled(), if !stopping => {
                    stopping = true;
                    // What is being made durable is finished before the goodbye.
                    if self.drain().await {
                        return;
                    }
                    self.machine.handle_shutdown();
                }
            }
        }
    }

    /// Performs what the machine asks for; answers whether the session is over.
    async fn perform_all(&mut self) -> bool {
        let mut over = false;
        while let Some(action) = self.machine.poll_action() {
            match action {
                SiteAction::End => over = true,
                SiteAction::Violation(what) => {
                    self.peer.violation(what);
                    over = true;
                }
                action => self.perform(action).await,
            }
        }
        over
    }

    async fn perform(&mut self, action: SiteAction) {
        match action {
            SiteAction::Open(group, generation) => {
                let opened = self.open(group, generation).await;
                self.machine.handle_opened(opened);
            }
            SiteAction::Send(message) => self.write(message).await,
            SiteAction::Receipt(head) => self.confirm(head),
            SiteAction::Heartbeat(heartbeat) => {
                let (inbox, now) = (self.peer.site.inbox.clone(), (self.peer.site.options.clock)());
                if let Some(OpenGroup { name, .. }) = &self.open {
                    let name = name.clone();
                    let told = spawn_blocking(move || inbox.heartbeat(&name, &heartbeat, now)).await;
                    report_panic(told);
                }
            }
            SiteAction::End | SiteAction::Violation(_) => unreachable!("perform_all handles the end"),
        }
    }

    async fn write(&mut self, message: SiteMessage) {
        if let SiteMessage::Refused(refusal) = &message {
            warn!(peer = %self.peer.enrolled.name, kind = ?refusal.kind, reason = refusal.to_string(), "refused");
        }
        let message = match message {
            SiteMessage::Refused(Refusal { kind, sequence, reason, hint }) => {
                let (reason, hint) = (shortened(reason), shortened(hint));
                SiteMessage::Refused(Refusal { kind, sequence, reason, hint })
            }
            message => message,
        };
        let write = write_message(&mut self.send, &message);
        if !matches!(timeout(CONTROL_WRITE_TIMEOUT, write).await, Ok(Ok(()))) {
            self.machine.handle_lost();
        }
    }

    fn confirm(&self, head: Position) {
        if let Some(OpenGroup { name, .. }) = &self.open {
            self.peer.receipts.push(name.clone(), head);
        }
    }

    /// Checks the list as it is now, waits for an older session of the group to end, and opens the group.
    async fn open(&mut self, group: GroupName, generation: Generation) -> Result<Opened, Refusal> {
        let peer = self.peer.clone();
        let (site, name) = (&peer.site, &peer.enrolled.name);
        let fingerprint = peer.enrolled.fingerprint;
        let enrolment = site.enrolment().await.map_err(|error| {
            Refusal::new(RefusalKind::Retry, error.to_string(), "correct the list at the site")
        })?;
        if !enrolment.find(&fingerprint).is_some_and(|entry| entry.groups.contains(&group)) {
            return Err(Refusal::new(
                RefusalKind::NotEnrolled,
                format!("source '{name}' is not enrolled for group '{group}'"),
                format!(
                    "at the site: thirdsite site enroll --name {name} --group {group} --fingerprint {fingerprint}"
                ),
            ));
        }
        let busy = |_| {
            Refusal::new(
                RefusalKind::Busy,
                format!("another session is sending group '{group}'"),
                "it is tried again",
            )
        };
        let (inbox, for_peer, for_group) = (site.inbox.clone(), name.clone(), group.clone());
        let claimed = spawn_blocking(move || inbox.claim(&for_peer, &for_group, generation)).await;
        report_panic(claimed).unwrap_or_else(|| Err(failed()))?;
        // Whoever had it before has nothing more to say.
        site.registry.replace_others(name, &group);
        let lock = timeout(site.options.takeover_timeout, site.registry.group(&group)).await.map_err(busy)?;
        let owner = Owner { peer: name.clone(), generation };
        discard(site.partials.open(&group, &owner)).await;
        let (inbox, for_peer, for_group) = (site.inbox.clone(), name.clone(), group.clone());
        let opened = spawn_blocking(move || inbox.open_group(&for_peer, &for_group)).await;
        let head = report_panic(opened).unwrap_or_else(|| Err(failed()))?;
        let partials = site.partials.list(&group);
        self.lock_groups().insert(group.clone(), self.offer_sender.clone());
        site.registry.opened(&peer.connection, name, &group);
        info!(peer = %name, %group, head = head.map(tracing::field::display), "the group is open");
        self.open = Some(OpenGroup { name: group, owner, _lock: lock });
        Ok((head, partials))
    }

    fn lock_groups(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::HashMap<GroupName, mpsc::Sender<Offer>>> {
        self.peer.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&mut self, offer: Offer) {
        let Some(OpenGroup { name, owner, .. }) = &self.open else { return };
        let header = &offer.header;
        if !self.machine.handle_offer(&header.segment) {
            return;
        }
        let site = &self.peer.site;
        let sequence = header.segment.position.sequence;
        let Some(incomplete) = site.partials.get(name, owner, &header.segment, now()) else {
            let reason = "the source sends too many segments at once";
            let hint = "install the same release of thirdsite at both sites";
            return self.machine.handle_refused(sequence, Refusal::new(RefusalKind::Invalid, reason, hint));
        };
        let receiver = Receiver {
            inbox: site.inbox.clone(),
            partials: site.partials.clone(),
            group: name.clone(),
            incomplete,
            cancelled: self.ended.clone(),
        };
        self.segments.spawn(async move { (sequence, receiver.receive(offer).await) });
    }

    fn handle_outcome(&mut self, result: Result<(Sequence, Outcome), JoinError>) {
        match report_panic(result) {
            Some((_, Outcome::Had(head))) => self.machine.handle_had(head),
            Some((_, Outcome::Committed(head))) => self.machine.handle_committed(head),
            Some((sequence, Outcome::Refused(refusal))) => self.machine.handle_refused(sequence, refusal),
            Some((_, Outcome::Taken | Outcome::Lost)) | None => {}
        }
    }

    /// Ends what is being received; what is being made durable is waited for, and its receipt sent. Answers whether the
    /// session is over.
    async fn drain(&mut self) -> bool {
        self.ended.cancel();
        while let Some(result) = self.segments.join_next().await {
            self.handle_outcome(result);
        }
        self.perform_all().await
    }

    async fn close(mut self) {
        if let Some(OpenGroup { name, .. }) = &self.open {
            self.lock_groups().remove(name);
        }
        self.drain().await;
        // The stream's end tells the source that nothing follows; it may be gone already.
        self.send.finish().ok();
        if let Some(OpenGroup { name, _lock, .. }) = self.open.take() {
            let Peer { site, connection, enrolled, .. } = &*self.peer;
            discard(site.partials.close(&name, now())).await;
            site.registry.closed(connection, &enrolled.name, &name);
            let (inbox, peer) = (site.inbox.clone(), enrolled.name.clone());
            report_panic(spawn_blocking(move || inbox.closed(&peer, &name)).await);
        }
    }
}

/// The runtime's clock, which a test may have stopped.
fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

/// Discards partials where that may block.
pub(super) async fn discard(discarded: Discarded) {
    if !discarded.is_empty() {
        report_panic(spawn_blocking(move || discarded.iter().for_each(|partial| partial.discard())).await);
    }
}

fn failed() -> Refusal {
    Refusal::new(RefusalKind::Retry, "the site failed to open the group", "see the site's log")
}

fn report_panic<T>(result: Result<T, JoinError>) -> Option<T> {
    result.inspect_err(|error| tracing::error!(%error, "the store failed")).ok()
}

async fn read_control(
    version: Result<u32, ReadFault>,
    recv: &mut RecvStream,
    events: &mpsc::Sender<ControlEvent>,
) -> Result<(), ReadFault> {
    if events.send(ControlEvent::Version(version?)).await.is_err() {
        return Ok(());
    }
    while let Some(message) = read_message(recv, "message of a source").await? {
        if events.send(ControlEvent::Message(message)).await.is_err() {
            break;
        }
    }
    Ok(())
}
