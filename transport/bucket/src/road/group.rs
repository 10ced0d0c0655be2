//! Runs the sessions of one group: fetches events, performs actions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use journal_format::{ErrorKind, Timestamp, with_causes};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use transport::asking::{blocking, resume};
use transport::wire::shortened;
use transport::{Backoff, LinkError, LinkState, Outbox, Refusal, RefusalKind, SEGMENT_BYTES_MAX};

use super::claiming::{Step, Verdict, Writer};
use super::open::{NotOpened, Opened, Opening, may_claim_again, read_checked};
use super::put::{PutContext, put};
use super::session::{Action, BucketSession, End, PutFailure, ReceivedBy, SessionOptions, Validated};
use super::status::GroupReport;
use super::{BucketLinkOptions, ReceiptRule};
use crate::documents::{BucketHeartbeat, Claim, ClaimSource, HeartbeatCut, SessionId};
use crate::error::RoadError;
use crate::keys::ClaimNumber;
use crate::lister::{GroupBucket, replace_document};

/// Time for what is under way when the source ends.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// Ships one group.
#[derive(Clone)]
pub(super) struct GroupRoad {
    pub(super) options: Arc<BucketLinkOptions>,
    pub(super) bucket: GroupBucket,
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) source: ClaimSource,
    pub(super) permits: Arc<Semaphore>,
    pub(super) report: Arc<GroupReport>,
    pub(super) shutdown: CancellationToken,
    pub(super) earlier: BTreeSet<SessionId>,
}

