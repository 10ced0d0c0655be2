//! Segments that refer to blocks of others: what is taken, what is refused, and what is read.

use std::fs;
use std::path::Path;

use journal_format::segment::{
    BlockPlace, FrameEncoder, Header, PointKind, PointRecord, Reference, SealedSegment, SegmentMeta,
    SegmentSource, SegmentWriter, VolumeKind, VolumeRecord, apply_difference, block_hashes, combined_hash,
    verify_segment,
};
use journal_format::{Epoch, Generation, GroupName, Hash, PointId, Sequence, Timestamp};
use restore::{Selector, Store, StoreWriter, WriterOptions, verify_store};
use transport::{CallAnswer, CallRequest, Inbox, Refusal, RefusalKind};

use crate::history::{open, peer, segment_path, send};

const BLOCK: usize = 4096;
const VOLUME_BYTES: u64 = 1 << 20;

/// A chain of segments, each a point.
pub(crate) struct Chain {
    pub(crate) group: GroupName,
    pub(crate) segments: Vec<SealedSegment>,
}

/// What a segment carries at the beginning of its volume.
pub(crate) enum Carried {
    /// Blocks, whole.
    Whole(Vec<u8>),
    /// So many blocks of sources, with their combined hash.
    Referred(SegmentSource, u32, u32, usize, Hash),
    /// One block as its difference from one of a source: what it holds, what the base holds.
    Different(SegmentSource, u32, u32, Vec<u8>, Vec<u8>),
    /// One block as its difference from one, of which the second block of the first frame is said to be the base.
    Misplaced(SegmentSource, Vec<u8>, Vec<u8>, Vec<u8>),
}

pub(crate) fn noise(seed: u8, blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK / 32)
        .flat_map(|number| Hash::of(&[&[seed][..], &number.to_le_bytes()].concat()).0)
        .collect()
}

impl Chain {
    pub(crate) fn new(group: &str) -> Chain {
        Chain { group: group.parse().unwrap(), segments: Vec::new() }
    }

    /// The segment number `number`, as others refer to it.
    pub(crate) fn source(&self, number: usize) -> SegmentSource {
        let position = self.segments[number].position;
        let (generation, sequence, hash) = (position.generation, position.sequence, position.hash);
        SegmentSource { group: self.group.clone(), generation, sequence, hash }
    }

    pub(crate) fn seal(&mut self, carried: Carried) {
        let (mut writer, mut encoder) = (SegmentWriter::new(), FrameEncoder::new(1));
        match carried {
            Carried::Whole(mut bytes) => {
                let slot = writer.open_frame();
                writer.add_framed(0, 0, bytes.len() as u64, slot, 0);
                let hash = hash_of(&bytes);
                writer.push_frame(slot, &encoder.encode(&mut bytes, hash, Vec::new()), None);
            }
            Carried::Referred(source, frame, offset, blocks, hash) => {
                let place = BlockPlace { source: writer.add_source(source), frame, offset };
                writer.add_reference(0, 0, (blocks * BLOCK) as u64, Reference { place, hash });
            }
            Carried::Different(source, frame, offset, content, base) => {
                let place = BlockPlace { source: writer.add_source(source), frame, offset };
                put_difference(&mut writer, place, &content, &base, hash_of(&base));
            }
            Carried::Misplaced(source, content, base, other) => {
                let place = BlockPlace { source: writer.add_source(source), frame: 0, offset: BLOCK as u32 };
                put_difference(&mut writer, place, &content, &base, hash_of(&other));
            }
        }
        let (header, meta) = (self.header(), self.meta());
        let mut tail = writer.finish_tail(&header, &meta);
        tail.bytes[..tail.header.len()].copy_from_slice(&tail.header);
        verify_segment(&tail.bytes).unwrap();
        self.segments.push(SealedSegment { bytes: tail.bytes, position: tail.position, parent: tail.parent });
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.segments.len() as u64 + 1)
    }

    fn header(&self) -> Header {
        let last = self.segments.last();
        Header {
            group: self.group.clone(),
            generation: Generation(1),
            sequence: last.map_or(Sequence(1), |last| last.position.sequence.next()),
            first_epoch: self.epoch(),
            last_epoch: self.epoch(),
            part: 0,
            more_parts: false,
            sealed_at: Timestamp(1),
            parent: last.map_or(Hash::ZERO, |last| last.position.hash),
        }
    }

    fn meta(&self) -> SegmentMeta {
        let (name, kind) = ("disk0".parse().unwrap(), VolumeKind::Disk);
        let point = PointRecord {
            epoch: self.epoch(),
            time: Timestamp(self.epoch().0 as i64),
            kind: PointKind::Crash,
            bookmark: None,
            definition: Hash::ZERO,
            written_bytes: 0,
        };
        let volume = VolumeRecord { name, kind, size_bytes: VOLUME_BYTES, joining: false };
        SegmentMeta { volumes: vec![volume], point: Some(point), definition: None }
    }

    /// Sends the newest segment.
    fn send(&self, writer: &StoreWriter) -> Result<(), Refusal> {
        send(writer, &self.group, self.segments.last().unwrap()).map(drop)
    }

    /// What the newest point holds at its beginning.
    fn read(&self, folder: &Path, length: usize) -> Vec<u8> {
        let store = Store::open(folder).unwrap();
        let id = PointId { generation: Generation(1), epoch: Epoch(self.segments.len() as u64) };
        let view = open(&store, &self.group, &Selector::Id(id));
        let mut bytes = vec![0xee; length];
        view.volume(&"disk0".parse().unwrap()).unwrap().read_at(0, &mut bytes).unwrap();
        bytes
    }
}

