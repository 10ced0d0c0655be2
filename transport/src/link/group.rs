//! Runs the sessions of one group over one connection: fetches events, performs actions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use journal_format::Sequence;
use quinn::{Connection, SendStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::segment::Shipment;
use super::turns::Turns;
use super::{Caller, LinkOptions, now};
use crate::asking::{blocking, resume};
use crate::causes::causes;
use crate::frames::{ReadFault, read_message, read_preamble, write_message};
use crate::quic::CONTROL_PRIORITY;
use crate::session::{Backoff, SourceAction, SourceEnd, SourceSession, SourceSessionOptions, WriteFailure};
use crate::traits::{LinkState, Outbox};
use crate::wire::{
    Heartbeat, Hello, Receipt, SEGMENT_BYTES_MAX, SegmentDescriptor, SiteMessage, preamble, shortened,
};

/// Segments of a group that may be without receipt.
const UNCONFIRMED_MAX: usize = 256;
/// Time for which the site may leave a control message unread.
const CONTROL_WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that a goodbye may take.
pub(super) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a group needs of its connection.
pub(super) struct GroupLink {
    pub(super) options: Arc<LinkOptions>,
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) caller: Caller,
    pub(super) connection: Connection,
    pub(super) address: SocketAddr,
    /// The newest receipt; older ones say nothing more.
    pub(super) receipts: watch::Receiver<Option<Receipt>>,
    pub(super) turns: Arc<Turns>,
    pub(super) shutdown: CancellationToken,
    /// Set when the site welcomes any group: the connection is of use.
    pub(super) welcomed: Arc<AtomicBool>,
}

/// Why a group stopped using its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GroupEnd {
    /// The connection is gone.
    Connection,
    /// The site said that it shuts down.
    SiteStopping,
    /// This side shuts down.
    Goodbye,
}

enum ControlEvent {
    Version(u32),
    Message(SiteMessage),
}

impl GroupLink {
    /// Runs sessions until the connection ends or either side shuts down.
    pub(super) async fn run(mut self) -> GroupEnd {
        let options = self.options.clone();
        let mut backoff = Backoff::new(options.backoff_min, options.backoff_max, options.seed);
        loop {
            let begun = now();
            let end = self.session().await;
            self.caller.set_connection(None);
            if self.connection.close_reason().is_some() {
                return GroupEnd::Connection;
            }
            if now().saturating_duration_since(begun) > options.backoff_max {
                backoff.reset();
            }
            let pause = match end {
                SourceEnd::SiteStopping => return GroupEnd::SiteStopping,
                SourceEnd::Goodbye => return GroupEnd::Goodbye,
                SourceEnd::Refused => options.refused_pause,
                SourceEnd::Retry => backoff.pause(),
            };
            tokio::select! {
                () = sleep(pause) => {}
                _ = self.connection.closed() => return GroupEnd::Connection,
                () = self.shutdown.cancelled() => return GroupEnd::Goodbye,
            }
        }
    }

    async fn session(&mut self) -> SourceEnd {
        let Ok((mut send, mut recv)) = self.connection.open_bi().await else {
            return SourceEnd::Retry;
        };
        // Only fails if the stream is gone, which the first write tells as well.
        send.set_priority(CONTROL_PRIORITY).ok();
        let software = shortened(self.options.software.clone());
        let hello = blocking(&self.outbox, |outbox| Hello {
            software,
            group: outbox.group().clone(),
            generation: outbox.generation(),
            head: outbox.head(),
            oldest: outbox.oldest(),
        })
        .await;
        if send.write_all(&preamble()).await.is_err() {
            return SourceEnd::Retry;
        }
        let (events, control) = mpsc::channel(16);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            if let Err(fault) = read_control(&mut recv, &events).await {
                debug!(%fault, cause = causes(&fault), "the control stream broke");
            }
        });
        let (written, writes) = mpsc::unbounded_channel();
        let mut session = Session {
            machine: SourceSession::new(self.session_options(), hello, now()),
            link: self,
            send,
            control,
            written,
            writes,
            segments: JoinSet::new(),
            leave_by: None,
        };
        session.run().await
    }

    fn session_options(&self) -> SourceSessionOptions {
        SourceSessionOptions {
            heartbeat_interval: self.options.heartbeat_interval,
            writing_max: self.options.segments_in_flight_max,
            unconfirmed_max: UNCONFIRMED_MAX,
            receipt_timeout: self.options.receipt_timeout,
            silence_timeout: self.options.idle_timeout.max(self.options.heartbeat_interval * 4),
            segment_bytes_max: SEGMENT_BYTES_MAX,
        }
    }
}

async fn read_control(
    recv: &mut quinn::RecvStream,
    events: &mpsc::Sender<ControlEvent>,
) -> Result<(), ReadFault> {
    let version = read_preamble(recv).await?;
    if events.send(ControlEvent::Version(version)).await.is_err() {
        return Ok(());
    }
    while let Some(message) = read_message(recv, "message of a site").await? {
        if events.send(ControlEvent::Message(message)).await.is_err() {
            break;
        }
    }
    Ok(())
}

