//! Segment histories with a model of what every point holds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use journal_format::definition::GroupDefinition;
use journal_format::segment::{
    BuildOptions, Header, PointKind, PointRecord, SealedSegment, SegmentBuilder, SegmentMeta, VolumeKind,
    VolumeRecord,
};
use journal_format::{
    Epoch, Generation, GroupName, Hash, PointId, Position, Sequence, Timestamp, VolumeName,
};
use restore::{PointView, Selector, Store, StoreWriter, ViewOptions, WriterOptions};
use std::sync::Arc;
use transport::{Begin, Inbox, PeerName, Refusal, SegmentDescriptor};

pub(crate) const MIB: usize = 1 << 20;
const SECTOR: usize = 512;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to choose writes.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// One time in `times`.
    fn chance(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

pub(crate) struct History {
    pub(crate) group: GroupName,
    pub(crate) generation: u64,
    pub(crate) volumes: Vec<(VolumeName, Vec<u8>)>,
    pub(crate) segments: Vec<SealedSegment>,
    /// Each point with the bytes of its volumes.
    pub(crate) points: Vec<(PointId, Vec<Vec<u8>>)>,
    pub(crate) random: Random,
    pub(crate) definition: Option<GroupDefinition>,
    /// Volumes that points do not hold yet.
    pub(crate) joining: Vec<VolumeName>,
    epoch: u64,
}

impl History {
    pub(crate) fn new(seed: u64) -> Self {
        println!("seed {seed}");
        let volumes =
            vec![("root".parse().unwrap(), vec![0; 2 * MIB]), ("data".parse().unwrap(), vec![0; MIB])];
        History {
            group: "demo".parse().unwrap(),
            generation: 1,
            volumes,
            segments: Vec::new(),
            points: Vec::new(),
            random: Random::new(seed),
            definition: None,
            joining: Vec::new(),
            epoch: 0,
        }
    }

    /// Goes on behind the first point of another history that needs at least so many segments. Answers how many those are.
    pub(crate) fn continue_from(&mut self, other: &History, at_least: usize) -> usize {
        let epoch_of = |number: usize| other.segments.get(number).map(|segment| segment.position.epoch);
        let ends_epoch = |&number: &usize| epoch_of(number) != epoch_of(number - 1);
        let segments = (at_least..).find(ends_epoch).unwrap();
        self.segments = other.segments[..segments].to_vec();
        let epoch = self.segments.last().unwrap().position.epoch;
        self.epoch = other.segments.last().unwrap().position.epoch.0;
        self.points = other.points.iter().filter(|(id, _)| id.epoch <= epoch).cloned().collect();
        for (volume, bytes) in self.volumes.iter_mut().zip(&self.points.last().unwrap().1) {
            volume.1.clone_from(bytes);
        }
        segments
    }

    /// A history with so many points, each completed by one segment or two.
    pub(crate) fn with_points(seed: u64, points: usize) -> Self {
        let mut history = History::new(seed);
        (0..points).for_each(|_| history.cut());
        history
    }

    /// Writes at random and cuts a point.
    pub(crate) fn cut(&mut self) {
        self.epoch += 1;
        if self.random.chance(4) {
            self.write_and_seal(0, true);
            self.write_and_seal(1, false);
        } else {
            self.write_and_seal(0, false);
        }
        self.end_epoch();
    }

    /// Writes whole sectors to a volume and cuts a point.
    pub(crate) fn cut_with(&mut self, volume: usize, sector: usize, bytes: &[u8]) {
        self.epoch += 1;
        self.volumes[volume].1[sector * SECTOR..][..bytes.len()].copy_from_slice(bytes);
        let mut dirty: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.volumes.len()];
        dirty[volume].extend(sector..sector + bytes.len() / SECTOR);
        self.seal(0, false, &dirty);
        self.end_epoch();
    }

    /// Remembers what the point holds.
    fn end_epoch(&mut self) {
        let id = PointId { generation: Generation(self.generation), epoch: Epoch(self.epoch) };
        self.points.push((id, self.volumes.iter().map(|(_, bytes)| bytes.clone()).collect()));
    }

    fn write_and_seal(&mut self, part: u16, more_parts: bool) {
        let writes = self.random.below(12);
        let mut dirty: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.volumes.len()];
        for _ in 0..writes {
            let volume = self.random.below(self.volumes.len());
            let sectors = self.volumes[volume].1.len() / SECTOR;
            let longest = if self.random.chance(5) { sectors / 2 } else { 24 };
            let length = 1 + self.random.below(longest);
            let start = self.random.below(sectors - length.min(sectors) + 1);
            let zero = self.random.chance(4);
            for sector in start..(start + length).min(sectors) {
                dirty[volume].insert(sector);
                let value = if zero { 0 } else { self.random.next() };
                let target = &mut self.volumes[volume].1[sector * SECTOR..(sector + 1) * SECTOR];
                target.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&value.to_le_bytes()));
            }
        }
        self.seal(part, more_parts, &dirty);
    }

    fn seal(&mut self, part: u16, more_parts: bool, dirty: &[BTreeSet<usize>]) {
        let mut builder = SegmentBuilder::new(BuildOptions { level: 1, frame_bytes: 64 << 10 });
        for (volume, sectors) in dirty.iter().enumerate() {
            let mut sectors = sectors.iter().copied().peekable();
            while let Some(start) = sectors.next() {
                let mut end = start + 1;
                while sectors.next_if_eq(&end).is_some() {
                    end += 1;
                }
                let bytes = &self.volumes[volume].1[start * SECTOR..end * SECTOR];
                builder.add_data(volume as u16, (start * SECTOR) as u64, bytes);
            }
        }
        let header = self.header(part, more_parts);
        let meta = self.meta(more_parts);
        self.segments.push(builder.finish(&header, &meta));
    }

    fn header(&self, part: u16, more_parts: bool) -> Header {
        let last = self.segments.last();
        Header {
            group: self.group.clone(),
            generation: Generation(self.generation),
            sequence: last.map_or(Sequence(1), |last| last.position.sequence.next()),
            first_epoch: Epoch(self.epoch),
            last_epoch: Epoch(self.epoch),
            part,
            more_parts,
            sealed_at: time_of(self.epoch),
            parent: last.map_or(Hash::ZERO, |last| last.position.hash),
        }
    }

    fn meta(&self, more_parts: bool) -> SegmentMeta {
        let volume = |(name, bytes): &(VolumeName, Vec<u8>)| VolumeRecord {
            name: name.clone(),
            kind: VolumeKind::Disk,
            size_bytes: bytes.len() as u64,
            joining: self.joining.contains(name),
        };
        let point = PointRecord {
            epoch: Epoch(self.epoch),
            time: time_of(self.epoch),
            kind: PointKind::Crash,
            bookmark: self.epoch.is_multiple_of(3).then(|| format!("mark-{}", self.epoch).parse().unwrap()),
            definition: self.definition.as_ref().map_or(Hash::ZERO, GroupDefinition::hash),
            written_bytes: self.epoch * 100,
        };
        SegmentMeta {
            volumes: self.volumes.iter().map(volume).collect(),
            point: (!more_parts).then_some(point),
            definition: self.definition.clone().filter(|_| self.segments.is_empty()),
        }
    }

    pub(crate) fn head(&self) -> Option<Position> {
        self.segments.last().map(|segment| segment.position)
    }

    pub(crate) fn ids(&self) -> Vec<PointId> {
        self.points.iter().map(|(id, _)| *id).collect()
    }

    /// Checks that every point that the store lists is one of the model's and holds the same bytes.
    pub(crate) fn assert_points(&self, store: &Store) {
        for point in store.points(&self.group).unwrap() {
            let view = open(store, &self.group, &Selector::Id(point.id));
            assert_eq!(contents(&view), self.expected(point.id), "point {}", point.id);
        }
    }

    pub(crate) fn expected(&self, id: PointId) -> Vec<Vec<u8>> {
        self.points.iter().find(|(other, _)| *other == id).unwrap().1.clone()
    }
}

