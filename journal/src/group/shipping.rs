//! What the one who ships the segments asks and tells: the journal's side of receipts and resume.

use std::sync::atomic::Ordering;

use journal_format::{Generation, Hash, Position, Sequence, with_causes};
use tracing::{info, warn};

use super::{Group, StoredSegment};
use crate::chain::{Chain, ChainStep, segment_name};
use crate::error::JournalError;
use crate::faults::{self, Bug};

/// What follows from the head that the recovery site reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteHead {
    /// The site is on our chain: send from this sequence on.
    Continue(Sequence),
    /// The site is elsewhere, or did not take what we have: the chain goes on from its head, a resync follows, send from this
    /// sequence on.
    Rebased(Sequence),
}

impl Group {
    /// The generation that this journal writes.
    pub fn generation(&self) -> Generation {
        self.lock(&self.chain).generation()
    }

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

    /// The sequence behind a position of this chain; that of the oldest segment if this chain never was there.
    pub fn continue_behind(&self, position: Option<Position>) -> Sequence {
        let chain = self.lock(&self.chain);
        match position.filter(|&position| chain.contains(position)) {
            Some(position) => position.sequence.next(),
            None => chain.oldest().unwrap_or(chain.next().0),
        }
    }

    /// Where the segments that are still here begin: sequence and parent of the oldest, or of the next to be sealed.
    pub fn beginning(&self) -> (Sequence, Hash) {
        let chain = self.lock(&self.chain);
        let oldest = chain.oldest().and_then(|oldest| chain.pending(oldest, 1).first().copied());
        oldest.map_or(chain.next(), |oldest| (oldest.position.sequence, oldest.parent))
    }

    /// Sealed segments from `from` on, oldest first, at most `limit`.
    pub fn pending(&self, from: Sequence, limit: usize) -> Vec<StoredSegment> {
        self.lock(&self.chain).pending(from, limit)
    }

    /// File name of a segment in the journal's folder.
    pub fn segment_name(sequence: Sequence) -> String {
        segment_name(sequence)
    }

    /// Takes in that everything up to `position` is durable and verified wherever it has to be, and trims the journal.
    ///
    /// # Errors
    /// [`JournalError::Diverged`] if this journal never was there.
    pub fn receipt(&self, position: Position) -> Result<(), JournalError> {
        self.lock(&self.chain).trim(position)?;
        self.signal.raise();
        Ok(())
    }

    /// Takes in that every place that this group is shipped to has its segments up to `sequence`: other groups may refer to them.
    pub fn note_everywhere(&self, sequence: Sequence) {
        if let Some(known) = &self.known {
            known.note_received(&self.name, sequence);
        }
    }

    /// Whether a site that has this head can be sent what follows it.
    pub fn is_on_chain(&self, head: Option<Position>) -> bool {
        let trusted = !self.distrusted.load(Ordering::Acquire);
        matches!(self.lock(&self.chain).step_to(head, trusted), ChainStep::Continue(_))
    }

    /// Whether the journal fills more than such a share, numerator and denominator, of its limit.
    pub fn journal_is_fuller_than(&self, (numerator, denominator): (u64, u64)) -> bool {
        let chain = self.lock(&self.chain);
        u128::from(chain.bytes()) * u128::from(denominator)
            > u128::from(chain.limit_bytes()) * u128::from(numerator)
    }

    /// A segment that waits for its receipt.
    fn waiting(&self, sequence: Sequence) -> Option<StoredSegment> {
        let pending = self.lock(&self.chain).pending(sequence, 1).first().copied();
        pending.filter(|segment| segment.position.sequence == sequence)
    }

    /// Takes in that the site lacks blocks that a segment of ours refers to: all that this one refers to is forgotten, and it is replaced as in
    /// [`Group::distrust`].
    pub fn site_lacks(&self, sequence: Sequence) {
        self.distrust();
        let Some((known, segment)) = self.known.as_ref().zip(self.waiting(sequence)) else { return };
        let (storage, name) = (self.lock(&self.chain).storage(), segment_name(sequence));
        match Chain::whole_index(&*storage, &self.name, &segment, &name) {
            Ok(Some(index)) => {
                let sources: Vec<Hash> = index.sources.iter().map(|source| source.hash).collect();
                known.forget_segments(&sources);
            }
            Ok(None) => {
                warn!(group = %self.name, name, "what the segment refers to cannot be forgotten: it is damaged")
            }
            Err(error) => {
                warn!(group = %self.name, error = with_causes(&error), "what the segment refers to cannot be forgotten");
            }
        }
    }

