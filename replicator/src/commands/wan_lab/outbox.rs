//! A source of synthetic segments: each is the beginning of one sparse file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use journal_format::{Epoch, Generation, GroupName, Hash, Position, Sequence};
use tokio::sync::Notify;
use transport::{Heartbeat, LinkState, Outbox, Refusal, SegmentDescriptor};

use crate::failure::with_causes;

const GENERATION: Generation = Generation(1);

#[derive(Debug)]
pub(super) struct SyntheticOutbox {
    group: GroupName,
    /// What every segment's bytes are read from.
    content: PathBuf,
    wake: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Sealed and not confirmed, oldest first, with the time of sealing.
    waiting: VecDeque<(SegmentDescriptor, Instant)>,
    head: Option<Position>,
    confirmed_bytes: u64,
    /// The last thing that went wrong.
    problem: Option<String>,
}

impl SyntheticOutbox {
    /// An outbox without segments; none will be longer than `segment_bytes_max`.
    pub(super) fn new(
        group: GroupName,
        folder: &Path,
        segment_bytes_max: u64,
    ) -> io::Result<SyntheticOutbox> {
        let content = folder.join("segment");
        File::create(&content)?.set_len(segment_bytes_max)?;
        Ok(SyntheticOutbox { group, content, wake: Notify::new(), state: Mutex::default() })
    }

    /// Seals a segment.
    pub(super) fn seal(&self, size_bytes: u64) {
        let mut state = self.state();
        let parent = state.head.map_or(Hash::ZERO, |head| head.hash);
        let sequence = state.next();
        let position = Position {
            generation: GENERATION,
            sequence,
            epoch: Epoch(sequence.0),
            hash: Hash::of(&sequence.0.to_le_bytes()),
        };
        state.head = Some(position);
        state.waiting.push_back((SegmentDescriptor { position, parent, size_bytes }, Instant::now()));
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
        self.state().waiting.front().map_or(Duration::ZERO, |(_, sealed)| sealed.elapsed())
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
        self.waiting.front().map_or(self.next(), |(segment, _)| segment.position.sequence)
    }

    fn confirm(&mut self, sequence: Sequence) {
        let covered = |(segment, _): &mut (SegmentDescriptor, Instant)| segment.position.sequence <= sequence;
        while let Some((segment, _)) = self.waiting.pop_front_if(covered) {
            self.confirmed_bytes += segment.size_bytes;
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
        let segments = state.waiting.iter().map(|(segment, _)| *segment);
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
            backlog_bytes: state.waiting.iter().map(|(segment, _)| segment.size_bytes).sum(),
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
