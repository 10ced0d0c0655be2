//! What each target of a group has, and what follows for the group's one journal.
//!
//! All targets get the same chain of segments. The journal keeps what a target still lacks, up to its limit; beyond it, the target that is furthest behind loses its place,
//! so that the others are not held up. The chain goes on from a target's head only when no other target is on the chain: what one of them has is never given up for another.

use std::time::Duration;

use journal_format::{Position, Sequence, Timestamp};

/// So long after the start a target that has not been heard may still say that it is further than the others.
const PATIENCE: Duration = Duration::from_secs(30);
/// Refusals in a row, without a receipt between them, after which a target that refuses good segments is left behind.
const REFUSALS_MAX: u32 = 3;

/// How a target stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// Not heard since the start.
    Unheard,
    /// On the chain: it has everything up to here.
    At(Option<Position>),
    /// Its head is not on the chain, and nothing has been decided.
    Elsewhere(Option<Position>),
    /// It has lost its place.
    Behind { had: Sequence, reason: String },
}

/// What follows from a target's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is on the chain.
    OnChain,
    /// The chain goes on from this head.
    Rebase,
    /// Others may be further; it is asked again.
    Wait,
    /// It has lost its place.
    LostPlace(String),
}

/// All targets of a group, by their numbers.
#[derive(Debug)]
pub(super) struct Standings {
    standings: Vec<Standing>,
    refusals: Vec<u32>,
    started: Timestamp,
}

impl Standings {
    pub(super) fn new(targets: usize, started: Timestamp) -> Self {
        Standings { standings: vec![Standing::Unheard; targets], refusals: vec![0; targets], started }
    }

    /// A target told its head. `on_chain` says whether the journal can go on from there.
    pub(super) fn heard(
        &mut self,
        target: usize,
        head: Option<Position>,
        on_chain: bool,
        now: Timestamp,
    ) -> Heard {
        if on_chain {
            self.standings[target] = Standing::At(head);
            return Heard::OnChain;
        }
        if self.others(target).any(|other| matches!(other, Standing::At(_))) {
            let reason = match &self.standings[target] {
                Standing::Behind { reason, .. } => reason.clone(),
                _ => "what it has is not on the chain that the other targets have, or the journal does not reach back to it any more".to_owned(),
            };
            self.leave_behind(target, head.map_or(Sequence(0), |head| head.sequence), reason.clone());
            return Heard::LostPlace(reason);
        }
        self.standings[target] = Standing::Elsewhere(head);
        let waits = now.seconds_since(self.started) < PATIENCE.as_secs_f64();
        if waits && self.others(target).any(|other| *other == Standing::Unheard) {
            return Heard::Wait;
        }
        let newest = self.others(target).all(|other| match other {
            Standing::Elsewhere(other) => order(*other) <= order(head),
            _ => true,
        });
        if newest { Heard::Rebase } else { Heard::Wait }
    }

    /// The chain goes on from this target's head now.
    pub(super) fn rebased(&mut self, target: usize, head: Option<Position>) {
        self.standings[target] = Standing::At(head);
        self.refusals[target] = 0;
    }

    /// A target has everything up to a position of the chain.
    pub(super) fn received(&mut self, target: usize, position: Position) {
        self.refusals[target] = 0;
        if !matches!(self.standings[target], Standing::Behind { .. }) {
            self.standings[target] = Standing::At(Some(position));
        }
    }

    /// The connection to a target ended: what it said of a head elsewhere holds nobody up.
    pub(super) fn disconnected(&mut self, target: usize) {
        if matches!(self.standings[target], Standing::Elsewhere(_)) {
            self.standings[target] = Standing::Unheard;
        }
    }

    /// A target refused what is right here. Answers whether the journal has to replace what is behind its head; otherwise the same is
    /// sent again, and at last the target is left behind.
    pub(super) fn refused(&mut self, target: usize, reason: &str) -> bool {
        let alone = !self.others(target).any(|other| matches!(other, Standing::At(_)));
        if alone {
            return true;
        }
        self.refusals[target] += 1;
        if self.refusals[target] >= REFUSALS_MAX {
            let had = self.had(target);
            self.leave_behind(target, had, format!("it refused segments that others took: {reason}"));
        }
        false
    }

    /// Up to where the journal may be trimmed: what every target has that is not left behind; `None` if that is nothing, or not known.
    pub(super) fn floor(&self) -> Option<Position> {
        let mut floor: Option<Position> = None;
        for standing in &self.standings {
            match standing {
                Standing::Behind { .. } => {}
                Standing::Unheard | Standing::Elsewhere(_) | Standing::At(None) => return None,
                Standing::At(Some(position)) => {
                    let lower = floor.is_none_or(|floor| position.sequence < floor.sequence);
                    floor = if lower { Some(*position) } else { floor };
                }
            }
        }
        floor
    }

    /// Up to where all targets have everything, also those that are left behind.
    pub(super) fn everywhere(&self) -> Sequence {
        (0..self.standings.len()).map(|target| self.had(target)).min().unwrap_or(Sequence(0))
    }

    /// The journal is nearly full: leaves the target behind that is furthest behind, if another one is further. Answers which.
    pub(super) fn give_up_slowest(&mut self) -> Option<usize> {
        let is_held = |target: &usize| !matches!(self.standings[*target], Standing::Behind { .. });
        let slowest = (0..self.standings.len()).filter(is_held).min_by_key(|&target| self.had(target))?;
        let had = self.had(slowest);
        let other_is_further =
            self.others(slowest).any(|other| matches!(other, Standing::At(Some(at)) if at.sequence > had));
        if !other_is_further {
            return None;
        }
        let reason = "the journal was nearly full of what only this target lacked".to_owned();
        self.leave_behind(slowest, had, reason);
        Some(slowest)
    }

    /// What a target that is on the chain has.
    pub(super) fn has(&self, target: usize) -> Option<Option<Position>> {
        match &self.standings[target] {
            Standing::At(position) => Some(*position),
            _ => None,
        }
    }

    /// Why a target has lost its place, if it has.
    pub(super) fn lost_place(&self, target: usize) -> Option<&str> {
        match &self.standings[target] {
            Standing::Behind { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// What a target is known to have.
    fn had(&self, target: usize) -> Sequence {
        match &self.standings[target] {
            Standing::At(Some(position)) => position.sequence,
            Standing::Behind { had, .. } => *had,
            _ => Sequence(0),
        }
    }

    fn leave_behind(&mut self, target: usize, had: Sequence, reason: String) {
        self.standings[target] = Standing::Behind { had, reason };
        self.refusals[target] = 0;
    }

    fn others(&self, target: usize) -> impl Iterator<Item = &Standing> {
        let others = self.standings.iter().enumerate().filter(move |(number, _)| *number != target);
        others.map(|(_, standing)| standing)
    }
}

/// Which of two heads is further: a newer generation counts before a longer chain.
fn order(head: Option<Position>) -> Option<(u64, Sequence)> {
    head.map(|head| (head.generation.0, head.sequence))
}

#[cfg(test)]
mod tests;