pub(crate) fn time_of(epoch: u64) -> Timestamp {
    Timestamp(1_700_000_000_000_000_000 + epoch as i64 * 1_000_000_000)
}

pub(crate) fn descriptor(segment: &SealedSegment) -> SegmentDescriptor {
    SegmentDescriptor {
        position: segment.position,
        parent: segment.parent,
        size_bytes: segment.bytes.len() as u64,
    }
}

/// Sends a whole segment, as the transport does.
pub(crate) fn send(
    writer: &StoreWriter,
    group: &GroupName,
    segment: &SealedSegment,
) -> Result<Option<Position>, Refusal> {
    send_bytes(writer, group, &descriptor(segment), &segment.bytes)
}

pub(crate) fn send_bytes(
    writer: &StoreWriter,
    group: &GroupName,
    descriptor: &SegmentDescriptor,
    bytes: &[u8],
) -> Result<Option<Position>, Refusal> {
    match writer.begin(group, descriptor)? {
        Begin::Have(head) => Ok(head),
        Begin::Receive(mut sink) => {
            let chunks = bytes.chunks(10_000).enumerate();
            // Pieces come in any order.
            chunks.rev().try_for_each(|(number, chunk)| sink.write_at(number as u64 * 10_000, chunk))?;
            sink.commit()
        }
    }
}

pub(crate) fn open_writer(root: &Path, group: &GroupName) -> StoreWriter {
    let writer = StoreWriter::open(root, WriterOptions::default()).unwrap();
    writer.open_group(&peer(), group).unwrap();
    writer
}

pub(crate) fn peer() -> PeerName {
    "site-a".parse().unwrap()
}

/// A store with all segments of a history, closed.
pub(crate) fn filled(root: &Path, history: &History) {
    let writer = open_writer(root, &history.group);
    for segment in &history.segments {
        assert_eq!(send(&writer, &history.group, segment).unwrap(), Some(segment.position));
    }
}

pub(crate) fn open(store: &Store, group: &GroupName, selector: &Selector) -> Arc<PointView> {
    let point = store.select(group, selector).unwrap();
    store.open_point(&point, &ViewOptions::default()).unwrap()
}

/// The bytes of all volumes.
pub(crate) fn contents(view: &Arc<PointView>) -> Vec<Vec<u8>> {
    let read = |name: &VolumeName| {
        let volume = view.volume(name).unwrap();
        let mut bytes = vec![0xee; volume.size_bytes() as usize];
        volume.read_at(0, &mut bytes).unwrap();
        bytes
    };
    view.volumes().iter().map(|volume| read(&volume.name)).collect()
}

pub(crate) fn ids(store: &Store, group: &GroupName) -> Vec<PointId> {
    store.points(group).unwrap().iter().map(|point| point.id).collect()
}

pub(crate) fn segment_path(root: &Path, segment: &SealedSegment) -> PathBuf {
    let (generation, sequence) = (segment.position.generation.0, segment.position.sequence.0);
    root.join(format!("groups/demo/segments/g{generation:010}-s{sequence:020}.seg"))
}

pub(crate) fn files_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