    /// Says whether every byte of a waiting segment is what was sealed; asked before it is sent. One that is not is set aside, and
    /// the next [`Group::site_head`] replaces it by a resync of what it changed.
    ///
    /// # Errors
    /// [`JournalError::Damaged`]; [`JournalError::Storage`] if it cannot be read.
    pub fn check_segment(&self, sequence: Sequence) -> Result<(), JournalError> {
        let Some(segment) = self.waiting(sequence) else { return Ok(()) };
        let storage = self.lock(&self.chain).storage();
        let index = Chain::whole_index(&*storage, &self.name, &segment, &segment_name(sequence));
        let whole = matches!(index, Ok(Some(_))) || faults::planted(Bug::SendDamaged);
        // A receipt may have trimmed it meanwhile.
        if whole || self.waiting(sequence) != Some(segment) {
            return Ok(());
        }
        index?;
        let name = self.lock(&self.chain).set_aside(sequence)?;
        self.distrust();
        Err(JournalError::Damaged { group: self.name.clone(), name })
    }

    /// Takes in where the site is, by the table in `FORMAT.md`: the chain goes on from there; points that the site has stay as
    /// they are.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] if the site has a newer generation; [`JournalError::Storage`].
    pub fn site_head(&self, head: Option<Position>) -> Result<SiteHead, JournalError> {
        // Sealing waits, so that no cut is registered between the look and the rebase.
        let mut sealing = self.lock(&self.sealing);
        let trusted = !self.distrusted.load(Ordering::Acquire);
        let step = self.lock(&self.chain).step_to(head, trusted);
        match step {
            ChainStep::Fenced { site } => {
                let own = self.generation().0;
                return Err(JournalError::Fenced { group: self.name.clone(), site: site.0, own });
            }
            ChainStep::Continue(next) => {
                if let Some(head) = head {
                    self.lock(&self.chain).trim(head)?;
                    self.note_everywhere(head.sequence);
                }
                return Ok(SiteHead::Continue(next));
            }
            ChainStep::DropBehind(position) => {
                self.capture.mark_changed_dirty(self.lock(&self.chain).whole_epoch(position));
                self.taint(&mut sealing);
                let mut chain = self.lock(&self.chain);
                chain.trim(position)?;
                chain.drop_behind(position)?;
            }
            ChainStep::GoOnMarked => {
                (0..self.volumes.len()).for_each(|volume| self.capture.mark_marked_dirty(volume));
                self.taint(&mut sealing);
                self.lock(&self.chain).rebase(head)?;
            }
            ChainStep::GoOnEverything => {
                warn!(group = %self.name, site = head.map(tracing::field::display), "the recovery site's timeline is not ours; everything is compared with it");
                (0..self.volumes.len()).for_each(|volume| self.capture.mark_all_dirty(volume));
                self.taint(&mut sealing);
                self.lock(&self.chain).rebase(head)?;
            }
        }
        faults::step("rebase.dropped");
        if let Some(known) = &self.known {
            // What was sealed behind it, and is not there, may be another segment's place soon.
            known.forget_behind(&self.name, head.map_or(Sequence(0), |head| head.sequence));
        }
        self.distrusted.store(false, Ordering::Release);
        let (next, next_epoch) = {
            let chain = self.lock(&self.chain);
            (chain.next().0, chain.next_epoch())
        };
        self.capture.raise_epoch(next_epoch);
        sealing.definition_sent = None;
        drop(sealing);
        self.signal.raise();
        info!(group = %self.name, %next, "the chain goes on from the recovery site's head; a resync follows");
        Ok(SiteHead::Rebased(next))
    }
}
