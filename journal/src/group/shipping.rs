//! What the one who ships the segments asks and tells: the journal's side of receipts and resume.

use std::sync::atomic::Ordering;

use journal_format::{Position, Sequence};
use tracing::{info, warn};

use super::{Group, StoredSegment};
use crate::chain::segment_name;
use crate::error::JournalError;

/// What follows from the head that the recovery site reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteHead {
    /// The site is on our chain: send from this sequence on.
    Continue(Sequence),
    /// The site is elsewhere: the chain goes on from its head, everything is dirty, send from this sequence on.
    Rebased(Sequence),
}

impl Group {
    /// Newest position that is sealed.
    pub fn head(&self) -> Option<Position> {
        self.lock(&self.chain).head()
    }

    /// Newest position that a receipt covers, since the start.
    pub fn acknowledged(&self) -> Option<Position> {
        self.lock(&self.chain).acknowledged()
    }

    /// Sequence of the oldest segment that the journal still has; of the next one to be sealed if it has none.
    pub fn oldest(&self) -> Sequence {
        let chain = self.lock(&self.chain);
        chain.oldest().unwrap_or(chain.next().0)
    }

    /// Takes in that the site refused a segment of ours as damaged or as no continuation of what it has. The segments are given
    /// up: the next [`Group::site_head`] goes on from the site's head with a resync.
    pub fn distrust(&self) {
        self.distrusted.store(true, Ordering::Release);
    }

    /// Sealed segments from `from` on, oldest first, at most `limit`.
    pub fn pending(&self, from: Sequence, limit: usize) -> Vec<StoredSegment> {
        self.lock(&self.chain).pending(from, limit)
    }

    /// File name of a segment in the journal's folder.
    pub fn segment_name(sequence: Sequence) -> String {
        segment_name(sequence)
    }

    /// Takes in that the site has everything up to `position`, durable and verified, and trims the journal.
    ///
    /// # Errors
    /// [`JournalError::Diverged`] if this journal never was there.
    pub fn receipt(&self, position: Position) -> Result<(), JournalError> {
        self.lock(&self.chain).trim(position)?;
        self.signal.raise();
        Ok(())
    }

    /// Takes in where the site is. If that is not on our chain, the chain goes on from there and a resync of everything
    /// follows; points that the site has stay as they are.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] if the site has a newer generation; [`JournalError::Storage`].
    pub fn site_head(&self, head: Option<Position>) -> Result<SiteHead, JournalError> {
        // Sealing waits, so that no cut is registered between the look and the rebase.
        let mut sealing = self.lock(&self.sealing);
        let mut chain = self.lock(&self.chain);
        let own = chain.generation();
        if let Some(site) = head.filter(|site| site.generation > own) {
            let site = site.generation.0;
            return Err(JournalError::Fenced { group: self.name.clone(), site, own: own.0 });
        }
        let trusted = !self.distrusted.swap(false, Ordering::AcqRel);
        match head {
            Some(position) if trusted && chain.contains(position) => {
                chain.trim(position)?;
                return Ok(SiteHead::Continue(position.sequence.next()));
            }
            None if trusted && (chain.head().is_none() || chain.oldest() == Some(Sequence(1))) => {
                return Ok(SiteHead::Continue(Sequence(1)));
            }
            _ => {}
        }
        warn!(group = %self.name, site = head.map(tracing::field::display), own = chain.head().map(tracing::field::display), "the recovery site's timeline is not ours; a resync of everything follows");
        chain.rebase(head)?;
        let (next, next_epoch) = (chain.next().0, chain.next_epoch());
        drop(chain);
        self.capture.raise_epoch(next_epoch);
        (0..self.volumes.len()).for_each(|volume| self.capture.mark_all_dirty(volume));
        self.taint(&mut sealing);
        sealing.definition_sent = false;
        drop(sealing);
        self.note_resync();
        self.signal.raise();
        info!(group = %self.name, %next, "the chain goes on from the recovery site's head");
        Ok(SiteHead::Rebased(next))
    }
}
