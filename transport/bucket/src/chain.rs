//! Which segments of a bucket are a group's chain; `BUCKET.md`, "The chain". Decisions only: what was listed is handed in.
//!
//! The safety rule: a segment belongs to the chain only by the newest start below it. Claims are numbered without gaps and each is put by
//! whoever has read the one before it, so every writer and every reader that has the same claims has the same chain.

use std::collections::BTreeMap;

use journal_format::segment::{Header, Trailer};
use journal_format::{Generation, GroupName, Hash, Position, Sequence};
use thiserror::Error;

use crate::documents::{Claim, ClaimKind};
use crate::error::RoadError;
use crate::keys::{ClaimNumber, SegmentName};

/// The claims of a group, read in their order, and what follows from them.
#[derive(Clone, Debug)]
pub struct Claims {
    group: GroupName,
    next: ClaimNumber,
    newest: Option<Claim>,
    starts: Vec<Start>,
    /// Which start has the sequences from `first` on, up to the next entry's; ascending in both fields.
    pieces: Vec<Piece>,
}

/// A claim from which on a writer went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its number.
    pub number: ClaimNumber,
    /// The writer's generation.
    pub generation: Generation,
    /// The position behind which it goes on; none for the beginning of the chain.
    pub behind: Option<Position>,
}

impl Start {
    /// The first sequence that it has, unless a newer one has it.
    pub fn first(&self) -> Sequence {
        self.behind.map_or(Sequence(1), |behind| behind.sequence.next())
    }
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    first: Sequence,
    /// Its place in `starts`.
    start: usize,
}

impl Claims {
    /// Of a group of which no claim was read yet.
    pub fn new(group: GroupName) -> Self {
        Self::since(group, ClaimNumber::FIRST)
    }

    /// The same without the claims before `first`: nothing is known then of the sequences that were put under these.
    pub fn since(group: GroupName, first: ClaimNumber) -> Self {
        Self { group, next: first, newest: None, starts: Vec::new(), pieces: Vec::new() }
    }

    /// The newest claim that was read.
    pub fn newest(&self) -> Option<&Claim> {
        self.newest.as_ref()
    }

    /// The number of the claim to read, or to put, next.
    pub fn next(&self) -> ClaimNumber {
        self.next
    }

    /// Takes in the next claim.
    ///
    /// # Errors
    /// [`RoadError::Claims`] if it is of another group, is not the next one, or its generation is lower than that of the one before it.
    pub fn push(&mut self, claim: Claim) -> Result<(), RoadError> {
        self.check(&claim).map_err(|rule| {
            let (group, number) = (self.group.clone(), claim.number);
            RoadError::Claims { group, number, rule }
        })?;
        if claim.kind == ClaimKind::Start {
            let start = Start { number: claim.number, generation: claim.generation, behind: claim.behind };
            let first = start.first();
            while self.pieces.last().is_some_and(|piece| piece.first >= first) {
                self.pieces.pop();
            }
            self.pieces.push(Piece { first, start: self.starts.len() });
            self.starts.push(start);
        }
        self.next = claim.number.next();
        self.newest = Some(claim);
        Ok(())
    }

    fn check(&self, claim: &Claim) -> Result<(), &'static str> {
        if claim.group != self.group {
            return Err("it is of another group");
        }
        if claim.number != self.next() {
            return Err("its number is not the next one");
        }
        if self.newest.as_ref().is_some_and(|newest| newest.generation > claim.generation) {
            return Err("its generation is lower");
        }
        Ok(())
    }

    /// The newest start.
    pub fn newest_start(&self) -> Option<&Start> {
        self.starts.last()
    }

    /// The start that has a sequence: the newest one that goes on behind a smaller one.
    pub fn start_of(&self, sequence: Sequence) -> Option<&Start> {
        let later = self.pieces.partition_point(|piece| piece.first <= sequence);
        let piece = self.pieces.get(later.checked_sub(1)?)?;
        self.starts.get(piece.start)
    }

    /// The object that is the segment of a sequence, if it exists.
    pub fn segment_of(&self, sequence: Sequence) -> Option<SegmentName> {
        self.start_of(sequence).map(|start| SegmentName { claim: start.number, sequence })
    }

    /// Whether a segment belongs to the chain, if everything before it is there.
    pub fn has(&self, name: SegmentName) -> bool {
        self.segment_of(name.sequence) == Some(name)
    }

    /// How much of a chain that was read when `known` was the newest claim still belongs to it: its sequences up to this one. None for all of it.
    pub fn kept_since(&self, known: ClaimNumber) -> Option<Sequence> {
        let newer = self.starts.iter().rev().take_while(|start| start.number > known);
        newer.map(|start| start.behind.map_or(Sequence(0), |behind| behind.sequence)).min()
    }
}

/// What was listed, or found by its name, of a group's segments.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    sizes: BTreeMap<SegmentName, u64>,
}

