//! A source of synthetic segments: each is the beginning of one file of incompressible bytes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use journal_format::{Epoch, Generation, GroupName, Hash, Position, Sequence};
use tokio::sync::Notify;
use transport::{Heartbeat, LinkState, Outbox, Refusal, SegmentDescriptor};

use crate::failure::with_causes;

const GENERATION: Generation = Generation(1);

/// Incompressible bytes that a longer segment repeats.
const NOISE_BYTES: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct SyntheticOutbox {
    group: GroupName,
    /// What every segment's bytes are read from.
    content: PathBuf,
    wake: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Sealed and not confirmed, oldest first.
    waiting: VecDeque<Waiting>,
    /// When the newest point was cut; the beginning if there is none.
    newest_cut: Instant,
    head: Option<Position>,
    confirmed_bytes: u64,
    /// The last thing that went wrong.
    problem: Option<String>,
}

#[derive(Debug)]
struct Waiting {
    segment: SegmentDescriptor,
    /// When its point was cut.
    cut: Instant,
    /// When the point before that was cut: nothing in the segment is older.
    cut_before: Instant,
}

impl SyntheticOutbox {
    /// An outbox without segments; none will be longer than `segment_bytes_max`.
    pub(super) fn new(
        group: GroupName,
        folder: &Path,
        segment_bytes_max: u64,
    ) -> io::Result<SyntheticOutbox> {
        let content = folder.join("segment");
        let noise: Vec<u8> =
            (0..NOISE_BYTES / 32).flat_map(|number| Hash::of(&number.to_le_bytes()).0).collect();
        let mut file = File::create(&content)?;
        let mut missing = segment_bytes_max;
        while missing > 0 {
            let part = missing.min(NOISE_BYTES);
            file.write_all(&noise[..part as usize])?;
            missing -= part;
        }
        let state = State {
            waiting: VecDeque::new(),
            newest_cut: Instant::now(),
            head: None,
            confirmed_bytes: 0,
            problem: None,
        };
        Ok(SyntheticOutbox { group, content, wake: Notify::new(), state: Mutex::new(state) })
    }

    /// Cuts a point and seals what was written since the one before, in segments of `segment_bytes` at most.
    pub(super) fn cut(&self, mut size_bytes: u64, segment_bytes: u64) {
        let mut state = self.state();
        let cut = Instant::now();
        let cut_before = std::mem::replace(&mut state.newest_cut, cut);
        while size_bytes > 0 {
            let part = size_bytes.min(segment_bytes);
            let segment = state.seal(part);
            state.waiting.push_back(Waiting { segment, cut, cut_before });
            size_bytes -= part;
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Segments that are not confirmed.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    /// Bytes of segments that are confirmed.
    pub(super) fn confirmed_bytes(&self) -> u64 {
        self.state().confirmed_bytes
    }

    /// Age of the oldest segment that is not confirmed.
    pub(super) fn lag(&self) -> Duration {
        self.state().waiting.front().map_or(Duration::ZERO, |oldest| oldest.cut.elapsed())
    }

    /// Age of the newest point that is whole where everything up to the head is: what would be lost with the source. Without a
    /// head, the age of the newest point that is confirmed.
    pub(super) fn rpo(&self, head: Option<Position>) -> Duration {
        let state = self.state();
        let first = head.map_or(Sequence(0), |head| head.sequence.next());
        let missing = state.waiting.iter().find(|waiting| waiting.segment.position.sequence >= first);
        missing.map_or(state.newest_cut, |waiting| waiting.cut_before).elapsed()
    }

    /// The last thing that went wrong with the link.
    pub(super) fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&self) -> Sequence {
        self.head.map_or(Sequence(1), |head| head.sequence.next())
    }

    fn oldest(&self) -> Sequence {
        self.waiting.front().map_or(self.next(), |oldest| oldest.segment.position.sequence)
    }

    /// The next segment of the chain.
    fn seal(&mut self, size_bytes: u64) -> SegmentDescriptor {
        let parent = self.head.map_or(Hash::ZERO, |head| head.hash);
        let sequence = self.next();
        let position = Position {
            generation: GENERATION,
            sequence,
            epoch: Epoch(sequence.0),
            hash: Hash::of(&sequence.0.to_le_bytes()),
        };
        self.head = Some(position);
        SegmentDescriptor { position, parent, size_bytes }
    }

    fn confirm(&mut self, sequence: Sequence) {
        let covered = |waiting: &mut Waiting| waiting.segment.position.sequence <= sequence;
        while let Some(waiting) = self.waiting.pop_front_if(covered) {
            self.confirmed_bytes += waiting.segment.size_bytes;
        }
    }
}

impl Outbox for SyntheticOutbox {
    fn group(&self) -> &GroupName {
        &self.group
    }

    fn generation(&self) -> Generation {
        GENERATION
    }

    fn head(&self) -> Option<Position> {
        self.state().head
    }

    fn oldest(&self) -> Sequence {
        self.state().oldest()
    }

    fn site_head(&self, head: Option<Position>) -> Result<Sequence, Refusal> {
        let mut state = self.state();
        if let Some(head) = head {
            state.confirm(head.sequence);
        }
        Ok(state.oldest())
    }

    fn pending(&self, from: Sequence, limit: usize) -> Vec<SegmentDescriptor> {
        let state = self.state();
        let segments = state.waiting.iter().map(|waiting| waiting.segment);
        segments.filter(|segment| segment.position.sequence >= from).take(limit).collect()
    }

    fn open(&self, _: Sequence) -> io::Result<File> {
        File::open(&self.content)
    }

    fn wake(&self) -> &Notify {
        &self.wake
    }

    fn receipt(&self, position: Position) {
        self.state().confirm(position.sequence);
    }

    fn heartbeat(&self) -> Heartbeat {
        let state = self.state();
        Heartbeat {
            now: transport::clock::system_time(),
            newest_cut: None,
            backlog_bytes: state.waiting.iter().map(|waiting| waiting.segment.size_bytes).sum(),
            backlog_segments: state.waiting.len() as u64,
            state: "measuring".to_owned(),
        }
    }

    fn refused(&self, refusal: &Refusal) {
        self.state().problem = Some(refusal.to_string());
    }

    fn link(&self, state: LinkState) {
        if let LinkState::Disconnected(error) = state {
            self.state().problem = Some(with_causes(&*error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_counts_when_all_its_segments_are_there_and_its_age_counts_from_its_cut() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = SyntheticOutbox::new("g".parse().unwrap(), folder.path(), 4 << 10).unwrap();
        let position = |number: u64| Position {
            generation: GENERATION,
            sequence: Sequence(number),
            epoch: Epoch(number),
            hash: Hash::ZERO,
        };
        outbox.cut(8 << 10, 4 << 10);
        std::thread::sleep(Duration::from_millis(2));
        outbox.cut(4 << 10, 4 << 10);
        assert_eq!(outbox.waiting(), 3);
        let parts = [1, 2, 3].map(|number| outbox.rpo(Some(position(number))));
        assert!(parts[0] > parts[1] && parts[1] > parts[2], "{parts:?}");
        let before_any = outbox.rpo(None);
        outbox.receipt(position(1));
        assert!(outbox.rpo(None) >= before_any, "half a point is none");
        outbox.receipt(position(2));
        assert!(outbox.rpo(None) < before_any);
        assert_eq!((outbox.waiting(), outbox.confirmed_bytes()), (1, 8 << 10));
    }
}
