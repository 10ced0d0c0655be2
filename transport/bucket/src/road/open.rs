//! Begins a session: fence, find the head, ask the journal, start. `BUCKET.md`, "Claims".

use std::sync::Arc;

use journal_format::{Generation, Position, Sequence};
use transport::asking::blocking;
use transport::{Outbox, Receipt, Refusal, RefusalKind};

use super::claiming::{Step, Verdict, Writer};
use super::head::find_head;
use super::{BucketLinkOptions, ReceiptRule};
use crate::chain::Claims;
use crate::documents::{Checked, Claim, ClaimKind, ClaimSource, StoreMark};
use crate::error::RoadError;
use crate::keys::ClaimNumber;
use crate::lister::{GroupBucket, Put, put_document, read_document};

/// A session that may put segments.
#[derive(Debug)]
pub(super) struct Opened {
    /// The start.
    pub(super) start: ClaimNumber,
    /// Behind which it goes on.
    pub(super) behind: Option<Position>,
    /// What the journal was told to be received.
    pub(super) received: Option<Position>,
}

/// Why a session did not begin.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// Another writer has the group.
    Fenced(Box<Claim>),
    /// The journal refused, or what it wants is not possible.
    Refused(Refusal),
    /// An earlier session's claim arrived late.
    Late,
    /// The bucket failed.
    Failed(RoadError),
}

impl From<RoadError> for NotOpened {
    fn from(error: RoadError) -> Self {
        Self::Failed(error)
    }
}

/// What beginning a session needs.
pub(super) struct Opening<'a> {
    pub(super) options: &'a BucketLinkOptions,
    pub(super) bucket: &'a GroupBucket,
    pub(super) outbox: &'a Arc<dyn Outbox>,
    pub(super) source: &'a ClaimSource,
    pub(super) writer: &'a Writer,
}