fn put_difference(
    writer: &mut SegmentWriter,
    place: BlockPlace,
    content: &[u8],
    base: &[u8],
    base_hash: Hash,
) {
    let (slot, mut raw) = (writer.open_frame(), content.to_vec());
    apply_difference(&mut raw, base);
    let encoded = FrameEncoder::new(1).encode_difference(&mut raw, hash_of(content), Vec::new());
    writer.add_framed(0, 0, BLOCK as u64, slot, 0);
    writer.push_frame(slot, &encoded, Some((&[place], base_hash)));
}

fn writer_of(folder: &Path, groups: &[&str]) -> StoreWriter {
    let writer = StoreWriter::open(folder, WriterOptions::default()).unwrap();
    for group in groups {
        let group = group.parse().unwrap();
        writer.claim(&peer(), &group, Generation(1)).unwrap();
        writer.open_group(&peer(), &group).unwrap();
    }
    writer
}

pub(crate) fn hash_of(bytes: &[u8]) -> Hash {
    combined_hash(&block_hashes(bytes))
}

/// A store with one segment of eight blocks.
fn begun(folder: &Path) -> (Chain, StoreWriter, Vec<u8>) {
    let (mut chain, writer, bytes) = (Chain::new("demo"), writer_of(folder, &["demo"]), noise(1, 8));
    chain.seal(Carried::Whole(bytes.clone()));
    chain.send(&writer).unwrap();
    (chain, writer, bytes)
}

fn refused(chain: &Chain, writer: &StoreWriter) -> Refusal {
    let refusal = chain.send(writer).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Lacking, "{refusal}");
    assert_eq!(refusal.sequence, Some(chain.segments.last().unwrap().position.sequence));
    refusal
}

#[test]
fn blocks_that_are_referred_to_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let (mut chain, writer, bytes) = begun(folder.path());
    let wanted = bytes[2 * BLOCK..5 * BLOCK].to_vec();
    chain.seal(Carried::Referred(chain.source(0), 0, 2 * BLOCK as u32, 3, hash_of(&wanted)));
    chain.send(&writer).unwrap();
    assert!(chain.read(folder.path(), 3 * BLOCK) == wanted);
    // One sector in the middle.
    assert!(chain.read(folder.path(), 8 * BLOCK)[3 * BLOCK..] == bytes[3 * BLOCK..]);
    drop(writer);
    let report = verify_store(&Store::open(folder.path()).unwrap(), &|_, _| {}).unwrap();
    assert!(report[0].damaged.is_empty(), "{report:?}");
}

