use std::collections::BTreeSet;

use journal_format::{Epoch, Timestamp};
use proptest::prelude::*;
use transport::PublicKey;

use super::*;
use crate::documents::{ClaimSource, SessionId};

const WINDOW: u64 = 3;

fn group() -> GroupName {
    "db".parse().unwrap()
}

fn claim(number: ClaimNumber, kind: ClaimKind, generation: Generation, behind: Option<Position>) -> Claim {
    let fingerprint = PublicKey::from_bytes([1; 32]).fingerprint();
    Claim {
        group: group(),
        number,
        kind,
        session: SessionId([0; 16]),
        generation,
        source: ClaimSource { name: "pair".parse().unwrap(), fingerprint },
        software: String::new(),
        time: Timestamp(0),
        behind,
    }
}

fn outline(generation: Generation, sequence: Sequence, parent: Hash, hash: Hash) -> (Header, Trailer) {
    let header = Header {
        group: group(),
        generation,
        sequence,
        first_epoch: Epoch(sequence.0),
        last_epoch: Epoch(sequence.0),
        part: 0,
        more_parts: false,
        sealed_at: Timestamp(0),
        parent,
    };
    let trailer = Trailer {
        file_bytes: 400,
        index_offset: 192,
        index_stored_bytes: 0,
        index_raw_bytes: 0,
        frame_count: 0,
        extent_count: 0,
        meta_bytes: 0,
        payload_bytes: 0,
        index_hash: Hash::ZERO,
        meta_hash: Hash::ZERO,
        hash,
    };
    (header, trailer)
}

/// A bucket, and everything that was promised to writers.
#[derive(Default)]
struct World {
    claims: Vec<Claim>,
    objects: BTreeMap<SegmentName, (Header, Trailer)>,
    receipts: Vec<SegmentName>,
    /// Put under a start when a newer one was there.
    late: Vec<SegmentName>,
}

impl World {
    /// The chain by folding over the starts, as one would on paper.
    fn chain(&self) -> Vec<SegmentName> {
        let mut chain = Vec::new();
        for start in self.claims.iter().filter(|claim| claim.kind == ClaimKind::Start) {
            chain.truncate(start.behind.map_or(0, |behind| behind.sequence.0 as usize));
            loop {
                let sequence = Sequence(chain.len() as u64 + 1);
                let name = SegmentName { claim: start.number, sequence };
                if !self.objects.contains_key(&name) {
                    break;
                }
                chain.push(name);
            }
        }
        chain
    }

    fn position(&self, name: SegmentName) -> Position {
        let (header, trailer) = &self.objects[&name];
        header.position(trailer.hash)
    }

    fn put_claim(
        &mut self,
        kind: ClaimKind,
        generation: Generation,
        behind: Option<Position>,
    ) -> ClaimNumber {
        let number = ClaimNumber(self.claims.len() as u64 + 1);
        self.claims.push(claim(number, kind, generation, behind));
        number
    }

    fn newest_start(&self) -> Option<ClaimNumber> {
        let start = self.claims.iter().rev().find(|claim| claim.kind == ClaimKind::Start);
        start.map(|start| start.number)
    }
}

/// A writer's session, in the middle of anything.
#[derive(Clone, Debug)]
enum Writer {
    Away,
    Fenced { fence: ClaimNumber },
    Found { fence: ClaimNumber, head: Option<Position> },
    Started { start: ClaimNumber, behind: Option<Position>, sealed: Vec<Hash>, put: BTreeSet<u64> },
}

