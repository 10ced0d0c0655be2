//! The source's side: ships groups into a bucket. The counterpart of `transport::SourceLink`.
//!
//! `session` decides what is put and what is received, `claiming` who may write; both without I/O. `open` begins a session, `group` runs it.

mod claiming;
mod group;
mod head;
mod open;
mod probing;
mod put;
mod session;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use transport::clock::{Clock, system_time};
use transport::wire::shortened;
use transport::{Fingerprint, LinkError, LinkState, Outbox};

pub use status::BucketGroupStatus;

use crate::documents::ClaimSource;
use crate::error::RoadError;
use crate::keys::BucketKeys;
use crate::lister::GroupBucket;
use crate::settings::Fencing;
use group::GroupRoad;
use status::GroupReport;

/// When a position is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptRule {
    /// When the server has answered every put up to it.
    Stored,
    /// When the recovery site has read and verified it.
    Checked {
        /// Fingerprint of the recovery site's identity.
        site: Fingerprint,
    },
}

/// How a link behaves.
#[derive(Clone, Debug)]
pub struct BucketLinkOptions {
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
    /// The names of what is in it.
    pub keys: BucketKeys,
    /// What it is called in `status` and logs.
    pub bucket: String,
    /// What the server is asked to prove before anything is put; none for one that is known.
    pub probe_for: Option<Fencing>,
    /// When a position is received.
    pub receipts: ReceiptRule,
    /// Version of this software, for people.
    pub software: String,
    /// Time between two heartbeats of a group.
    pub heartbeat_interval: Duration,
    /// Least time between two questions whether another writer has taken over.
    pub validate_interval: Duration,
    /// Puts under way at once, over all groups.
    pub uploads_max: usize,
    /// First pause after a failure; it doubles.
    pub backoff_min: Duration,
    /// Longest pause after a failure.
    pub backoff_max: Duration,
    /// Pause after what usually needs a person.
    pub refused_pause: Duration,
    /// Decides the jitter of pauses.
    pub seed: u64,
    /// Answers the time that claims bear.
    pub clock: Clock,
}

impl BucketLinkOptions {
    /// The usual behaviour. `seed` should differ between sources.
    pub fn new(store: Arc<dyn ObjectStore>, keys: BucketKeys, bucket: impl Into<String>, seed: u64) -> Self {
        Self {
            store,
            keys,
            bucket: bucket.into(),
            probe_for: None,
            receipts: ReceiptRule::Stored,
            software: concat!("thirdsite ", env!("CARGO_PKG_VERSION")).to_owned(),
            heartbeat_interval: Duration::from_secs(60),
            validate_interval: Duration::from_secs(5),
            uploads_max: 8,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(20),
            refused_pause: Duration::from_secs(30),
            seed,
            clock: system_time,
        }
    }
}

/// A running link. Dropping it stops shipping at once; what is being put is there as a whole or not at all.
#[derive(Debug)]
pub struct BucketLink {
    reports: Vec<Arc<GroupReport>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl BucketLink {
    /// Starts to ship `outboxes` into the bucket as `source`. Never gives up; the outboxes are told how the link fares.
    ///
    /// # Errors
    /// [`RoadError::Groups`]; what may pass is told to the outboxes instead.
    pub fn start(
        options: BucketLinkOptions,
        source: ClaimSource,
        outboxes: Vec<Arc<dyn Outbox>>,
        runtime: &Handle,
    ) -> Result<Self, RoadError> {
        for (index, outbox) in outboxes.iter().enumerate() {
            if outboxes[..index].iter().any(|other| other.group() == outbox.group()) {
                return Err(RoadError::Groups { group: outbox.group().to_string() });
            }
        }
        let shutdown = CancellationToken::new();
        let permits = Arc::new(Semaphore::new(options.uploads_max.max(1)));
        let software = shortened(options.software.clone());
        let options = Arc::new(BucketLinkOptions { software, ..options });
        let road = |outbox: Arc<dyn Outbox>| GroupRoad {
            bucket: GroupBucket::new(options.store.clone(), &options.keys, outbox.group().clone()),
            report: Arc::new(GroupReport::new(outbox.group().clone())),
            options: options.clone(),
            outbox,
            source: source.clone(),
            permits: permits.clone(),
            shutdown: shutdown.clone(),
            earlier: BTreeSet::new(),
        };
        let roads: Vec<GroupRoad> = outboxes.into_iter().map(road).collect();
        let reports = roads.iter().map(|road| road.report.clone()).collect();
        let task = runtime.spawn(async move {
            if probing::until_usable(&roads).await.is_none() {
                return;
            }
            let mut groups = JoinSet::new();
            for road in roads {
                groups.spawn(supervise(road));
            }
            while groups.join_next().await.is_some() {}
        });
        Ok(Self { reports, shutdown, task })
    }

    /// How each group fares, in the order of the outboxes.
    pub fn status(&self) -> Vec<BucketGroupStatus> {
        self.handle().status()
    }

    /// What looks at the link from elsewhere.
    pub fn handle(&self) -> BucketLinkHandle {
        BucketLinkHandle { reports: self.reports.clone() }
    }

    /// Ends in good order, within about 5 seconds: waits for the puts that are under way, tells their receipts, and puts a last heartbeat. What was
    /// not confirmed is looked for after the next start.
    pub async fn shutdown(mut self) {
        self.shutdown.cancel();
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            warn!("the link had failed before it was shut down");
        }
    }
}

/// Looks at a link.
#[derive(Clone, Debug)]
pub struct BucketLinkHandle {
    reports: Vec<Arc<GroupReport>>,
}

impl BucketLinkHandle {
    /// How each group fares, in the order of the outboxes.
    pub fn status(&self) -> Vec<BucketGroupStatus> {
        self.reports.iter().map(|report| report.read()).collect()
    }
}

impl Drop for BucketLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs a group, and begins it anew if the journal's side panics.
async fn supervise(road: GroupRoad) {
    let mut attempts = JoinSet::new();
    loop {
        attempts.spawn(road.clone().run());
        let Some(Err(_)) = attempts.join_next().await else { return };
        let group = road.outbox.group().clone();
        road.report.failed(RoadError::Failed { group: group.clone() }.to_string());
        let state = LinkState::Disconnected(Arc::new(LinkError::Failed { group }));
        let outbox = road.outbox.clone();
        // A panic in there as well changes nothing.
        tokio::task::spawn_blocking(move || outbox.link(state)).await.ok();
        tokio::select! {
            () = sleep(road.options.refused_pause) => {}
            () = road.shutdown.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests;
