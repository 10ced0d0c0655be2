//! The places that a group is shipped to: sites over QUIC and buckets, each with its own link, all with the same segments.

mod standings;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use journal::{Clock, Group, SealedCut, SiteHead};
use journal_format::{ErrorKind, Position, Sequence, Timestamp};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{info, warn};
use transport::{Refusal, RefusalKind};

use super::confirmed::Confirmed;
use super::learn::Bell;
use crate::failure::with_causes;
use crate::settings::{TargetKind, TargetName};
use standings::{Heard, Standings};

/// The share of the journal that one target alone may fill before it is left behind.
const JOURNAL_SHARE: (u64, u64) = (3, 4);

/// How a link stands, for `status`.
#[derive(Clone, Debug, Default)]
pub(super) struct LinkReport {
    pub(super) connected: bool,
    /// Why it is not, or what the target refused.
    pub(super) reason: Option<String>,
}

/// One of the places.
pub(super) struct Target {
    pub(super) name: TargetName,
    pub(super) kind: TargetKind,
    /// Told of what is sealed.
    pub(super) wake: Notify,
    /// Told of connections.
    pub(super) bell: Arc<Bell>,
    /// Which points it has confirmed.
    confirmed: Confirmed,
    link: Mutex<LinkReport>,
}

impl Target {
    /// When a segment has to be there, if the newest point there is to be no older than `rpo`.
    pub(super) fn due(&self, sequence: Sequence, rpo: Duration) -> Option<Timestamp> {
        let time = self.confirmed.time_of(sequence)?;
        Some(Timestamp(time.0.saturating_add(i64::try_from(rpo.as_nanos()).unwrap_or(i64::MAX))))
    }

    pub(super) fn link(&self) -> LinkReport {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_link(&self, connected: bool, reason: Option<String>) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = LinkReport { connected, reason };
    }
}

/// The places of one group, and what each of them has.
pub(super) struct Targets {
    targets: Vec<Target>,
    standings: Mutex<Standings>,
    /// Points that at least one target has confirmed.
    pub(super) confirmed: Confirmed,
    clock: Arc<dyn Clock>,
}

impl Targets {
    pub(super) fn new(places: impl Iterator<Item = (TargetName, TargetKind)>, clock: Arc<dyn Clock>) -> Self {
        let target = |(name, kind)| Target {
            name,
            kind,
            wake: Notify::new(),
            bell: Arc::default(),
            confirmed: Confirmed::default(),
            link: Mutex::default(),
        };
        let targets: Vec<Target> = places.map(target).collect();
        let standings = Mutex::new(Standings::new(targets.len(), clock.now()));
        Targets { targets, standings, confirmed: Confirmed::default(), clock }
    }

    pub(super) fn get(&self, number: usize) -> &Target {
        &self.targets[number]
    }

    /// How the links stand together: the first one that is connected and not refused speaks for the group.
    pub(super) fn link(&self) -> LinkReport {
        let links: Vec<LinkReport> = self.targets.iter().map(Target::link).collect();
        let good = links.iter().find(|link| link.connected && link.reason.is_none());
        let connected = || links.iter().find(|link| link.connected);
        good.or_else(connected).or(links.first()).cloned().unwrap_or_default()
    }

    /// A segment was sealed, perhaps with a point.
    pub(super) fn sealed(&self, group: &Group, point: Option<SealedCut>) {
        if let Some(point) = point {
            self.confirmed.sealed(point);
            self.targets.iter().for_each(|target| target.confirmed.sealed(point));
        }
        if self.targets.len() > 1 && group.journal_is_fuller_than(JOURNAL_SHARE) {
            self.give_up_slowest(group);
        }
        self.targets.iter().for_each(|target| target.wake.notify_one());
    }

    fn give_up_slowest(&self, group: &Group) {
        let mut standings = self.standings();
        let Some(number) = standings.give_up_slowest() else { return };
        let target = &self.targets[number].name;
        warn!(group = %group.name(), %target, "the journal is nearly full of what only this target lacks: it has lost its place; copy what it lacks from another target");
        self.trim(group, &standings);
    }