#[test]
fn what_is_not_as_named_is_refused_and_the_chain_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (mut chain, writer, bytes) = begun(folder.path());
    let first = || hash_of(&bytes[..BLOCK]);
    let source = chain.source(0);
    let unknown = SegmentSource { hash: Hash([9; 32]), ..source.clone() };
    let nowhere = SegmentSource { sequence: Sequence(7), ..source.clone() };
    let elsewhere = SegmentSource { group: "other".parse().unwrap(), ..source.clone() };
    for carried in [
        Carried::Referred(source.clone(), 0, BLOCK as u32, 1, first()),
        Carried::Referred(source.clone(), 5, 0, 1, first()),
        Carried::Referred(source.clone(), 0, 7 * BLOCK as u32, 2, first()),
        Carried::Referred(unknown, 0, 0, 1, first()),
        Carried::Referred(nowhere, 0, 0, 1, first()),
        Carried::Referred(elsewhere, 0, 0, 1, first()),
        Carried::Different(source.clone(), 0, 0, noise(2, 1), noise(3, 1)),
    ] {
        chain.seal(carried);
        let refusal = refused(&chain, &writer);
        assert!(refusal.reason.contains("refers to blocks of segment"), "{refusal}");
        chain.segments.pop();
    }
    assert_eq!(fs::read_dir(folder.path().join("groups/demo/incoming")).unwrap().count(), 0);
    chain.seal(Carried::Referred(source, 0, 0, 1, first()));
    chain.send(&writer).unwrap();
    assert!(chain.read(folder.path(), BLOCK) == bytes[..BLOCK]);
}

#[test]
fn differences_are_followed_four_steps_down_and_no_further() {
    let folder = tempfile::tempdir().unwrap();
    let (mut chain, writer, bytes) = begun(folder.path());
    let mut base = bytes[BLOCK..2 * BLOCK].to_vec();
    let mut place = (chain.source(0), BLOCK as u32);
    for step in 1..=5 {
        let mut content = base.clone();
        content[step * 100] ^= 0xff;
        chain.seal(Carried::Different(place.0, 0, place.1, content.clone(), base));
        if step == 5 {
            let refusal = refused(&chain, &writer);
            assert!(refusal.reason.contains("too many differences"), "{refusal}");
            break;
        }
        chain.send(&writer).unwrap();
        assert!(chain.read(folder.path(), BLOCK) == content, "step {step}");
        place = (chain.source(step), 0);
        base = content;
    }
}

#[test]
fn nothing_new_rests_on_what_the_disk_has_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (mut chain, writer, bytes) = begun(folder.path());
    let path = segment_path(folder.path(), &chain.segments[0]);
    let mut damaged = chain.segments[0].bytes.clone();
    damaged[1000] ^= 1;
    fs::write(&path, damaged).unwrap();
    // The base of a difference is seen to be damaged whenever that is, a frame that others refer to if it did not arrive just now.
    let base = bytes[..BLOCK].to_vec();
    let mut content = base.clone();
    content[7] ^= 1;
    chain.seal(Carried::Different(chain.source(0), 0, 0, content, base.clone()));
    refused(&chain, &writer);
    chain.segments.pop();
    drop(writer);
    let writer = writer_of(folder.path(), &["demo"]);
    chain.seal(Carried::Referred(chain.source(0), 0, 0, 1, hash_of(&base)));
    refused(&chain, &writer);
    fs::write(&path, &chain.segments[0].bytes).unwrap();
    chain.send(&writer).unwrap();
}

#[test]
fn a_difference_that_does_not_hold_what_it_claims_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut chain, writer, bytes) = begun(folder.path());
    let base = bytes[..BLOCK].to_vec();
    let mut content = base.clone();
    content[7] ^= 1;
    // The place of another block, whose hash is named rightly.
    let other = bytes[BLOCK..2 * BLOCK].to_vec();
    chain.seal(Carried::Misplaced(chain.source(0), content.clone(), base.clone(), other));
    let refusal = refused(&chain, &writer);
    assert!(refusal.reason.contains("a frame's content"), "{refusal}");
    chain.segments.pop();
    chain.seal(Carried::Different(chain.source(0), 0, 0, content.clone(), base));
    chain.send(&writer).unwrap();
    assert!(chain.read(folder.path(), BLOCK) == content);
}