struct Session<'a> {
    machine: SourceSession,
    link: &'a mut GroupLink,
    send: SendStream,
    control: mpsc::Receiver<ControlEvent>,
    written: mpsc::UnboundedSender<Sequence>,
    writes: mpsc::UnboundedReceiver<Sequence>,
    segments: JoinSet<Result<Sequence, WriteFailure>>,
    /// When a goodbye is given up.
    leave_by: Option<Instant>,
}

impl Session<'_> {
    async fn run(&mut self) -> SourceEnd {
        loop {
            while let Some(action) = self.machine.poll_action() {
                if let SourceAction::End(end) = action {
                    // The stream's end tells the site that nothing follows; it may be gone already.
                    self.send.finish().ok();
                    return end;
                }
                self.perform(action).await;
            }
            self.wait().await;
        }
    }

    async fn wait(&mut self) {
        let due = [self.machine.poll_timeout(), self.leave_by].into_iter().flatten().min();
        let far = now() + Duration::from_secs(3600);
        tokio::select! {
            event = self.control.recv() => match event {
                Some(ControlEvent::Version(version)) => self.machine.handle_version(version),
                Some(ControlEvent::Message(message)) => self.machine.handle_message(message, now()),
                None => self.machine.handle_lost(),
            },
            Ok(()) = self.link.receipts.changed() => {
                let receipt = self.link.receipts.borrow_and_update().clone();
                if let Some(receipt) = receipt {
                    self.machine.handle_receipt(receipt, now());
                }
            }
            Some(sequence) = self.writes.recv() => self.machine.handle_written(sequence, now()),
            Some(result) = self.segments.join_next() => match result {
                Ok(Ok(sequence)) => self.machine.handle_delivered(sequence, now()),
                Ok(Err(failure)) => self.machine.handle_write_failed(failure, now()),
                // Aborted, because this side is leaving.
                Err(error) if error.is_cancelled() => {}
                Err(error) => resume(error).await,
            },
            () = self.link.outbox.wake().notified() => self.machine.handle_sealed(),
            () = self.link.shutdown.cancelled(), if self.leave_by.is_none() => {
                self.leave_by = Some(now() + GOODBYE_TIMEOUT);
                self.segments.abort_all();
                self.machine.handle_shutdown();
            }
            () = sleep_until(due.unwrap_or(far).into()) => {
                if self.leave_by.is_some_and(|by| by <= now()) {
                    self.machine.handle_lost();
                }
                self.machine.handle_timeout(now());
            }
        }
    }

    async fn perform(&mut self, action: SourceAction) {
        let outbox = self.link.outbox.clone();
        match action {
            SourceAction::Send(message) => {
                let write = write_message(&mut self.send, &message);
                if !matches!(timeout(CONTROL_WRITE_TIMEOUT, write).await, Ok(Ok(()))) {
                    self.machine.handle_lost();
                }
            }
            SourceAction::Resume(head) => {
                let resumed = blocking(&outbox, move |outbox| outbox.site_head(head)).await;
                self.machine.handle_resumed(resumed, now());
            }
            SourceAction::Opened(site_head) => {
                self.link.welcomed.store(true, Ordering::Relaxed);
                self.link.caller.set_connection(Some(self.link.connection.clone()));
                let state = LinkState::Connected { place: self.link.address.to_string(), site_head };
                blocking(&outbox, move |outbox| outbox.link(state)).await;
            }
            SourceAction::Heartbeat => {
                let heartbeat = blocking(&outbox, |outbox| outbox.heartbeat()).await;
                let state = shortened(heartbeat.state);
                self.machine.handle_heartbeat(Heartbeat { state, ..heartbeat });
            }
            SourceAction::Fetch { from, limit } => {
                let pending = blocking(&outbox, move |outbox| outbox.pending(from, limit)).await;
                self.machine.handle_pending(pending, limit, now());
            }
            SourceAction::Ship(descriptor) => self.ship(descriptor),
            SourceAction::Deliver(receipt) => {
                blocking(&outbox, move |outbox| outbox.receipt(receipt.position)).await;
            }
            SourceAction::Report(refusal) => {
                warn!(group = %outbox.group(), kind = ?refusal.kind, reason = refusal.to_string(), "refused");
                blocking(&outbox, move |outbox| {
                    outbox.refused(&refusal);
                    outbox.link(LinkState::Refused(refusal));
                })
                .await;
            }
            SourceAction::End(_) => unreachable!("the caller handles the end"),
        }
    }

    fn ship(&mut self, segment: SegmentDescriptor) {
        let shipment = Shipment {
            connection: self.link.connection.clone(),
            outbox: self.link.outbox.clone(),
            segment,
            held: self.machine.take_held(&segment.position),
            turns: self.link.turns.clone(),
            written: self.written.clone(),
        };
        self.segments.spawn(shipment.run());
    }
}