    /// A target told its head: answers the sequence to go on from.
    pub(super) fn head(
        &self,
        group: &Group,
        number: usize,
        head: Option<Position>,
    ) -> Result<Sequence, Refusal> {
        let mut standings = self.standings();
        let on_chain = group.is_on_chain(head);
        match standings.heard(number, head, on_chain, self.clock.now()) {
            Heard::OnChain => {
                self.trim(group, &standings);
                if let Some(position) = head {
                    self.note_confirmed(number, position);
                }
                Ok(head.map_or(Sequence(1), |head| head.sequence.next()))
            }
            Heard::Rebase => {
                let step = group.site_head(head).map_err(|error| {
                    let kind = match error.kind() {
                        ErrorKind::Fenced => RefusalKind::Fenced,
                        ErrorKind::Diverged => RefusalKind::Diverged,
                        ErrorKind::Full => RefusalKind::Full,
                        _ => RefusalKind::Retry,
                    };
                    Refusal::new(kind, with_causes(&error), error.hint())
                })?;
                standings.rebased(number, head);
                let (SiteHead::Continue(next) | SiteHead::Rebased(next)) = step;
                if matches!(step, SiteHead::Rebased(_)) {
                    self.confirmed.rebased();
                    self.targets.iter().for_each(|target| target.confirmed.rebased());
                }
                Ok(next)
            }
            Heard::Wait => {
                let reason = "the journal begins anew, and another target may be further";
                Err(Refusal::new(
                    RefusalKind::Retry,
                    reason,
                    "nothing is to be done, unless the other target is gone for good: take it out of the settings then",
                ))
            }
            Heard::LostPlace(reason) => {
                let hint = "copy what it lacks from another target: thirdsite store copy; shipping goes on by itself then";
                Err(Refusal::new(RefusalKind::Retry, format!("it has lost its place: {reason}"), hint))
            }
        }
    }

    /// A target has everything up to a position.
    pub(super) fn received(&self, group: &Group, number: usize, position: Position) {
        let mut standings = self.standings();
        standings.received(number, position);
        self.trim(group, &standings);
        drop(standings);
        self.note_confirmed(number, position);
    }

    /// A target refused the group or a segment.
    pub(super) fn refused(&self, group: &Group, number: usize, refusal: &Refusal) {
        let is_of_data =
            matches!(refusal.kind, RefusalKind::Diverged | RefusalKind::Corrupt | RefusalKind::Lacking);
        if !is_of_data || !self.standings().refused(number, &refusal.reason) {
            return;
        }
        match (refusal.kind, refusal.sequence) {
            (RefusalKind::Lacking, Some(sequence)) => group.site_lacks(sequence),
            (RefusalKind::Lacking, None) => {}
            _ => group.distrust(),
        }
    }

    /// What a target that is on the chain has; `None` while that is not known.
    pub(super) fn has(&self, number: usize) -> Option<Option<Position>> {
        self.standings().has(number)
    }

    pub(super) fn connected(&self, number: usize) {
        self.targets[number].set_link(true, None);
        self.targets[number].bell.connected();
    }

    pub(super) fn disconnected(&self, number: usize, reason: String) {
        self.targets[number].set_link(false, Some(reason));
        self.standings().disconnected(number);
    }

    /// For `status`.
    pub(super) fn report(&self) -> Vec<Value> {
        let standings = self.standings();
        let report = |(number, target): (usize, &Target)| {
            let link = target.link();
            let confirmed = target.confirmed.newest();
            json!({
                "name": target.name,
                "kind": target.kind,
                "connected": link.connected,
                "reason": link.reason,
                "lost_place": standings.lost_place(number),
                "confirmed_point": confirmed.map(|point| json!({"id": point.point, "time": super::time_text(point.time)})),
            })
        };
        self.targets.iter().enumerate().map(report).collect()
    }

    fn note_confirmed(&self, number: usize, position: Position) {
        self.targets[number].confirmed.receipt(position);
        self.confirmed.receipt(position);
    }

    fn trim(&self, group: &Group, standings: &Standings) {
        group.note_everywhere(standings.everywhere());
        let Some(floor) = standings.floor() else { return };
        match group.receipt(floor) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Diverged => {
                info!(group = %group.name(), error = %with_causes(&error), "a receipt is of before the chain went back");
            }
            Err(error) => {
                warn!(group = %group.name(), error = %with_causes(&error), "a receipt could not be used");
            }
        }
    }

    fn standings(&self) -> MutexGuard<'_, Standings> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
