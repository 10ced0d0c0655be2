//! Who may write: the table of `BUCKET.md`, "Claims". Decisions only.

use std::collections::BTreeSet;

use journal_format::Generation;
use transport::PeerName;

use crate::documents::{Claim, SessionId};

/// What a writer is about to do when it finds a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Put a fence.
    Fence,
    /// Put a start, or tell a receipt.
    GoOn,
}

/// What follows from a claim that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is this session's.
    Own,
    /// The fence goes to the next number.
    Next,
    /// This session is over; another one begins.
    Anew,
    /// Another writer has the group.
    Fenced,
}

/// What a writer knows of itself.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    pub(super) session: SessionId,
    pub(super) generation: Generation,
    pub(super) name: PeerName,
    /// Sessions of this process before this one.
    pub(super) earlier: BTreeSet<SessionId>,
}

impl Writer {
    /// Decides what follows from the newest claim that is there.
    pub(super) fn judge(&self, claim: &Claim, step: Step) -> Verdict {
        let same_source = claim.source.name == self.name;
        let earlier = self.earlier.contains(&claim.session);
        match (claim.generation.cmp(&self.generation), step) {
            _ if claim.session == self.session => Verdict::Own,
            (std::cmp::Ordering::Greater, _) => Verdict::Fenced,
            (std::cmp::Ordering::Equal, _) if !same_source => Verdict::Fenced,
            (_, Step::Fence) => Verdict::Next,
            (_, Step::GoOn) if earlier => Verdict::Anew,
            (std::cmp::Ordering::Equal, Step::GoOn) => Verdict::Fenced,
            (std::cmp::Ordering::Less, Step::GoOn) => Verdict::Anew,
        }
    }
}

#[cfg(test)]
mod tests {
    use journal_format::Timestamp;
    use transport::PublicKey;

    use super::*;
    use crate::documents::{ClaimKind, ClaimSource};
    use crate::keys::ClaimNumber;

    fn check(session: u8, generation: u64, name: &str, fence: Verdict, go_on: Verdict) {
        let fingerprint = PublicKey::from_bytes([1; 32]).fingerprint();
        let claim = Claim {
            group: "db".parse().unwrap(),
            number: ClaimNumber(1),
            kind: ClaimKind::Fence,
            session: SessionId([session; 16]),
            generation: Generation(generation),
            source: ClaimSource { name: name.parse().unwrap(), fingerprint },
            software: String::new(),
            time: Timestamp(0),
            behind: None,
        };
        let writer = Writer {
            session: SessionId([1; 16]),
            generation: Generation(5),
            name: "own".parse().unwrap(),
            earlier: [SessionId([2; 16])].into(),
        };
        assert_eq!(writer.judge(&claim, Step::Fence), fence);
        assert_eq!(writer.judge(&claim, Step::GoOn), go_on);
    }

    #[test]
    fn own_claim_counts_as_put() {
        check(1, 5, "own", Verdict::Own, Verdict::Own);
    }

    #[test]
    fn newer_generation_fences() {
        check(3, 6, "other", Verdict::Fenced, Verdict::Fenced);
        check(3, 6, "own", Verdict::Fenced, Verdict::Fenced);
    }

    #[test]
    fn newer_session_of_the_same_source_takes_over() {
        check(3, 5, "own", Verdict::Next, Verdict::Fenced);
    }

    #[test]
    fn late_claim_of_an_earlier_session_fences_nobody() {
        check(2, 5, "own", Verdict::Next, Verdict::Anew);
    }

    #[test]
    fn another_source_of_the_same_generation_fences() {
        check(3, 5, "other", Verdict::Fenced, Verdict::Fenced);
    }

    #[test]
    fn older_generation_fences_nobody() {
        check(3, 4, "other", Verdict::Next, Verdict::Anew);
    }
}
