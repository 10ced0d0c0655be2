//! Who may write, and what a source is told that asks what is here.

use journal_format::{Generation, Hash};
use restore::{StoreWriter, WriterOptions};
use transport::{Begin, CallAnswer, CallRequest, Inbox, PeerName, RefusalKind, RegionAnswer};

use super::history::{History, descriptor, open_writer, peer, send};

fn other() -> PeerName {
    "site-b".parse().unwrap()
}

fn claim(writer: &StoreWriter, history: &History, peer: &PeerName, generation: u64) -> Option<RefusalKind> {
    writer.claim(peer, &history.group, Generation(generation)).err().map(|refusal| refusal.kind)
}

#[test]
fn a_generation_has_one_writer_and_a_newer_one_fences_it_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(20, 1);
    let writer = open_writer(folder.path(), &history.group);
    assert_eq!(claim(&writer, &history, &peer(), 1), None);
    assert_eq!(claim(&writer, &history, &peer(), 1), None);
    assert_eq!(claim(&writer, &history, &other(), 1), Some(RefusalKind::Fenced));
    assert_eq!(claim(&writer, &history, &other(), 2), None);
    assert_eq!(claim(&writer, &history, &peer(), 1), Some(RefusalKind::Fenced));
    drop(writer);
    let again = StoreWriter::open(folder.path(), WriterOptions::default()).unwrap();
    assert_eq!(claim(&again, &history, &peer(), 2), Some(RefusalKind::Fenced));
    assert_eq!(claim(&again, &history, &other(), 2), None);
    assert_eq!(claim(&again, &history, &peer(), 3), None);
}

#[test]
fn what_was_begun_before_a_takeover_is_not_attached_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(21, 1);
    let writer = open_writer(folder.path(), &history.group);
    assert_eq!(claim(&writer, &history, &peer(), 1), None);
    let segment = &history.segments[0];
    let Begin::Receive(mut sink) = writer.begin(&history.group, &descriptor(segment)).unwrap() else {
        panic!("the segment is not here")
    };
    sink.write_at(0, &segment.bytes).unwrap();
    assert_eq!(claim(&writer, &history, &other(), 2), None);
    assert_eq!(sink.commit().unwrap_err().kind, RefusalKind::Fenced);
    assert_eq!(writer.head(&history.group), None);
    // The new writer sends what it holds of the older generation.
    assert_eq!(send(&writer, &history.group, segment).unwrap(), Some(segment.position));
}

fn compare(
    writer: &StoreWriter,
    history: &History,
    volume: usize,
    offset: u64,
    bytes: &[u8],
) -> Vec<RegionAnswer> {
    let (name, content) = &history.volumes[volume];
    let request = CallRequest::Compare {
        volume: name.clone(),
        offset,
        regions: bytes.chunks(65536).map(|region| Hash::of(region).0).collect(),
        size_bytes: content.len() as u64,
    };
    match writer.call(&history.group, request).unwrap() {
        CallAnswer::Compared { regions, .. } => regions,
        answer => panic!("{answer:?}"),
    }
}

#[test]
fn a_comparison_names_what_differs_at_the_head() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(22, 3);
    let writer = open_writer(folder.path(), &history.group);
    for segment in &history.segments {
        send(&writer, &history.group, segment).unwrap();
    }
    let mut content = history.volumes[0].1.clone();
    let equal = compare(&writer, &history, 0, 0, &content[..4 * 65536]);
    assert_eq!(equal, vec![RegionAnswer::Equal; 4]);
    let held = Hash::of(&content[65536 + 8192..][..4096]).0;
    content[65536 + 8192] ^= 1;
    let answers = compare(&writer, &history, 0, 0, &content[..4 * 65536]);
    let RegionAnswer::Blocks(blocks) = &answers[1] else { panic!("{answers:?}") };
    assert_eq!((blocks.len(), blocks[2]), (16, held));
    assert!(
        answers.iter().enumerate().all(|(number, answer)| (number == 1) != (*answer == RegionAnswer::Equal))
    );
    assert!(writer.received(&history.group).compared_bytes >= 8 * 65536);
}

#[test]
fn what_the_store_does_not_know_reads_as_zeroes() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::new(23);
    let writer = open_writer(folder.path(), &history.group);
    assert_eq!(compare(&writer, &history, 1, 65536, &[0; 65536]), [RegionAnswer::Equal]);
    let RegionAnswer::Blocks(blocks) = &compare(&writer, &history, 1, 0, &[1; 65536])[0] else { panic!() };
    assert!(blocks.iter().all(|block| *block == Hash::of(&[0; 4096]).0));
}

#[test]
fn a_damaged_frame_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(24, 1);
    let writer = open_writer(folder.path(), &history.group);
    for segment in &history.segments {
        send(&writer, &history.group, segment).unwrap();
    }
    for segment in &history.segments {
        let path = super::history::segment_path(folder.path(), segment);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[200] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let content = &history.volumes[0].1;
    let answers: Vec<RegionAnswer> = content
        .chunks(64 * 65536)
        .enumerate()
        .flat_map(|(number, part)| compare(&writer, &history, 0, number as u64 * 64 * 65536, part))
        .collect();
    let lost = answers
        .iter()
        .any(|answer| matches!(answer, RegionAnswer::Blocks(blocks) if blocks.contains(&[0; 32])));
    assert!(lost, "nothing was found to be damaged");
}

#[test]
fn a_comparison_that_is_not_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::new(25);
    let writer = open_writer(folder.path(), &history.group);
    let ask = |offset: u64, regions: usize| {
        let volume = history.volumes[1].0.clone();
        let size_bytes = history.volumes[1].1.len() as u64;
        let request = CallRequest::Compare { volume, offset, regions: vec![[0; 32]; regions], size_bytes };
        writer.call(&history.group, request).err().map(|refusal| refusal.kind)
    };
    assert_eq!(ask(512, 1), Some(RefusalKind::Invalid));
    assert_eq!(ask(0, 65), Some(RefusalKind::Invalid));
    assert_eq!(ask(16 * 65536, 1), Some(RefusalKind::Invalid));
    assert_eq!(ask(u64::MAX - 65535, 2), Some(RefusalKind::Invalid));
    assert_eq!(ask(15 * 65536, 1), None);
}