impl Writer {
    fn act(&mut self, world: &mut World, generation: Generation, choice: u8) {
        let newest = world.claims.last().cloned();
        match self.clone() {
            _ if choice == 0 => *self = Writer::Away,
            Writer::Away => {
                if newest.is_none_or(|newest| newest.generation <= generation) {
                    *self = Writer::Fenced { fence: world.put_claim(ClaimKind::Fence, generation, None) };
                }
            }
            Writer::Fenced { fence } => {
                let head = world.chain().last().map(|&last| world.position(last));
                *self = Writer::Found { fence, head };
            }
            Writer::Found { fence, head } => {
                // Put if absent: the number is free only if nobody claimed since.
                *self = if newest.is_some_and(|newest| newest.number == fence) {
                    let start = world.put_claim(ClaimKind::Start, generation, head);
                    Writer::Started { start, behind: head, sealed: Vec::new(), put: BTreeSet::new() }
                } else {
                    Writer::Away
                };
            }
            Writer::Started { start, behind, mut sealed, mut put } => {
                let base = behind.map_or(0, |behind| behind.sequence.0);
                let contiguous = (1..).take_while(|at| put.contains(at)).count() as u64;
                if choice == 1 {
                    if newest.is_some_and(|newest| newest.number == start) {
                        let received = (1..=contiguous).map(|at| Sequence(base + at));
                        world
                            .receipts
                            .extend(received.map(|sequence| SegmentName { claim: start, sequence }));
                    }
                    return;
                }
                let at = contiguous + 1 + u64::from(choice) % WINDOW;
                while (sealed.len() as u64) < at {
                    let seed = format!("{start} {}", sealed.len());
                    sealed.push(Hash::of(seed.as_bytes()));
                }
                let before = match at {
                    1 => behind.map_or(Hash::ZERO, |behind| behind.hash),
                    at => sealed[at as usize - 2],
                };
                let sequence = Sequence(base + at);
                let name = SegmentName { claim: start, sequence };
                if world.newest_start() != Some(start) {
                    world.late.push(name);
                }
                world.objects.insert(name, outline(generation, sequence, before, sealed[at as usize - 1]));
                put.insert(at);
                *self = Writer::Started { start, behind, sealed, put };
            }
        }
    }
}

fn claims_of(world: &World) -> Claims {
    let mut claims = Claims::new(group());
    world.claims.iter().for_each(|claim| claims.push(claim.clone()).unwrap());
    claims
}

