//! Several stores as one: each segment is read from one that has it whole, and the chain is the longest that all of them together have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use journal_format::segment::{SegmentIndex, SegmentSource};
use journal_format::{ErrorKind, Generation, GroupName, Hash, Sequence, Timestamp};
use transport::{Heartbeat, NewestCut};

use super::Store;
use crate::catalog::SegmentRow;
use crate::decoding::{Decode, Decoding};
use crate::error::StoreError;
use crate::segments::{GroupWriter, KnownChain, ListedSegment, Listing, Segments, WantedFrame};

/// Outlines behind a hole that are read at once.
const BATCH: usize = 256;

/// Stores that are read as one.
pub(super) struct Union {
    /// In the order in which they are asked.
    members: Vec<Store>,
    /// Which of them have a segment, a bit for each.
    holders: Mutex<HashMap<Hash, u64>>,
}

/// A segment that some store has, as far as the chain is concerned.
#[derive(Clone, Debug)]
struct Node {
    hash: Hash,
    parent: Hash,
    generation: Generation,
    size_bytes: u64,
}

/// Segments by their place in a chain.
type Nodes = BTreeMap<Sequence, Vec<Node>>;

impl Union {
    /// At most 64 stores.
    pub(super) fn new(members: Vec<Store>) -> Union {
        Union { members, holders: Mutex::default() }
    }

    fn add(&self, nodes: &mut Nodes, member: usize, sequence: Sequence, node: Node) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        *holders.entry(node.hash).or_default() |= 1 << member;
        let there = nodes.entry(sequence).or_default();
        if !there.iter().any(|other| other.hash == node.hash) {
            there.push(node);
        }
    }

    /// What a store has of a group: its chain, and what is behind a hole in it.
    fn add_all(&self, nodes: &mut Nodes, member: usize, group: &GroupName) -> Result<(), StoreError> {
        let store = &self.members[member];
        let rows = store.catalog().chain(group, Sequence(i64::MAX as u64))?;
        let known = KnownChain::of(&rows);
        let head = known.map_or(Sequence(0), |known| known.head);
        for row in rows {
            self.add(nodes, member, row.position.sequence, node_of(&row));
        }
        let listed = store.segments.list(group, known)?.segments;
        let beyond: Vec<ListedSegment> = listed.into_iter().filter(|listed| listed.sequence > head).collect();
        for batch in beyond.chunks(BATCH) {
            // What is damaged here may be whole elsewhere.
            for index in store.segments.read_listed(group, batch).into_iter().flatten() {
                if index.header.group == *group {
                    self.add(nodes, member, index.header.sequence, node_of_index(&index));
                }
            }
        }
        Ok(())
    }

    /// The stores that have a segment, and then the others: what they list may have come late.
    fn order(&self, segment: &Hash) -> Vec<&Store> {
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let bits = holders.get(segment).copied().unwrap_or_default();
        let (mut first, others): (Vec<_>, Vec<_>) =
            self.members.iter().enumerate().partition(|(member, _)| bits & (1 << member) != 0);
        first.extend(others);
        first.into_iter().map(|(_, store)| store).collect()
    }

    /// Asks one store after the other. Of several errors the one of the first store is answered.
    fn first<T>(
        &self,
        segment: &SegmentSource,
        mut ask: impl FnMut(&dyn Segments) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut failed: Option<StoreError> = None;
        for store in self.order(&segment.hash) {
            match ask(&*store.segments) {
                Ok(answer) => {
                    if let Some(error) = failed.filter(|error| error.kind() == ErrorKind::Corrupt) {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            instead = store.location(),
                            "a segment was read from another store"
                        );
                    }
                    return Ok(answer);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.expect("there is at least one store"))
    }
}

fn node_of(row: &SegmentRow) -> Node {
    let (hash, generation) = (row.position.hash, row.position.generation);
    Node { hash, parent: row.parent, generation, size_bytes: row.size_bytes }
}

fn node_of_index(index: &SegmentIndex) -> Node {
    let (header, trailer) = (&index.header, &index.trailer);
    let (hash, size_bytes) = (trailer.hash, trailer.file_bytes);
    Node { hash, parent: header.parent, generation: header.generation, size_bytes }
}

/// The longest chain from sequence 1 on. Of several, that of the newest writer.
fn longest(nodes: &Nodes) -> Vec<(Sequence, Node)> {
    let mut reached: Vec<Vec<&Node>> = Vec::new();
    for (number, (sequence, nodes)) in nodes.iter().enumerate() {
        if sequence.0 != number as u64 + 1 {
            break;
        }
        let continues = |node: &&Node| match reached.last() {
            None => node.parent == Hash::ZERO,
            Some(before) => {
                before.iter().any(|before| before.hash == node.parent && before.generation <= node.generation)
            }
        };
        let these: Vec<&Node> = nodes.iter().filter(continues).collect();
        if these.is_empty() {
            break;
        }
        reached.push(these);
    }
    let mut chain: Vec<(Sequence, Node)> = Vec::with_capacity(reached.len());
    for (number, nodes) in reached.iter().enumerate().rev() {
        let parent = chain.last().map(|(_, node)| node.parent);
        let fits = |node: &&&Node| parent.is_none_or(|parent| node.hash == parent);
        let Some(node) = nodes.iter().filter(fits).max_by_key(|node| (node.generation, node.hash)) else {
            break;
        };
        chain.push((Sequence(number as u64 + 1), Node::clone(node)));
    }
    chain.reverse();
    chain
}

