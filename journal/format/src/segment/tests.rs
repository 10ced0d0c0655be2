use proptest::prelude::*;

use super::*;
use crate::definition::{Firmware, GroupDefinition, VmDefinition};
use crate::{Epoch, FormatError, Generation, Hash, Sequence, Timestamp};

const MIB: u64 = 1 << 20;

fn header() -> Header {
    Header {
        group: "demo".parse().unwrap(),
        generation: Generation(1),
        sequence: Sequence(2),
        first_epoch: Epoch(5),
        last_epoch: Epoch(7),
        part: 0,
        more_parts: false,
        sealed_at: Timestamp(1_700_000_000_000_000_000),
        parent: Hash([7; 32]),
    }
}

fn definition() -> GroupDefinition {
    let vm = VmDefinition {
        name: "db".into(),
        machine: "pc-q35-10.0".into(),
        accel: "tcg".into(),
        cpu: "qemu64".into(),
        cpus: 1,
        memory_bytes: 256 * MIB,
        uuid: None,
        firmware: Firmware::Bios {},
        disks: Vec::new(),
        nics: Vec::new(),
        ready: None,
    };
    GroupDefinition { version: 1, vms: vec![vm] }
}

fn meta() -> SegmentMeta {
    let volume = |name: &str, size_bytes| VolumeRecord {
        name: name.parse().unwrap(),
        kind: VolumeKind::Disk,
        size_bytes,
        joining: false,
    };
    SegmentMeta {
        volumes: vec![volume("disk0", 64 * MIB), volume("disk1", 8 * MIB)],
        point: Some(PointRecord {
            epoch: Epoch(7),
            time: Timestamp(1_700_000_000_000_000_001),
            kind: PointKind::Crash,
            bookmark: Some("before-upgrade".parse().unwrap()),
            definition: definition().hash(),
            written_bytes: 12345,
        }),
        definition: Some(definition()),
    }
}

#[test]
fn a_joining_volume_is_read_as_one_and_is_not_in_the_point() {
    let mut meta = meta();
    meta.volumes[1].joining = true;
    let mut builder = SegmentBuilder::new(BuildOptions::default());
    builder.add_data(1, 0, &[1; 512]);
    let sealed = builder.finish(&header(), &meta);
    let read = verify_segment(&sealed.bytes).unwrap().meta;
    assert_eq!(read, meta);
    let names: Vec<&str> = read.point_volumes().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["disk0"]);
}

fn small_segment() -> SealedSegment {
    let mut builder = SegmentBuilder::new(BuildOptions::default());
    builder.add_data(0, 512, &[1; 1024]);
    builder.add_data(0, 4096, &[0; 8192]);
    builder.add_data(0, 16384, &b"0123456789abcdef".repeat(256));
    builder.add_zero(1, 0, 4096);
    builder.finish(&header(), &meta())
}

/// Rebuilds the ranges that an index describes as (volume, offset, bytes), one entry for each sector.
fn sectors(bytes: &[u8]) -> Vec<(u16, u64, Vec<u8>)> {
    let index = verify_segment(bytes).unwrap();
    let mut out = Vec::new();
    for extent in &index.extents {
        let content = match extent.content {
            ExtentContent::Zero => vec![0; extent.length as usize],
            ExtentContent::Frame { frame, offset } => {
                let frame = &index.frames[frame as usize];
                let start = frame.offset as usize;
                let stored = &bytes[start..start + frame.stored_bytes as usize];
                let mut decoder = FrameDecoder::default();
                let (raw, _) = frame.decode_hashed(&mut decoder, stored).unwrap();
                raw[offset as usize..][..extent.length as usize].to_vec()
            }
            ExtentContent::Reference(_) => unreachable!("the builder refers to nothing"),
        };
        for (number, sector) in content.chunks(512).enumerate() {
            out.push((extent.volume, extent.offset + number as u64 * 512, sector.to_vec()));
        }
    }
    out
}

#[test]
fn a_sealed_segment_is_read_back() {
    let segment = small_segment();
    let index = verify_segment(&segment.bytes).unwrap();
    assert_eq!(index.header, header());
    assert_eq!(index.meta, meta());
    assert_eq!(index.position(), segment.position);
    let zero = |volume, offset, length| Extent { volume, offset, length, content: ExtentContent::Zero };
    let data = |volume, offset, length, at| {
        let content = ExtentContent::Frame { frame: 0, offset: at };
        Extent { volume, offset, length, content }
    };
    let expected = [data(0, 512, 1024, 0), zero(0, 4096, 8192), data(0, 16384, 4096, 1024), zero(1, 0, 4096)];
    assert_eq!(index.extents, expected);
}