impl GroupRoad {
    /// Runs sessions until this side shuts down.
    pub(super) async fn run(mut self) {
        let options = self.options.clone();
        let mut backoff = Backoff::new(options.backoff_min, options.backoff_max, options.seed);
        loop {
            self.tell(LinkState::Connecting).await;
            let begun = now();
            let end = self.session().await;
            self.report.change(|status| (status.claim, status.puts_under_way) = (None, 0));
            if now().duration_since(begun) > options.backoff_max {
                backoff.reset();
            }
            let pause = match end {
                End::Goodbye => break,
                End::Anew | End::Retry => backoff.pause(),
                End::Refused => options.refused_pause,
                End::Failed(error) => {
                    let pause = if error.kind() == ErrorKind::Retry {
                        backoff.pause()
                    } else {
                        options.refused_pause
                    };
                    self.failed(&error).await;
                    pause
                }
                End::Fenced(by) => {
                    self.fenced(&by).await;
                    continue;
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.shutdown.cancelled() => break,
            }
        }
        self.tell(LinkState::Stopped).await;
    }

    pub(super) async fn tell(&self, state: LinkState) {
        blocking(&self.outbox, move |outbox| outbox.link(state)).await;
    }

    pub(super) async fn failed(&self, error: &Arc<RoadError>) {
        let group = self.outbox.group();
        warn!(%group, error = with_causes(&**error), hint = error.hint(), "the bucket cannot be used");
        self.report.failed(with_causes(&**error));
        let (hint, kind, source) = (error.hint(), error.kind(), Box::new(error.clone()));
        self.tell(LinkState::Disconnected(Arc::new(LinkError::Bucket { hint, kind, source }))).await;
    }

    async fn refused(&self, refusal: Refusal) {
        warn!(group = %self.outbox.group(), kind = ?refusal.kind, reason = %refusal, "refused");
        self.report.failed(refusal.to_string());
        blocking(&self.outbox, move |outbox| {
            outbox.refused(&refusal);
            outbox.link(LinkState::Refused(refusal));
        })
        .await;
    }

    /// Waits until this writer may claim again, or this side shuts down.
    async fn fenced(&self, by: &Claim) {
        let error = RoadError::Fenced { by: Box::new(by.clone()) };
        self.refused(Refusal::new(RefusalKind::Fenced, error.to_string(), error.hint())).await;
        while !may_claim_again(by, blocking(&self.outbox, |outbox| outbox.generation()).await) {
            tokio::select! {
                () = sleep(self.options.refused_pause) => {}
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    async fn session(&mut self) -> End {
        if self.shutdown.is_cancelled() {
            return End::Goodbye;
        }
        let generation = blocking(&self.outbox, |outbox| outbox.generation()).await;
        let session = new_session();
        let (name, earlier) = (self.source.name.clone(), self.earlier.clone());
        let writer = Writer { session, generation, name, earlier };
        self.earlier.insert(session);
        let opening = Opening {
            options: &self.options,
            bucket: &self.bucket,
            outbox: &self.outbox,
            source: &self.source,
            writer: &writer,
        };
        let opened = tokio::select! {
            opened = Box::pin(opening.open()) => opened,
            () = self.shutdown.cancelled() => return End::Goodbye,
        };
        match opened {
            Ok(opened) => self.running(writer, opened).await,
            Err(NotOpened::Fenced(by)) => End::Fenced(by),
            Err(NotOpened::Late) => End::Anew,
            Err(NotOpened::Failed(error)) => End::Failed(Arc::new(error)),
            Err(NotOpened::Refused(refusal)) => {
                self.refused(refusal).await;
                End::Refused
            }
        }
    }

    async fn running(&self, writer: Writer, opened: Opened) -> End {
        let Opened { start, behind, received } = opened;
        info!(group = %self.outbox.group(), claim = %start, behind = behind.map(tracing::field::display), "the group goes on in the bucket");
        self.report.change(|status| {
            (status.generation, status.claim) = (Some(writer.generation), Some(start));
            (status.head, status.received, status.last_error) = (behind, received, None);
        });
        let place = self.options.bucket.clone();
        self.tell(LinkState::Connected { place, site_head: behind }).await;
        let options = SessionOptions {
            generation: writer.generation,
            uploads_max: self.options.uploads_max.max(1),
            heartbeat_interval: self.options.heartbeat_interval,
            validate_interval: self.options.validate_interval,
            rule: match self.options.receipts {
                ReceiptRule::Stored => ReceivedBy::Answers,
                ReceiptRule::Checked { .. } => ReceivedBy::Checks,
            },
            segment_bytes_max: SEGMENT_BYTES_MAX,
        };
        let machine = BucketSession::new(options, behind, received, now());
        let writer = Arc::new(writer);
        let mut running = Running {
            road: self,
            start,
            writer,
            machine,
            tasks: JoinSet::new(),
            leave_by: None,
            forged: false,
        };
        running.run().await
    }
}

/// The runtime's clock, which a test or a simulation may have stopped.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn new_session() -> SessionId {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's randomness never fails");
    SessionId(bytes)
}

enum Event {
    Put(journal_format::Sequence, Result<(), PutFailure>),
    Validated { answer: Validated, forged: Option<RoadError> },
    Beaten(Result<Timestamp, RoadError>),
}

struct Running<'a> {
    road: &'a GroupRoad,
    start: ClaimNumber,
    writer: Arc<Writer>,
    machine: BucketSession,
    tasks: JoinSet<Event>,
    /// When waiting for what is under way is given up.
    leave_by: Option<Instant>,
    /// Whether a forged word of the recovery site was told.
    forged: bool,
}

impl Running<'_> {
    async fn run(&mut self) -> End {
        loop {
            while let Some(action) = self.machine.poll_action() {
                if let Action::End(end) = action {
                    return end;
                }
                self.perform(action).await;
            }
            let (head, putting) = (self.machine.head(), self.machine.putting());
            self.road.report.change(|status| (status.head, status.puts_under_way) = (head, putting));
            self.wait().await;
        }
    }

    async fn wait(&mut self) {
        let due = [self.machine.poll_timeout(), self.leave_by].into_iter().flatten().min();
        let far = now() + Duration::from_secs(3600);
        tokio::select! {
            Some(event) = self.tasks.join_next() => match event {
                Ok(event) => self.handle(event).await,
                Err(error) => resume(error).await,
            },
            () = self.road.outbox.wake().notified() => self.machine.handle_sealed(),
            () = self.road.shutdown.cancelled(), if self.leave_by.is_none() => {
                self.leave_by = Some(now() + GOODBYE_TIMEOUT);
                self.machine.handle_shutdown(now());
            }
            () = sleep_until(due.unwrap_or(far).into()) => {
                if self.leave_by.is_some_and(|by| by <= now()) {
                    self.machine.handle_given_up();
                }
                self.machine.handle_timeout(now());
            }
        }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Put(sequence, Ok(())) => self.machine.handle_put(sequence, now()),
            Event::Put(_, Err(failure)) => self.machine.handle_put_failed(failure),
            Event::Validated { answer, forged } => {
                if let Some(error) = forged {
                    self.tell_forged(error).await;
                }
                self.machine.handle_validated(answer, now());
            }
            Event::Beaten(result) => {
                match result {
                    Ok(at) => self.road.report.change(|status| status.heartbeat_at = Some(at)),
                    Err(error) => {
                        let group = self.road.outbox.group();
                        warn!(%group, error = with_causes(&error), "a heartbeat was not put");
                        self.road.report.failed(with_causes(&error));
                    }
                }
                self.machine.handle_beaten();
            }
        }
    }