/// A segment that may be the chain's next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The object.
    pub name: SegmentName,
    /// Its size.
    pub size_bytes: u64,
}

impl Listed {
    /// Takes in an object. Objects are never overwritten, so it does not matter how often it is told.
    pub fn insert(&mut self, name: SegmentName, size_bytes: u64) {
        self.sizes.insert(name, size_bytes);
    }

    /// Forgets everything that is not in the chain behind a sequence, to which the reader has got.
    pub fn forget(&mut self, claims: &Claims, read: Sequence) {
        self.sizes.retain(|name, _| {
            name.sequence > read
                && claims.start_of(name.sequence).is_none_or(|start| start.number <= name.claim)
        });
    }

    /// The segments from a sequence on, up to the first that is not known to exist.
    pub fn run<'a>(&'a self, claims: &'a Claims, from: Sequence) -> impl Iterator<Item = Candidate> + 'a {
        (from.0..).map_while(|sequence| {
            let name = claims.segment_of(Sequence(sequence))?;
            let size_bytes = *self.sizes.get(&name)?;
            Some(Candidate { name, size_bytes })
        })
    }

    /// The first object of the chain from a sequence on that is not known to exist, to be asked for by its name before the chain is believed to
    /// end there; none before the first start.
    pub fn hole(&self, claims: &Claims, from: Sequence) -> Option<SegmentName> {
        let known = self.run(claims, from).last();
        claims.segment_of(known.map_or(from, |last| last.name.sequence.next()))
    }

    /// Everything behind this name is to be listed next: what was listed before it is known, or does not belong to the chain behind `read`.
    pub fn list_behind(&self, claims: &Claims, read: Sequence) -> Option<SegmentName> {
        let first = claims.segment_of(read.next())?;
        Some(
            self.run(claims, read.next())
                .last()
                .map_or(SegmentName { sequence: read, ..first }, |last| last.name),
        )
    }
}

/// Why the chain cannot go on with an object that has the right name.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ChainBreak {
    /// It is a segment of another group, or of another sequence.
    #[error("it is another segment than its name says")]
    Name,
    /// It does not continue the segment before it.
    #[error("its parent is {actual}, the segment before it is {expected}")]
    Parent {
        /// Hash of the segment before it.
        expected: Hash,
        /// Hash that it names.
        actual: Hash,
    },
    /// Its generation is lower than that of the segment before it, or higher than its writer's.
    #[error("its generation {actual} is not between {lowest} and {highest}")]
    Generation {
        /// Generation of the segment before it.
        lowest: Generation,
        /// Generation of the start that it was put under.
        highest: Generation,
        /// Its generation.
        actual: Generation,
    },
    /// The start that it was put under goes on behind another position than the one that was read.
    #[error("claim {claim} goes on behind another segment {} than the chain has", .sequence)]
    Start {
        /// The start.
        claim: ClaimNumber,
        /// Sequence of the segment that is another one.
        sequence: Sequence,
    },
}

/// Goes along the chain and checks each step, given the outlines of its segments one by one.
#[derive(Clone, Debug)]
pub struct ChainWalk {
    group: GroupName,
    position: Option<Position>,
}

impl ChainWalk {
    /// From behind a position that was checked before; none for the beginning.
    pub fn behind(group: GroupName, position: Option<Position>) -> Self {
        Self { group, position }
    }

    /// How far the chain was checked.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// The sequence to go on with.
    pub fn next(&self) -> Sequence {
        self.position.map_or(Sequence(1), |position| position.sequence.next())
    }

    /// Takes the next step, to the object `name` with this outline, which was verified by decoding it. Answers the position behind it.
    ///
    /// # Errors
    /// [`ChainBreak`]; the walk stays where it is.
    pub fn step(
        &mut self,
        claims: &Claims,
        name: SegmentName,
        header: &Header,
        trailer: &Trailer,
    ) -> Result<Position, ChainBreak> {
        let Some(start) = claims.start_of(self.next()).filter(|start| start.number == name.claim) else {
            return Err(ChainBreak::Name);
        };
        if header.group != self.group || header.sequence != name.sequence || name.sequence != self.next() {
            return Err(ChainBreak::Name);
        }
        if start.first() == name.sequence && start.behind != self.position {
            let sequence = self.position.map_or(Sequence(0), |position| position.sequence);
            return Err(ChainBreak::Start { claim: start.number, sequence });
        }
        let expected = self.position.map_or(Hash::ZERO, |position| position.hash);
        if header.parent != expected {
            return Err(ChainBreak::Parent { expected, actual: header.parent });
        }
        let lowest = self.position.map_or(Generation(1), |position| position.generation);
        let (highest, actual) = (start.generation, header.generation);
        if !(lowest..=highest).contains(&actual) {
            return Err(ChainBreak::Generation { lowest, highest, actual });
        }
        let position = header.position(trailer.hash);
        self.position = Some(position);
        Ok(position)
    }
}

#[cfg(test)]
mod tests;
