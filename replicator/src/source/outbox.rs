//! Between a group's journal and one of its targets: the one place that knows both.

use std::fs::File;
use std::io;
use std::sync::Arc;

use journal_format::{Generation, GroupName, Position, Sequence, Timestamp};
use tokio::sync::Notify;
use tracing::{info, warn};
use transport::{Heartbeat, LinkState, NewestCut, Outbox, Refusal, RefusalKind, SegmentDescriptor};

use super::member::Member;
use super::status;
use super::targets::{LinkReport, Target};
use crate::failure::with_causes;

/// Ships one group to one target.
pub(super) struct Shipping {
    pub(super) member: Arc<Member>,
    /// The target's number.
    pub(super) number: usize,
}

impl Shipping {
    fn target(&self) -> &Target {
        self.member.targets.get(self.number)
    }
}

impl Outbox for Shipping {
    fn group(&self) -> &GroupName {
        self.member.name()
    }

    fn generation(&self) -> Generation {
        self.member.group.generation()
    }

    fn head(&self) -> Option<Position> {
        self.member.group.head()
    }

    fn oldest(&self) -> Sequence {
        self.member.group.oldest()
    }

    fn site_head(&self, head: Option<Position>) -> Result<Sequence, Refusal> {
        self.member.targets.head(&self.member.group, self.number, head)
    }

    fn pending(&self, from: Sequence, limit: usize) -> Vec<SegmentDescriptor> {
        self.member.descriptors(from, limit)
    }

    fn open(&self, sequence: Sequence) -> io::Result<File> {
        self.member.open_segment(sequence)
    }

    fn due(&self, segment: &SegmentDescriptor) -> Option<Timestamp> {
        self.target().due(segment.position.sequence, self.member.rpo)
    }

    fn wake(&self) -> &Notify {
        &self.target().wake
    }

    fn receipt(&self, position: Position) {
        self.member.targets.received(&self.member.group, self.number, position);
    }

    fn heartbeat(&self) -> Heartbeat {
        let status = self.member.group.status();
        let newest_cut =
            status.last_point.map(|point| NewestCut { epoch: point.point.epoch, time: point.time });
        let link = LinkReport { connected: true, reason: None };
        let confirmed = self.member.targets.confirmed.newest().is_some();
        let (state, _) = status::state(&status, &link, confirmed);
        Heartbeat {
            now: self.member.clock.now(),
            newest_cut,
            backlog_bytes: status.counters.backlog_bytes,
            backlog_segments: status.counters.backlog_segments,
            state: state.to_owned(),
        }
    }

    fn refused(&self, refusal: &Refusal) {
        let (group, target) = (self.member.name(), &self.target().name);
        warn!(%group, %target, reason = %refusal, "refused");
        self.member.targets.refused(&self.member.group, self.number, refusal);
        if refusal.kind == RefusalKind::Fenced {
            self.member.fenced.notify_one();
        }
    }

    fn link(&self, state: LinkState) {
        let (group, target) = (self.member.name(), self.target());
        match state {
            LinkState::Connecting => {}
            LinkState::Connected { place, site_head } => {
                info!(%group, target = %target.name, place, site_head = site_head.map(tracing::field::display), "connected to the recovery site");
                self.member.targets.connected(self.number);
            }
            LinkState::Refused(refusal) => target.set_link(true, Some(refusal.to_string())),
            LinkState::Disconnected(error) => {
                let reason = with_causes(&*error);
                info!(%group, target = %target.name, reason, "no connection to the recovery site");
                self.member.targets.disconnected(self.number, reason);
            }
            LinkState::Stopped => target.set_link(false, Some("the agent is ending".to_owned())),
        }
    }
}