    /// Told once a session: whoever forged it may do so again and again.
    async fn tell_forged(&mut self, error: RoadError) {
        self.road.report.failed(with_causes(&error));
        if std::mem::replace(&mut self.forged, true) {
            return;
        }
        // Not `Corrupt`: no segment of ours is in doubt, so nothing is to be sent anew.
        let refusal = Refusal::new(RefusalKind::Invalid, error.to_string(), error.hint());
        warn!(group = %self.road.outbox.group(), reason = %refusal, "a receipt was ignored");
        blocking(&self.road.outbox, move |outbox| outbox.refused(&refusal)).await;
    }

    async fn perform(&mut self, action: Action) {
        let road = self.road;
        let outbox = &road.outbox;
        match action {
            Action::Fetch { from, limit } => {
                let asked = move |outbox: &dyn Outbox| (outbox.generation(), outbox.pending(from, limit));
                let (generation, pending) = blocking(outbox, asked).await;
                self.machine.handle_pending(generation, pending, limit);
            }
            Action::Put(segment) => {
                let context = PutContext {
                    bucket: road.bucket.clone(),
                    outbox: outbox.clone(),
                    store: road.options.store.clone(),
                    permits: road.permits.clone(),
                    start: self.start,
                };
                let sequence = segment.position.sequence;
                self.tasks.spawn(async move { Event::Put(sequence, put(context, segment).await) });
            }
            Action::Validate => {
                let (road, writer, next) = (road.clone(), self.writer.clone(), self.start.next());
                self.tasks.spawn(async move { validate(&road, &writer, next).await });
            }
            Action::Heartbeat => {
                let (road, start) = (road.clone(), self.start);
                let generation = self.writer.generation;
                self.tasks.spawn(async move { Event::Beaten(beat(&road, start, generation).await) });
            }
            Action::Deliver(position) => {
                blocking(outbox, move |outbox| outbox.receipt(position)).await;
                road.report.change(|status| status.received = Some(position));
            }
            Action::Report(refusal) => road.refused(refusal).await,
            Action::End(_) => unreachable!("the caller handles the end"),
        }
    }
}

/// Asks what the recovery site has checked, if that is what counts, and then whether there is a newer claim.
async fn validate(road: &GroupRoad, writer: &Writer, next: ClaimNumber) -> Event {
    let mut forged = None;
    let mut checked = None;
    if let ReceiptRule::Checked { site } = road.options.receipts {
        match read_checked(&road.options, &road.bucket, &road.outbox, site).await {
            Ok(receipt) => checked = receipt.map(|receipt| receipt.position),
            Err(error) if error.kind() == ErrorKind::Corrupt => forged = Some(error),
            Err(error) => return failed(error),
        }
    }
    let answer = match road.bucket.claim(next).await {
        Ok(None) => Validated::Alone(checked),
        Ok(Some(claim)) => match writer.judge(&claim, Step::GoOn) {
            Verdict::Fenced => Validated::Fenced(Box::new(claim)),
            Verdict::Own | Verdict::Next | Verdict::Anew => Validated::Late,
        },
        Err(error) => return failed(error),
    };
    Event::Validated { answer, forged }
}

fn failed(error: RoadError) -> Event {
    Event::Validated { answer: Validated::Failed(Arc::new(error)), forged: None }
}

async fn beat(
    road: &GroupRoad,
    number: ClaimNumber,
    generation: journal_format::Generation,
) -> Result<Timestamp, RoadError> {
    let (said, head) = blocking(&road.outbox, |outbox| (outbox.heartbeat(), outbox.head())).await;
    let heartbeat = BucketHeartbeat {
        group: road.outbox.group().clone(),
        number,
        generation,
        now: said.now,
        newest_cut: said.newest_cut.map(|cut| HeartbeatCut { epoch: cut.epoch, time: cut.time }),
        head,
        backlog_bytes: said.backlog_bytes,
        backlog_segments: said.backlog_segments,
        state: shortened(said.state),
        software: road.options.software.clone(),
    };
    replace_document(&*road.options.store, &road.bucket.keys().heartbeat(), &heartbeat).await?;
    Ok(said.now)
}