impl Segments for Union {
    fn location(&self) -> String {
        self.members.iter().map(Store::location).collect::<Vec<_>>().join(", ")
    }

    fn groups(&self) -> Result<Vec<GroupName>, StoreError> {
        let mut groups = BTreeSet::new();
        for store in &self.members {
            groups.extend(store.segments.groups()?);
        }
        Ok(groups.into_iter().collect())
    }

    fn list(&self, group: &GroupName, _known: Option<KnownChain>) -> Result<Listing, StoreError> {
        let mut nodes = Nodes::new();
        (0..self.members.len()).try_for_each(|member| self.add_all(&mut nodes, member, group))?;
        let listed = |(sequence, node): (Sequence, Node)| ListedSegment {
            sequence,
            generation: Some(node.generation),
            claim: 0,
            size_bytes: node.size_bytes,
            hash: Some(node.hash),
        };
        Ok(Listing { kept: Sequence(0), segments: longest(&nodes).into_iter().map(listed).collect() })
    }

    fn read_listed(
        &self,
        group: &GroupName,
        listed: &[ListedSegment],
    ) -> Vec<Result<SegmentIndex, StoreError>> {
        listed.iter().map(|listed| self.index(&listed.source(group))).collect()
    }

    fn index(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError> {
        self.first(segment, |segments| segments.index(segment))
    }

    fn frame(
        &self,
        frame: &WantedFrame<'_>,
        how: Decode,
        decoding: &mut Decoding,
    ) -> Result<Vec<u8>, StoreError> {
        // Another store may answer than the one in which it was sound.
        let how = how.max(Decode::Verified);
        self.first(frame.segment, |segments| segments.frame(frame, how, decoding))
    }

    fn reads_ahead(&self) -> bool {
        self.members.iter().any(|store| store.segments.reads_ahead())
    }

    fn expect(&self, frames: &[WantedFrame<'_>]) {
        for frames in frames.chunk_by(|one, other| one.segment.hash == other.segment.hash) {
            if let Some(store) = self.order(&frames[0].segment.hash).first() {
                store.segments.expect(frames);
            }
        }
    }

    fn verify(&self, group: &GroupName, listed: &ListedSegment) -> Result<SegmentIndex, StoreError> {
        self.verify_named(&listed.source(group))
    }

    fn verify_named(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError> {
        self.first(segment, |segments| segments.verify_named(segment))
    }

    fn whole(&self, segment: &SegmentSource) -> Result<Bytes, StoreError> {
        self.first(segment, |segments| segments.whole(segment))
    }

    fn writer(&self, group: &GroupName) -> Result<Option<GroupWriter>, StoreError> {
        let mut writer = None;
        for store in &self.members {
            // One that is known with its fingerprint says more.
            match store.segments.writer(group)? {
                Some(found) if found.fingerprint.is_some() => return Ok(Some(found)),
                found => writer = writer.or(found),
            }
        }
        Ok(writer)
    }

    fn place(&self, segment: &SegmentSource) -> PathBuf {
        let order = self.order(&segment.hash);
        order.first().map(|store| store.segments.place(segment)).unwrap_or_default()
    }

    fn place_listed(&self, group: &GroupName, listed: &ListedSegment) -> PathBuf {
        self.place(&listed.source(group))
    }

    fn seed_of(&self, group: &GroupName) -> Result<Option<GroupName>, StoreError> {
        for store in &self.members {
            if let Some(of) = store.segments.seed_of(group)? {
                return Ok(Some(of));
            }
        }
        Ok(None)
    }

    fn heartbeat(&self, group: &GroupName) -> Result<Option<(Heartbeat, Timestamp)>, StoreError> {
        let said = self.members.iter().map(|store| store.catalog().heartbeat(group));
        let said = said.collect::<Result<Vec<_>, _>>()?;
        let newest = said.into_iter().flatten().max_by_key(|said| said.source_time);
        Ok(newest.map(|said| {
            let newest_cut = said.newest_cut.map(|(epoch, time)| NewestCut { epoch, time });
            let heartbeat = Heartbeat {
                now: said.source_time,
                newest_cut,
                backlog_bytes: said.backlog_bytes,
                backlog_segments: said.backlog_segments,
                state: said.state,
            };
            (heartbeat, said.received_at)
        }))
    }
}

#[cfg(test)]
mod tests;