impl Opening<'_> {
    /// Begins the session.
    pub(super) async fn open(&self) -> Result<Opened, NotOpened> {
        self.mark().await?;
        let mut claims = self.bucket.newest_claims().await?;
        self.fence(&mut claims).await?;
        let head = find_head(self.bucket, self.outbox, &claims).await?;
        let (told, next) = self.ask_journal(&claims, head).await?;
        let behind = self.behind(&claims, head, next).await?;
        self.start(&mut claims, behind).await?;
        let start = claims.newest().expect("the start was taken in").number;
        Ok(Opened { start, behind, received: told })
    }

    /// Says that a bucket is kept here, if nothing says so yet.
    async fn mark(&self) -> Result<(), RoadError> {
        let (store, key) = (&*self.options.store, self.options.keys.store());
        if read_document::<StoreMark>(store, &key).await?.is_some() {
            return Ok(());
        }
        match put_document(store, &key, &StoreMark {}).await? {
            Put::Created => Ok(()),
            // Another group's session was quicker.
            Put::Existed => read_document::<StoreMark>(store, &key).await.map(drop),
        }
    }

    fn claim(&self, number: ClaimNumber, kind: ClaimKind, behind: Option<Position>) -> Claim {
        Claim {
            group: self.outbox.group().clone(),
            number,
            kind,
            session: self.writer.session,
            generation: self.writer.generation,
            source: self.source.clone(),
            software: self.options.software.clone(),
            time: (self.options.clock)(),
            behind,
        }
    }

    async fn fence(&self, claims: &mut Claims) -> Result<(), NotOpened> {
        loop {
            let verdict =
                claims.newest().map_or(Verdict::Next, |newest| self.writer.judge(newest, Step::Fence));
            match verdict {
                Verdict::Own => return Ok(()),
                Verdict::Next => {}
                Verdict::Anew => return Err(NotOpened::Late),
                Verdict::Fenced => return Err(fenced(claims)),
            }
            let fence = self.claim(claims.next(), ClaimKind::Fence, None);
            match self.bucket.put_claim(&fence).await? {
                Put::Created => claims.push(fence)?,
                Put::Existed => self.bucket.read_new_claims(claims).await?,
            }
        }
    }

    async fn start(&self, claims: &mut Claims, behind: Option<Position>) -> Result<(), NotOpened> {
        let start = self.claim(claims.next(), ClaimKind::Start, behind);
        if self.bucket.put_claim(&start).await? == Put::Created {
            return Ok(claims.push(start)?);
        }
        self.bucket.read_new_claims(claims).await?;
        let newest = claims.newest();
        match newest.map(|newest| self.writer.judge(newest, Step::GoOn)) {
            Some(Verdict::Own) if newest.is_some_and(|newest| newest.kind == ClaimKind::Start) => Ok(()),
            Some(Verdict::Fenced) => Err(fenced(claims)),
            _ => Err(NotOpened::Late),
        }
    }

    /// Tells the journal what is received. Answers that, and where the journal goes on.
    async fn ask_journal(
        &self,
        claims: &Claims,
        head: Option<Position>,
    ) -> Result<(Option<Position>, Sequence), NotOpened> {
        let told = match &self.options.receipts {
            ReceiptRule::Stored => head,
            ReceiptRule::Checked { .. } if self.journal_holds(head).await => {
                self.checked_floor(claims).await?
            }
            ReceiptRule::Checked { .. } => head,
        };
        let next = blocking(self.outbox, move |outbox| outbox.site_head(told)).await;
        let next = next.map_err(NotOpened::Refused)?;
        let expected = told.map_or(Sequence(1), |told| told.sequence.next());
        // The journal holds everything from there to the head, so what is in the bucket is not put again.
        let next = match head {
            Some(head) if told != Some(head) && next == expected => head.sequence.next(),
            _ => next,
        };
        Ok((told, next))
    }

    async fn journal_holds(&self, head: Option<Position>) -> bool {
        let Some(head) = head else { return false };
        let held = blocking(self.outbox, move |outbox| outbox.pending(head.sequence, 1)).await;
        held.first().is_some_and(|segment| segment.position == head)
    }

    /// The newest position that the journal may trim to: checked, or trimmed already.
    async fn checked_floor(&self, claims: &Claims) -> Result<Option<Position>, NotOpened> {
        let checked = self.checked().await?.map(|receipt| receipt.position);
        let oldest = blocking(self.outbox, |outbox| outbox.oldest()).await;
        let trimmed = Sequence(oldest.0.saturating_sub(1));
        if let Some(checked) = checked.filter(|checked| checked.sequence >= trimmed)
            && self.position_at(claims, checked.sequence).await? == Some(checked)
        {
            return Ok(Some(checked));
        }
        Ok(self.position_at(claims, trimmed).await?)
    }

    /// What the recovery site has checked; none if it has not said, or what is there is not its word.
    async fn checked(&self) -> Result<Option<Receipt>, RoadError> {
        let ReceiptRule::Checked { site } = self.options.receipts else { return Ok(None) };
        match read_checked(self.options, self.bucket, self.outbox, site).await {
            // It is told where receipts are asked for.
            Err(error) if error.kind() == journal_format::ErrorKind::Corrupt => Ok(None),
            other => other,
        }
    }

    /// The position that the chain has at a sequence.
    async fn position_at(&self, claims: &Claims, sequence: Sequence) -> Result<Option<Position>, RoadError> {
        if sequence.0 == 0 {
            return Ok(None);
        }
        if let Some(name) = claims.segment_of(sequence) {
            return self.bucket.position(name).await;
        }
        let behind = claims.newest_start().and_then(|start| start.behind);
        if behind.is_some_and(|behind| behind.sequence == sequence) {
            return Ok(behind);
        }
        // It was put under a start before the newest one.
        let Some(name) = self.bucket.claims().await?.segment_of(sequence) else { return Ok(None) };
        self.bucket.position(name).await
    }

    /// The position behind which the journal wants to go on.
    async fn behind(
        &self,
        claims: &Claims,
        head: Option<Position>,
        next: Sequence,
    ) -> Result<Option<Position>, NotOpened> {
        let wanted = Sequence(next.0.saturating_sub(1));
        if wanted.0 == 0 {
            return Ok(None);
        }
        if let Some(head) = head.filter(|head| head.sequence == wanted) {
            return Ok(Some(head));
        }
        let beyond = head.is_none_or(|head| head.sequence < wanted);
        let found = if beyond { None } else { self.position_at(claims, wanted).await? };
        found.map(Some).ok_or_else(|| {
            let reason =
                format!("the journal goes on with segment {next}, and the bucket lacks the one before it");
            let hint = "the journal goes on from what the bucket has, with a resync";
            NotOpened::Refused(Refusal::new(RefusalKind::Diverged, reason, hint))
        })
    }
}

/// Reads and checks what the recovery site has checked.
pub(super) async fn read_checked(
    options: &BucketLinkOptions,
    bucket: &GroupBucket,
    outbox: &Arc<dyn Outbox>,
    site: transport::Fingerprint,
) -> Result<Option<Receipt>, RoadError> {
    let key = bucket.keys().checked();
    let Some(checked) = read_document::<Checked>(&*options.store, &key).await? else { return Ok(None) };
    checked.receipt(&key, outbox.group(), site).map(Some)
}

fn fenced(claims: &Claims) -> NotOpened {
    NotOpened::Fenced(Box::new(claims.newest().expect("a claim was judged").clone()))
}

/// Whether a writer that was fenced by `by` may claim again.
pub(super) fn may_claim_again(by: &Claim, generation: Generation) -> bool {
    generation > by.generation
}