#[test]
fn v3_segment_is_parsed() {
    let index = verify_segment(include_bytes!("tests/v3.seg")).unwrap();
    let made = verify_segment(&referring_segment()).unwrap();
    assert_eq!((index.header, index.meta), (made.header, made.meta));
    assert_eq!((index.frames, index.extents), (made.frames, made.extents));
    assert_eq!((index.sources, index.references, index.bases), (made.sources, made.references, made.bases));
}

#[test]
fn the_document_states_the_constants_of_the_code() {
    let document = include_str!("../../FORMAT.md");
    let statements = [
        format!("version {FORMAT_VERSION}"),
        format!("header, {HEADER_BYTES} bytes"),
        format!("trailer, {TRAILER_BYTES} bytes"),
        format!("segment: {MAX_SEGMENT_BYTES} bytes"),
        format!("frame before compression: {MAX_FRAME_RAW_BYTES} bytes"),
        format!("index before compression: {MAX_INDEX_RAW_BYTES} bytes"),
        format!("meta section: {MAX_META_BYTES} bytes"),
        format!("VM definition: {MAX_DEFINITION_BYTES} bytes"),
        format!("at most {DIFFERENCE_STEPS_MAX} steps"),
        format!("frame entry, {} bytes", frame::FRAME_ENTRY_BYTES),
        format!("extent entry, {} bytes", index::EXTENT_ENTRY_BYTES),
    ];
    for statement in statements {
        assert!(document.contains(&statement), "FORMAT.md does not state: {statement}");
    }
}

#[test]
fn every_bit_flip_is_detected() {
    let bytes = referring_segment();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(verify_segment(&damaged).is_err(), "flip of bit {bit} was not noticed");
    }
}

#[test]
fn every_truncation_and_extension_is_detected() {
    let mut bytes = small_segment().bytes;
    for length in 0..bytes.len() {
        assert!(verify_segment(&bytes[..length]).is_err(), "truncation to {length} was not noticed");
    }
    bytes.push(0);
    assert!(verify_segment(&bytes).is_err());
}

#[test]
fn another_version_is_refused_by_name() {
    let mut bytes = small_segment().bytes;
    bytes[8] = 9;
    let expected = FormatError::Version { found: 9, supported: 3 };
    assert_eq!(Header::decode(&bytes), Err(expected));
}

#[test]
fn a_part_that_others_follow_completes_no_point() {
    let header = Header { more_parts: true, ..header() };
    let segment = SegmentBuilder::new(BuildOptions::default()).finish(&header, &meta());
    assert!(matches!(verify_segment(&segment.bytes), Err(FormatError::Rule { .. })));
}

#[test]
fn an_extent_outside_its_volume_is_refused() {
    let mut builder = SegmentBuilder::new(BuildOptions::default());
    builder.add_data(1, 8 * MIB - 512, &[1; 1024]);
    let segment = builder.finish(&header(), &meta());
    assert!(matches!(verify_segment(&segment.bytes), Err(FormatError::Rule { .. })));
}

#[test]
fn a_frame_that_claims_more_than_it_holds_is_refused() {
    let stored = zstd::bulk::compress(&[1; 4096], 1).unwrap();
    let entry = FrameEntry {
        offset: 0,
        stored_bytes: stored.len() as u32,
        raw_bytes: 1 << 20,
        codec: FrameCodec::Zstd,
        kind: FrameKind::Plain,
        stored_hash: Hash::of(&stored),
        raw_hash: Hash::ZERO,
    };
    let decoded = entry.decode_hashed(&mut FrameDecoder::default(), &stored).map(drop);
    assert_eq!(decoded, Err(FormatError::Decompress { raw_bytes: 1 << 20 }));
}

/// Ranges in units of sectors: (gap to the one before, length, fill; fill 0 is a range of zeroes).
fn ranges() -> impl Strategy<Value = Vec<(u64, usize, u8)>> {
    prop::collection::vec((0_u64..40, 1_usize..200, 0_u8..4), 0..40)
}

