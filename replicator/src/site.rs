//! The recovery site: its daemon, and who may send to it.

use std::path::Path;
use std::sync::Arc;

use journal::{Clock, SystemClock};
use journal_format::{GroupName, Timestamp};
use restore::{GroupSummary, Point, ReceivedCounters, Store, StoreWriter, WriterOptions};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;
use transport::{EnrolledPeer, Enrolment, EnrolmentError, PeerName, SiteOptions, SiteServer, SiteStatus};

use crate::control::{ControlHandler, ControlRequest, ControlServer};
use crate::failure::{Failure, exit, store_failure};
use crate::output::{print_json, rfc3339};
use crate::settings::{self, SiteSettings};

/// A source that has said nothing for so long is called silent, in seconds. It speaks every two seconds.
const SILENT_SECONDS: f64 = 15.0;

/// Receives, verifies and keeps segments until SIGTERM or SIGINT.
pub(crate) async fn run(config: &Path) -> anyhow::Result<()> {
    let settings: SiteSettings = settings::load(config)?;
    let identity = Arc::new(crate::identity::load(&settings.identity)?);
    let fingerprint = identity.fingerprint();
    let writer =
        StoreWriter::open(&settings.store, WriterOptions::default()).map_err(|e| store_failure(&e))?;
    let store = Store::open(&settings.store).map_err(|e| store_failure(&e))?;
    let options = SiteOptions::new(settings.listen, &settings.enrolled);
    let writer = Arc::new(writer);
    let server =
        SiteServer::bind(options, identity, writer.clone(), &Handle::current()).map_err(|error| {
            Failure::of(&error, error.kind(), "check 'listen' and 'enrolled' in the settings")
        })?;
    let site = Arc::new(Site { store, writer, connections: server.status() });
    let control = ControlServer::start(&settings.control, site)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    info!(address = %server.local_addr(), %fingerprint, "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("ending: what is being received is finished");
    drop(control);
    server.shutdown().await;
    Ok(())
}

/// What the control socket is asked.
struct Site {
    store: Store,
    writer: Arc<StoreWriter>,
    connections: watch::Receiver<SiteStatus>,
}

impl ControlHandler for Site {
    fn handle(&self, request: ControlRequest) -> Result<Value, Failure> {
        match request {
            ControlRequest::Status {} => self.status(),
            ControlRequest::Cut { .. }
            | ControlRequest::Resync { .. }
            | ControlRequest::Reload { .. }
            | ControlRequest::Limit { .. }
            | ControlRequest::Takeover {} => {
                let hint = "ask the agent at the protected site: --control with its socket";
                Err(Failure::new(exit::INVALID, "a recovery site does not do this", hint))
            }
        }
    }
}

impl Site {
    fn status(&self) -> Result<Value, Failure> {
        let now = SystemClock.now();
        let groups = self.store.groups().map_err(|error| store_failure(&error))?;
        let describe = |group: &GroupSummary| {
            let seed_of = self.store.seed_of(&group.group).map_err(|error| store_failure(&error))?;
            Ok(group_status(group, seed_of.as_ref(), self.writer.received(&group.group), now))
        };
        let groups = groups.iter().map(describe).collect::<Result<Vec<Value>, Failure>>()?;
        let connections = self.connections.borrow();
        let peers = connections
            .peers
            .iter()
            .map(|peer| json!({"name": peer.name, "address": peer.address.to_string()}));
        let refused = connections.refused.map(|refused| {
            let fingerprint = refused.fingerprint.map(|fingerprint| fingerprint.to_string());
            json!({"fingerprint": fingerprint, "address": refused.address.to_string(), "time": rfc3339(refused.at)})
        });
        Ok(json!({
            "role": "site",
            "version": env!("CARGO_PKG_VERSION"),
            "groups": groups,
            "peers": peers.collect::<Vec<_>>(),
            "refused": refused,
        }))
    }
}

/// The actual RPO is measured here, from the newest complete point; a source that has nothing new to send has its point confirmed
/// by each heartbeat.
fn group_status(
    group: &GroupSummary,
    seed_of: Option<&GroupName>,
    received: ReceivedCounters,
    now: Timestamp,
) -> Value {
    let silent = group.heartbeat.as_ref().map(|heartbeat| now.seconds_since(heartbeat.received_at));
    let rpo = group.newest.as_ref().map(|point| now.seconds_since(point.time));
    let carried =
        |of: &GroupName| format!("the seed of group '{of}': blocks that were carried here, no points");
    let (state, detail) = match (&group.newest, silent) {
        _ if seed_of.is_some() => ("seed", seed_of.map(carried).unwrap_or_default()),
        (_, Some(silent)) if silent > SILENT_SECONDS => {
            ("silent", format!("the protected site has said nothing for {silent:.0} s"))
        }
        (_, None) => ("silent", "the protected site has said nothing yet".to_owned()),
        (None, Some(_)) => ("syncing", "no complete point yet".to_owned()),
        (Some(_), Some(_)) => {
            let said = group.heartbeat.as_ref().map_or("", |heartbeat| heartbeat.state.as_str());
            ("receiving", format!("the protected site says: {said}"))
        }
    };
    json!({
        "received_bytes": received.received_bytes,
        "received_again_bytes": received.received_again_bytes,
        "compared_bytes": received.compared_bytes,
        "name": group.group,
        "seed_of": seed_of,
        "state": state,
        "detail": detail,
        "actual_rpo_seconds": rpo,
        "silent_seconds": silent,
        "points": group.points,
        "segments": group.segments,
        "stored_bytes": group.stored_bytes,
        "head": group.head.map(|position| position.to_string()),
        "last_point": group.newest.as_ref().map(point_brief),
        "backlog_bytes": group.heartbeat.as_ref().map(|heartbeat| heartbeat.backlog_bytes),
    })
}

fn point_brief(point: &Point) -> Value {
    json!({"id": point.id, "time": rfc3339(point.time)})
}

/// Adds a protected site to the list of those that may send.
pub(crate) fn enroll(
    config: &Path,
    name: &str,
    fingerprint: &str,
    groups: Vec<GroupName>,
    json: bool,
) -> anyhow::Result<()> {
    if name == restore::SEED_PEER {
        let hint = "the store's record of who writes a seed has this name: choose another one";
        return Err(Failure::invalid(format!("no protected site can be named '{name}'"), hint).into());
    }
    let settings: SiteSettings = settings::load(config)?;
    let own = crate::identity::load(&settings.identity)?.fingerprint().to_string();
    let peer = EnrolledPeer {
        name: peer_name(name)?,
        fingerprint: crate::identity::parse_fingerprint(fingerprint)?,
        next_fingerprint: None,
        groups: groups.clone(),
    };
    Enrolment::add(&settings.enrolled, peer).map_err(|error| failure(&error))?;
    if json {
        let groups: Vec<&str> = groups.iter().map(GroupName::as_str).collect();
        return print_json(
            &json!({"name": name, "fingerprint": fingerprint, "groups": groups, "site_fingerprint": own}),
        );
    }
    let groups: Vec<&str> = groups.iter().map(GroupName::as_str).collect();
    println!("enrolled          {name}, for {}", groups.join(", "));
    println!("its fingerprint   {fingerprint}");
    println!("this site's       {own}");
    println!(
        "Compare both with what 'thirdsite identity show' prints on the other side, and put the second into [target.site] of its settings."
    );
    Ok(())
}

/// Takes a protected site off the list.
pub(crate) fn expel(config: &Path, name: &str) -> anyhow::Result<()> {
    let settings: SiteSettings = settings::load(config)?;
    Enrolment::remove(&settings.enrolled, &peer_name(name)?).map_err(|error| failure(&error))?;
    println!("{name} may not send any more; what it sent stays");
    Ok(())
}

fn peer_name(name: &str) -> Result<PeerName, Failure> {
    name.parse().map_err(|error| Failure::invalid(format!("{error}"), ""))
}

fn failure(error: &EnrolmentError) -> Failure {
    Failure::of(error, error.kind(), "the list is the file 'enrolled' of the site's settings")
}