/// Reads as a reader does, with a listing that shows only some of the objects.
fn read(world: &World, seen: impl Fn(SegmentName) -> bool) -> Vec<SegmentName> {
    let claims = claims_of(world);
    let mut listed = Listed::default();
    world.objects.keys().filter(|&&name| seen(name)).for_each(|&name| listed.insert(name, 1));
    while let Some(hole) = listed.hole(&claims, Sequence(1)) {
        if !world.objects.contains_key(&hole) {
            break;
        }
        listed.insert(hole, 1);
    }
    let mut walk = ChainWalk::behind(group(), None);
    let run = listed.run(&claims, Sequence(1));
    run.map(|candidate| {
        let (header, trailer) = &world.objects[&candidate.name];
        walk.step(&claims, candidate.name, header, trailer).unwrap();
        candidate.name
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn readers_have_the_chain_that_writers_were_given_receipts_for(
        steps in prop::collection::vec((0..4usize, 0..8u8), 1..200),
        shown in any::<u64>(),
    ) {
        let mut world = World::default();
        let mut writers = vec![Writer::Away; 4];
        for (writer, choice) in steps {
            // Two of generation 1, one each of 2 and 3.
            let generation = Generation([1, 1, 2, 3][writer]);
            let before = world.chain();
            let known = world.claims.len() as u64;
            writers[writer].act(&mut world, generation, choice);
            let (chain, claims) = (world.chain(), claims_of(&world));
            let kept = claims.kept_since(ClaimNumber(known)).map_or(before.len(), |kept| kept.0 as usize);
            let kept = kept.min(before.len());
            prop_assert_eq!(&before[..kept], &chain[..kept], "what is said to be kept is kept");
        }
        let chain = world.chain();
        for received in &world.receipts {
            prop_assert!(chain.contains(received), "{} was received and is not in the chain", received);
        }
        for late in &world.late {
            prop_assert!(!chain.contains(late), "{} was put by a fenced writer", late);
        }
        prop_assert_eq!(&read(&world, |_| true), &chain);
        prop_assert_eq!(&read(&world, |name| (shown >> ((name.claim.0 * 7 + name.sequence.0) % 64)) & 1 == 1), &chain);
    }
}

#[test]
fn listing_goes_on_behind_what_is_known() {
    let mut claims = Claims::new(group());
    let name = |claim, sequence| SegmentName { claim: ClaimNumber(claim), sequence: Sequence(sequence) };
    assert_eq!(claims.segment_of(Sequence(1)), None);
    assert_eq!(Listed::default().list_behind(&claims, Sequence(0)), None);
    claims.push(claim(ClaimNumber(1), ClaimKind::Fence, Generation(1), None)).unwrap();
    claims.push(claim(ClaimNumber(2), ClaimKind::Start, Generation(1), None)).unwrap();
    let mut listed = Listed::default();
    assert_eq!(listed.list_behind(&claims, Sequence(0)), Some(name(2, 0)));
    for sequence in [1, 2, 4] {
        listed.insert(name(2, sequence), 1);
    }
    assert_eq!(listed.hole(&claims, Sequence(1)), Some(name(2, 3)));
    assert_eq!(listed.list_behind(&claims, Sequence(0)), Some(name(2, 2)), "what is late is listed again");
    listed.insert(name(2, 3), 1);
    assert_eq!(listed.list_behind(&claims, Sequence(0)), Some(name(2, 4)));
    listed.forget(&claims, Sequence(3));
    assert_eq!(listed.run(&claims, Sequence(4)).map(|found| found.name).collect::<Vec<_>>(), [name(2, 4)]);
}

#[test]
fn claims_that_do_not_follow_are_refused() {
    let mut claims = Claims::new(group());
    claims.push(claim(ClaimNumber(1), ClaimKind::Fence, Generation(2), None)).unwrap();
    let mut refused = |claim| claims.push(claim).unwrap_err().to_string();
    assert!(
        refused(claim(ClaimNumber(3), ClaimKind::Start, Generation(2), None)).contains("not the next one")
    );
    assert!(refused(claim(ClaimNumber(2), ClaimKind::Start, Generation(1), None)).contains("lower"));
    let other = Claim {
        group: "web".parse().unwrap(),
        ..claim(ClaimNumber(2), ClaimKind::Start, Generation(2), None)
    };
    assert!(refused(other).contains("another group"));
}

#[test]
fn a_step_that_does_not_continue_the_chain_is_refused() {
    let hash = |byte| Hash([byte; 32]);
    let mut claims = Claims::new(group());
    claims.push(claim(ClaimNumber(1), ClaimKind::Start, Generation(2), None)).unwrap();
    let name = |claim, sequence| SegmentName { claim: ClaimNumber(claim), sequence: Sequence(sequence) };
    let mut walk = ChainWalk::behind(group(), None);
    let (header, trailer) = outline(Generation(2), Sequence(1), Hash::ZERO, hash(1));
    assert_eq!(walk.step(&claims, name(2, 1), &header, &trailer), Err(ChainBreak::Name));
    assert_eq!(walk.step(&claims, name(1, 2), &header, &trailer), Err(ChainBreak::Name));
    let first = walk.step(&claims, name(1, 1), &header, &trailer).unwrap();
    assert_eq!(walk.position(), Some(first));

    let mut refused = |generation, parent| {
        let (header, trailer) = outline(Generation(generation), Sequence(2), parent, hash(2));
        walk.step(&claims, name(1, 2), &header, &trailer).unwrap_err()
    };
    let (lowest, highest) = (Generation(2), Generation(2));
    assert_eq!(refused(2, hash(9)), ChainBreak::Parent { expected: hash(1), actual: hash(9) });
    assert_eq!(refused(1, hash(1)), ChainBreak::Generation { lowest, highest, actual: Generation(1) });
    assert_eq!(refused(3, hash(1)), ChainBreak::Generation { lowest, highest, actual: Generation(3) });

    let elsewhere = Position { hash: hash(8), ..first };
    claims.push(claim(ClaimNumber(2), ClaimKind::Start, Generation(2), Some(elsewhere))).unwrap();
    let (header, trailer) = outline(Generation(2), Sequence(2), hash(1), hash(2));
    let broken = ChainBreak::Start { claim: ClaimNumber(2), sequence: Sequence(1) };
    assert_eq!(walk.step(&claims, name(2, 2), &header, &trailer), Err(broken));
}