proptest! {
    #[test]
    fn any_ranges_are_read_back(ranges in ranges(), level in -5..4) {
        let options = BuildOptions { level, frame_bytes: 64 << 10 };
        let mut builder = SegmentBuilder::new(options);
        let (mut offset, mut expected) = (0, Vec::new());
        for (number, &(gap, sectors, fill)) in ranges.iter().enumerate() {
            offset += gap * 512;
            let data: Vec<u8> = (0..sectors * 512).map(|at| fill.wrapping_mul((at / 512 + number) as u8)).collect();
            builder.add_data(0, offset, &data);
            for (sector, bytes) in data.chunks(512).enumerate() {
                expected.push((0, offset + sector as u64 * 512, bytes.to_vec()));
            }
            offset += data.len() as u64;
        }
        let segment = builder.finish(&header(), &meta());
        prop_assert_eq!(sectors(&segment.bytes), expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(verify_segment(&bytes).is_err());
    }

    #[test]
    fn rehashed_damage_never_panics(at in 0_usize..160, value in any::<u8>()) {
        let mut bytes = small_segment().bytes;
        bytes[at] = value;
        let hash = Hash::of(&bytes[..160]);
        bytes[160..192].copy_from_slice(&hash.0);
        let trailer = bytes.len() - TRAILER_BYTES;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes[..HEADER_BYTES]).update(&bytes[trailer..trailer + 128]);
        let hash = *hasher.finalize().as_bytes();
        bytes[trailer + 128..].copy_from_slice(&hash);
        // Whatever the outcome, it is an answer and not a panic.
        drop(verify_segment(&bytes));
    }
}

fn place(source: u32, frame: u32, offset: u32) -> BlockPlace {
    BlockPlace { source, frame, offset }
}

fn source(sequence: u64) -> SegmentSource {
    SegmentSource {
        group: "demo".parse().unwrap(),
        generation: Generation(1),
        sequence: Sequence(sequence),
        hash: Hash([sequence as u8; 32]),
    }
}

/// A writer with a plain frame of two blocks, a difference of two blocks and a reference to three.
fn referring(take: &mut dyn FnMut(&mut SegmentWriter)) -> SegmentWriter {
    let (mut writer, mut encoder) = (SegmentWriter::new(), FrameEncoder::new(1));
    let mut plain_frame = vec![2; 8192];
    let raw_hash = combined_hash(&block_hashes(&plain_frame));
    let plain_frame = encoder.encode(&mut plain_frame, raw_hash, Vec::new());
    let difference_frame = encoder.encode_difference(&mut vec![1; 8192], Hash([7; 32]), Vec::new());
    let (plain, difference) = (writer.open_frame(), writer.open_frame());
    writer.add_framed(0, 0, 4096, difference, 4096);
    writer.add_framed(0, 4096, 8192, plain, 0);
    assert_eq!(writer.add_source(source(1)), 0);
    assert_eq!(writer.add_source(source(2)), 1);
    writer.add_reference(0, 65536, 12288, Reference { place: place(1, 7, 8192), hash: Hash([9; 32]) });
    // The later slot is ready first: numbers are those of the frames' order in the file.
    let bases = [place(0, 3, 0), place(1, 0, 4096)];
    assert_eq!(writer.push_frame(difference, &difference_frame, Some((&bases, Hash([8; 32])))), 0);
    take(&mut writer);
    assert_eq!(writer.push_frame(plain, &plain_frame, None), 1);
    take(&mut writer);
    writer
}

fn referring_segment() -> Vec<u8> {
    let mut tail = referring(&mut |_| {}).finish_tail(&header(), &meta());
    tail.bytes[..HEADER_BYTES].copy_from_slice(&tail.header);
    tail.bytes
}

#[test]
fn references_and_differences_are_read_back() {
    let index = verify_segment(&referring_segment()).unwrap();
    assert_eq!(index.sources, [source(1), source(2)]);
    assert_eq!(index.references, [Reference { place: place(1, 7, 8192), hash: Hash([9; 32]) }]);
    assert_eq!(index.bases, [place(0, 3, 0), place(1, 0, 4096)]);
    let difference = FrameKind::Difference { first_base: 0, bases_hash: Hash([8; 32]) };
    assert_eq!(
        index.frames.iter().map(|frame| frame.kind).collect::<Vec<_>>(),
        [difference, FrameKind::Plain]
    );
    let contents: Vec<ExtentContent> = index.extents.iter().map(|extent| extent.content).collect();
    let framed = |frame, offset| ExtentContent::Frame { frame, offset };
    assert_eq!(contents, [framed(0, 4096), framed(1, 0), ExtentContent::Reference(0)]);
}

#[test]
fn tables_that_do_not_fit_each_other_are_refused() {
    let index = verify_segment(&referring_segment()).unwrap();
    let whole = index::Tables {
        frames: index.frames,
        extents: index.extents,
        sources: index.sources,
        references: index.references,
        bases: index.bases,
    };
    assert_eq!(index::Tables::decode(&whole.encode(), &index.trailer).unwrap(), whole);
    type Spoil = fn(&mut index::Tables);
    let spoils: [Spoil; 6] = [
        |tables| tables.sources.truncate(1),
        |tables| tables.references.clear(),
        |tables| tables.bases.truncate(1),
        |tables| tables.bases.push(tables.bases[0]),
        |tables| tables.extents[2].length = 512,
        |tables| tables.references[0].place.offset = 512,
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        let mut spoiled = whole.clone();
        spoil(&mut spoiled);
        let refused = index::Tables::decode(&spoiled.encode(), &index.trailer);
        assert!(matches!(refused, Err(FormatError::Rule { .. })), "spoil {number} was taken");
    }
}