#[test]
fn a_block_list_that_is_gone_or_wrong_is_made_again_or_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut chain, writer, bytes) = begun(folder.path());
    drop(writer);
    let list =
        fs::read_dir(folder.path().join("groups/demo/blocks")).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&list).unwrap();
    let listed = |writer: &StoreWriter| {
        let request = CallRequest::Blocks { seed: false, sequence: Sequence(1), skip: 2 };
        let Ok(CallAnswer::Blocks(blocks)) = writer.call(&chain.group, request) else { panic!("no answer") };
        blocks.iter().map(|block| block.fingerprint).collect::<Vec<_>>()
    };
    let expected: Vec<[u8; 8]> =
        block_hashes(&bytes)[2..].iter().map(|hash| hash.0[..8].try_into().unwrap()).collect();
    fs::remove_file(&list).unwrap();
    assert_eq!(listed(&writer_of(folder.path(), &["demo"])), expected);
    assert_eq!(fs::read(&list).unwrap(), whole);
    fs::write(&list, &whole[..100]).unwrap();
    assert_eq!(listed(&writer_of(folder.path(), &["demo"])), expected);
    let mut wrong = whole.clone();
    wrong[60] ^= 1;
    fs::write(&list, wrong).unwrap();
    chain.seal(Carried::Referred(chain.source(0), 0, 0, 1, hash_of(&bytes[..BLOCK])));
    let writer = writer_of(folder.path(), &["demo"]);
    refused(&chain, &writer);
}

#[test]
fn other_groups_are_referred_to_if_the_same_source_writes_them_and_seeds_always() {
    let folder = tempfile::tempdir().unwrap();
    let (other, writer, bytes) = begun(folder.path());
    drop(writer);
    let first = hash_of(&bytes[..BLOCK]);
    let mut seed = Chain::new("more-seed");
    seed.seal(Carried::Whole(noise(5, 2)));
    let stranger = "somebody".parse().unwrap();
    let writer = writer_of(folder.path(), &["demo", "more"]);
    writer.claim(&stranger, &seed.group, Generation(1)).unwrap();
    seed.send(&writer).unwrap();
    let mut chain = Chain::new("more");
    chain.seal(Carried::Referred(other.source(0), 0, 0, 1, first));
    chain.send(&writer).unwrap();
    chain.seal(Carried::Referred(seed.source(0), 0, BLOCK as u32, 1, hash_of(&noise(5, 2)[BLOCK..])));
    chain.send(&writer).unwrap();
    assert!(chain.read(folder.path(), BLOCK) == noise(5, 2)[BLOCK..]);
    // Another source takes the other group over: it is none of ours any more.
    writer.claim(&stranger, &other.group, Generation(2)).unwrap();
    chain.seal(Carried::Referred(other.source(0), 0, 0, 1, first));
    refused(&chain, &writer);
}

#[test]
fn a_source_that_is_missing_is_named_by_verify() {
    let folder = tempfile::tempdir().unwrap();
    let (other, writer, bytes) = begun(folder.path());
    drop(writer);
    let writer = writer_of(folder.path(), &["demo", "more"]);
    let mut chain = Chain::new("more");
    chain.seal(Carried::Referred(other.source(0), 0, 0, 1, hash_of(&bytes[..BLOCK])));
    chain.send(&writer).unwrap();
    drop(writer);
    fs::remove_file(segment_path(folder.path(), &other.segments[0])).unwrap();
    let report = verify_store(&Store::open(folder.path()).unwrap(), &|_, _| {}).unwrap();
    let more = report.iter().find(|group| group.group == chain.group).unwrap();
    assert_eq!(more.touched.len(), 1);
    assert!(more.damaged[0].problem.contains("it refers to segment 1 of group 'demo'"), "{more:?}");
}
