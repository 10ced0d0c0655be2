//! Between a group's journal and the link: the one place that knows both.

use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError};

use journal::{JournalError, SiteHead};
use journal_format::{ErrorKind, Generation, GroupName, Position, Sequence};
use tokio::sync::Notify;
use tracing::{info, warn};
use transport::{Heartbeat, LinkState, NewestCut, Outbox, Receipt, Refusal, RefusalKind, SegmentDescriptor};

use super::member::{LinkReport, Member};
use super::status;
use crate::failure::with_causes;

/// Ships one group.
pub(super) struct Shipping(pub(super) Arc<Member>);

impl Shipping {
    fn set_link(&self, connected: bool, reason: Option<String>) {
        *self.0.link.lock().unwrap_or_else(PoisonError::into_inner) = LinkReport { connected, reason };
    }
}

impl Outbox for Shipping {
    fn group(&self) -> &GroupName {
        self.0.name()
    }

    fn generation(&self) -> Generation {
        self.0.group.generation()
    }

    fn head(&self) -> Option<Position> {
        self.0.group.head()
    }

    fn oldest(&self) -> Sequence {
        self.0.group.oldest()
    }

    fn site_head(&self, head: Option<Position>) -> Result<Sequence, Refusal> {
        match self.0.group.site_head(head) {
            Ok(SiteHead::Continue(next)) => {
                if let Some(position) = head {
                    self.0.confirmed.receipt(position);
                }
                Ok(next)
            }
            Ok(SiteHead::Rebased(next)) => {
                self.0.confirmed.rebased();
                Ok(next)
            }
            Err(error) => Err(refusal(&error)),
        }
    }

    fn pending(&self, from: Sequence, limit: usize) -> Vec<SegmentDescriptor> {
        self.0.descriptors(from, limit)
    }

    fn open(&self, sequence: Sequence) -> io::Result<File> {
        self.0.open_segment(sequence)
    }

    fn wake(&self) -> &Notify {
        &self.0.wake
    }

    fn receipt(&self, receipt: &Receipt) {
        match self.0.group.receipt(receipt.position) {
            Ok(()) => self.0.confirmed.receipt(receipt.position),
            Err(error) => {
                warn!(group = %self.0.name(), error = %with_causes(&error), "a receipt could not be used");
            }
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        let status = self.0.group.status();
        let newest_cut =
            status.last_point.map(|point| NewestCut { epoch: point.point.epoch, time: point.time });
        let link = LinkReport { connected: true, reason: None };
        let (state, _) = status::state(&status, &link, self.0.confirmed.newest().is_some());
        Heartbeat {
            now: self.0.clock.now(),
            newest_cut,
            backlog_bytes: status.counters.backlog_bytes,
            backlog_segments: status.counters.backlog_segments,
            state: state.to_owned(),
        }
    }

    fn refused(&self, refusal: &Refusal) {
        warn!(group = %self.0.name(), reason = %refusal, "refused");
        if matches!(refusal.kind, RefusalKind::Diverged | RefusalKind::Corrupt) {
            self.0.group.distrust();
        }
        if let (RefusalKind::Lacking, Some(sequence)) = (refusal.kind, refusal.sequence) {
            self.0.group.site_lacks(sequence);
        }
        if refusal.kind == RefusalKind::Fenced {
            self.0.fenced.notify_one();
        }
    }

    fn link(&self, state: LinkState) {
        let group = self.0.name();
        match state {
            LinkState::Connecting => {}
            LinkState::Connected { address, site_head } => {
                info!(%group, %address, site_head = site_head.map(tracing::field::display), "connected to the recovery site");
                self.set_link(true, None);
                self.0.bell.connected();
            }
            LinkState::Refused(refusal) => self.set_link(true, Some(refusal.to_string())),
            LinkState::Disconnected(error) => {
                let reason = with_causes(&*error);
                info!(%group, reason, "no connection to the recovery site");
                self.set_link(false, Some(reason));
            }
            LinkState::Stopped => self.set_link(false, Some("the agent is ending".to_owned())),
        }
    }
}

fn refusal(error: &JournalError) -> Refusal {
    let kind = match error.kind() {
        ErrorKind::Fenced => RefusalKind::Fenced,
        ErrorKind::Diverged => RefusalKind::Diverged,
        ErrorKind::Full => RefusalKind::Full,
        _ => RefusalKind::Retry,
    };
    Refusal::new(kind, with_causes(error), error.hint())
}