#[test]
fn a_segment_that_is_taken_in_pieces_has_the_same_bytes() {
    let whole = referring(&mut |_| {}).finish_tail(&header(), &meta());
    let mut taken = Vec::new();
    let tail = referring(&mut |writer| {
        taken.extend_from_slice(writer.finished());
        writer.take_finished();
    })
    .finish_tail(&header(), &meta());
    taken.extend_from_slice(&tail.bytes);
    assert_eq!(tail.size_bytes, taken.len() as u64);
    assert_eq!((tail.position, tail.parent), (whole.position, whole.parent));
    assert!(taken == whole.bytes);
}

#[test]
fn the_content_of_a_difference_is_checked_with_its_bases_applied() {
    let index = verify_segment(&referring_segment()).unwrap();
    let difference =
        FrameEntry { raw_hash: combined_hash(&block_hashes(&[5; 8192])), ..index.frames[0].clone() };
    let stored = &referring_segment()[difference.offset as usize..][..difference.stored_bytes as usize];
    let mut decoder = FrameDecoder::default();
    let (raw, hashes) = difference.decode_hashed(&mut decoder, stored).unwrap();
    assert_eq!((raw, hashes), (&[1; 8192][..], Vec::new()));
    assert_eq!(difference.check_content(&[5; 8192]).unwrap(), [Hash::of(&[5; 4096]); 2]);
    assert_eq!(difference.check_content(raw), Err(FormatError::Hash { part: "a frame's content" }));
}

#[test]
fn a_frame_that_is_stored_as_it_is_has_one_hash() {
    let raw = [3; 6144];
    let raw_hash = combined_hash(&block_hashes(&raw));
    let (raw_bytes, codec, kind) = (6144, FrameCodec::Stored, FrameKind::Plain);
    let entry = FrameEntry {
        offset: 0,
        stored_bytes: raw_bytes,
        raw_bytes,
        codec,
        kind,
        stored_hash: raw_hash,
        raw_hash,
    };
    assert_eq!(entry.verify_stored(&raw), Ok(()));
    assert_eq!(entry.decode_hashed(&mut FrameDecoder::default(), &raw).unwrap().1.len(), 2);
    let damaged = [4; 6144];
    let refused = Err(FormatError::Hash { part: "a frame" });
    assert_eq!(entry.verify_stored(&damaged), refused);
    assert_eq!(entry.decode(&damaged).map(drop), refused);
    let mut bytes = Vec::new();
    let two = FrameEntry { stored_hash: Hash::of(&raw), ..entry };
    two.encode(&mut bytes);
    assert!(matches!(FrameEntry::decode_entry(&bytes, 0, |_| None), Err(FormatError::Rule { .. })));
}

#[test]
fn frames_that_gain_nothing_are_stored_and_those_behind_them_that_gain_are_not() {
    let mut state = 1_u64;
    let mut noise = |bytes: usize| -> Vec<u8> {
        let byte = |_| {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            (state >> 56) as u8
        };
        (0..bytes).map(byte).collect()
    };
    let mut encoder = FrameEncoder::new(3);
    let mut buffer = Vec::new();
    for fill in [None, None, Some(7), None, Some(8), Some(9)] {
        let mut raw = fill.map_or_else(|| noise(MIB as usize), |fill| vec![fill; MIB as usize]);
        let (content, raw_hash) = (raw.clone(), combined_hash(&block_hashes(&raw)));
        let frame = encoder.encode(&mut raw, raw_hash, buffer);
        assert_eq!(frame.codec, if fill.is_some() { FrameCodec::Zstd } else { FrameCodec::Stored });
        let mut writer = SegmentWriter::new();
        let slot = writer.open_frame();
        writer.push_frame(slot, &frame, None);
        writer.add_framed(0, 0, MIB, slot, 0);
        let tail = writer.finish_tail(&header(), &meta());
        let mut bytes = tail.bytes;
        bytes[..HEADER_BYTES].copy_from_slice(&tail.header);
        let index = verify_segment(&bytes).unwrap();
        assert_eq!(index.frames[0].decode(frame.stored()).unwrap(), content);
        buffer = frame.into_buffer();
    }
}
