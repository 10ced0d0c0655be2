//! A site that counts what arrives, verifies its length, and keeps nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal_format::{Generation, GroupName, Position, Sequence, Timestamp};
use transport::{Begin, Heartbeat, Inbox, PeerName, Refusal, RefusalKind, SegmentDescriptor, SegmentSink};

#[derive(Clone, Debug, Default)]
pub(super) struct CountingInbox(Arc<Counted>);

#[derive(Debug, Default)]
struct Counted {
    arrived_bytes: AtomicU64,
    chain: Mutex<Chain>,
}

#[derive(Debug, Default)]
struct Chain {
    head: Option<Position>,
    /// Whole segments whose predecessors are not here yet.
    ahead: BTreeMap<Sequence, Position>,
}

impl CountingInbox {
    /// Payload that has arrived, also of segments that are not whole yet; what was given up is not counted.
    pub(super) fn arrived_bytes(&self) -> u64 {
        self.0.arrived_bytes.load(Ordering::Relaxed)
    }

    /// Up to where all segments are whole.
    pub(super) fn head(&self) -> Option<Position> {
        self.chain().head
    }

    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.0.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chain {
    fn next(&self) -> Sequence {
        self.head.map_or(Sequence(1), |head| head.sequence.next())
    }

    fn has(&self, sequence: Sequence) -> bool {
        sequence < self.next() || self.ahead.contains_key(&sequence)
    }

    fn attach(&mut self, position: Position) {
        if self.has(position.sequence) {
            return;
        }
        self.ahead.insert(position.sequence, position);
        while let Some(position) = self.ahead.remove(&self.next()) {
            self.head = Some(position);
        }
    }
}

impl Inbox for CountingInbox {
    fn claim(&self, _: &PeerName, _: &GroupName, _: Generation) -> Result<(), Refusal> {
        Ok(())
    }

    fn open_group(&self, _: &PeerName, _: &GroupName) -> Result<Option<Position>, Refusal> {
        Ok(self.chain().head)
    }

    fn begin(&self, _: &GroupName, segment: &SegmentDescriptor) -> Result<Begin, Refusal> {
        let chain = self.chain();
        if chain.has(segment.position.sequence) {
            return Ok(Begin::Have(chain.head));
        }
        Ok(Begin::Receive(Box::new(CountingSink {
            inbox: self.clone(),
            segment: *segment,
            bytes: 0,
            whole: false,
        })))
    }

    fn heartbeat(&self, _: &GroupName, _: &Heartbeat, _: Timestamp) {}

    fn closed(&self, _: &PeerName, _: &GroupName) {}
}

struct CountingSink {
    inbox: CountingInbox,
    segment: SegmentDescriptor,
    bytes: u64,
    whole: bool,
}

impl Drop for CountingSink {
    fn drop(&mut self) {
        if !self.whole {
            self.inbox.0.arrived_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl SegmentSink for CountingSink {
    fn write_at(&mut self, _offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.bytes += bytes.len() as u64;
        self.inbox.0.arrived_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<Option<Position>, Refusal> {
        if self.bytes != self.segment.size_bytes {
            let message = format!("{} bytes arrived of a segment of {}", self.bytes, self.segment.size_bytes);
            return Err(Refusal::new(RefusalKind::Corrupt, message, ""));
        }
        self.whole = true;
        let mut chain = self.inbox.chain();
        chain.attach(self.segment.position);
        Ok(chain.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use journal_format::{Epoch, Hash};

    #[test]
    fn the_head_follows_segments_that_end_in_another_order_and_short_ones_are_refused() {
        let inbox = CountingInbox::default();
        let (group, peer): (GroupName, PeerName) = ("g".parse().unwrap(), "p".parse().unwrap());
        let begin = |number: u64| {
            let position = Position {
                generation: Generation(1),
                sequence: Sequence(number),
                epoch: Epoch(number),
                hash: Hash::ZERO,
            };
            inbox.begin(&group, &SegmentDescriptor { position, parent: Hash::ZERO, size_bytes: 3 })
        };
        let receive = |number, bytes: &[u8]| match begin(number) {
            Ok(Begin::Receive(mut sink)) => {
                sink.write_at(0, bytes).unwrap();
                sink.commit().map(|head| head.map(|head| head.sequence.0))
            }
            _ => panic!("segment {number} is here already"),
        };
        assert_eq!(receive(2, b"abc"), Ok(None));
        assert!(receive(1, b"ab").is_err());
        assert_eq!(receive(1, b"abc"), Ok(Some(2)));
        assert!(matches!(begin(2), Ok(Begin::Have(Some(_)))));
        assert_eq!(inbox.open_group(&peer, &group).unwrap().map(|head| head.sequence.0), Some(2));
        assert_eq!(inbox.arrived_bytes(), 6);
    }
}
