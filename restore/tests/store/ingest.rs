//! Segments arriving.

use journal_format::segment::SealedSegment;
use journal_format::{Hash, Sequence};
use restore::{Store, StoreError, StoreWriter, WriterOptions};
use transport::{Begin, Inbox, RefusalKind, SegmentDescriptor};

use crate::history::{
    History, descriptor, files_in, filled, ids, open_writer, peer, segment_path, send, send_bytes,
};

#[test]
fn segments_in_order_become_points() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(1, 12);
    filled(folder.path(), &history);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(ids(&store, &history.group), history.ids());
    history.assert_points(&store);
    let summary = store.group(&history.group).unwrap();
    assert_eq!(summary.head, history.head());
    let stored: u64 = history.segments.iter().map(|segment| segment.bytes.len() as u64).sum();
    assert_eq!(summary.stored_bytes, stored);
    let points = store.points(&history.group).unwrap();
    assert_eq!(points.iter().map(|point| point.stored_bytes).sum::<u64>(), stored);
}

#[test]
fn segments_in_any_order_become_the_same_points() {
    for seed in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::with_points(100 + seed, 10);
        let writer = open_writer(folder.path(), &history.group);
        let mut order: Vec<usize> = (0..history.segments.len()).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, history.random.below(at + 1));
        }
        let mut arrived = vec![false; order.len()];
        for number in order {
            arrived[number] = true;
            let contiguous = arrived.iter().take_while(|&&here| here).count();
            let expected = contiguous.checked_sub(1).map(|last| history.segments[last].position);
            let head = send(&writer, &history.group, &history.segments[number]).unwrap();
            assert_eq!(head, expected, "a receipt names the contiguous head only");
            assert_eq!(writer.head(&history.group), expected);
        }
        drop(writer);
        assert_eq!(files_in(&folder.path().join("groups/demo/incoming")), [""; 0]);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(ids(&store, &history.group), history.ids());
        history.assert_points(&store);
    }
}

#[test]
fn segments_that_arrive_at_once_are_all_attached() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(7, 24);
    let writer = open_writer(folder.path(), &history.group);
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let (writer, history) = (&writer, &history);
            scope.spawn(move || {
                for segment in history.segments.iter().skip(lane).step_by(4) {
                    send(writer, &history.group, segment).unwrap();
                }
            });
        }
    });
    assert_eq!(writer.head(&history.group), history.head());
    history.assert_points(&Store::open(folder.path()).unwrap());
}

#[test]
fn a_segment_that_is_here_is_not_taken_again() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(2, 5);
    filled(folder.path(), &history);
    let writer = open_writer(folder.path(), &history.group);
    for segment in &history.segments {
        let begin = writer.begin(&history.group, &descriptor(segment)).unwrap();
        assert!(matches!(begin, Begin::Have(head) if head == history.head()));
    }
}

fn refused(writer: &StoreWriter, history: &History, descriptor: &SegmentDescriptor) -> RefusalKind {
    match writer.begin(&history.group, descriptor) {
        Ok(_) => panic!("it was not refused"),
        Err(refusal) => {
            assert!(!refusal.hint.is_empty());
            assert_eq!(refusal.sequence, Some(descriptor.position.sequence));
            refusal.kind
        }
    }
}

#[test]
fn another_timeline_is_divergence() {
    let folder = tempfile::tempdir().unwrap();
    let (history, other) = (History::with_points(3, 5), History::with_points(4, 9));
    filled(folder.path(), &history);
    let writer = open_writer(folder.path(), &history.group);
    for segment in &other.segments[..=history.segments.len()] {
        assert_eq!(refused(&writer, &history, &descriptor(segment)), RefusalKind::Diverged);
    }
    drop(writer);
    history.assert_points(&Store::open(folder.path()).unwrap());
}

#[test]
fn an_old_generation_is_fenced() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::with_points(5, 3);
    history.generation = 2;
    history.cut();
    filled(folder.path(), &history);
    history.generation = 1;
    history.cut();
    let writer = open_writer(folder.path(), &history.group);
    let last = history.segments.last().unwrap();
    assert_eq!(refused(&writer, &history, &descriptor(last)), RefusalKind::Fenced);
}

#[test]
fn nonsense_is_refused_before_a_byte_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(6, 1);
    let writer = open_writer(folder.path(), &history.group);
    let good = descriptor(&history.segments[0]);
    let huge = SegmentDescriptor { size_bytes: u64::MAX, ..good };
    assert_eq!(refused(&writer, &history, &huge), RefusalKind::Invalid);
    let mut far = good;
    far.position.sequence = Sequence(5000);
    assert_eq!(refused(&writer, &history, &far), RefusalKind::Retry);
    let unopened = "other".parse().unwrap();
    assert!(writer.begin(&unopened, &good).is_err_and(|refusal| refusal.kind == RefusalKind::Invalid));
}

#[test]
fn damaged_bytes_are_refused_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(8, 3);
    let writer = open_writer(folder.path(), &history.group);
    let SealedSegment { bytes, .. } = &history.segments[0];
    let announced = descriptor(&history.segments[0]);
    let check = |bytes: &[u8], announced: &SegmentDescriptor| {
        let refusal = send_bytes(&writer, &history.group, announced, bytes).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Corrupt, "{refusal}");
        assert_eq!(writer.used_bytes(), 0);
        assert_eq!(files_in(&folder.path().join("groups/demo/incoming")), [""; 0]);
        assert_eq!(files_in(&folder.path().join("groups/demo/segments")), [""; 0]);
    };
    for at in (0..bytes.len()).step_by(bytes.len() / 50) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        check(&damaged, &announced);
    }
    check(&bytes[..bytes.len() - 1], &announced);
    check(&[bytes.as_slice(), &[0]].concat(), &announced);
    check(
        &history.segments[1].bytes,
        &SegmentDescriptor { size_bytes: history.segments[1].bytes.len() as u64, ..announced },
    );
    let mut renamed = announced;
    renamed.position.hash = Hash([9; 32]);
    check(bytes, &renamed);
    assert_eq!(send(&writer, &history.group, &history.segments[0]).unwrap(), Some(announced.position));
}

#[test]
fn a_broken_stream_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(9, 1);
    let writer = open_writer(folder.path(), &history.group);
    let Begin::Receive(mut sink) = writer.begin(&history.group, &descriptor(&history.segments[0])).unwrap()
    else {
        panic!("it is not here");
    };
    sink.write_at(0, &history.segments[0].bytes[..300]).unwrap();
    assert_eq!(files_in(&folder.path().join("groups/demo/incoming")).len(), 1);
    drop(sink);
    assert_eq!(files_in(&folder.path().join("groups/demo/incoming")), [""; 0]);
    assert_eq!(writer.used_bytes(), 0);
}

#[test]
fn what_waits_when_the_session_ends_is_offered_again() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(10, 3);
    let writer = open_writer(folder.path(), &history.group);
    assert_eq!(send(&writer, &history.group, &history.segments[1]).unwrap(), None);
    writer.closed(&peer(), &history.group);
    assert_eq!(files_in(&folder.path().join("groups/demo/incoming")), [""; 0]);
    for segment in &history.segments {
        assert_eq!(send(&writer, &history.group, segment).unwrap(), Some(segment.position));
    }
}

#[test]
fn the_size_limit_refuses_and_keeps_the_old_points() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(11, 6);
    let sizes = history.segments.iter().map(|segment| segment.bytes.len() as u64);
    let limit = sizes.clone().take(3).sum::<u64>();
    let options = WriterOptions { size_bytes_max: Some(limit) };
    let writer = StoreWriter::open(folder.path(), options.clone()).unwrap();
    writer.open_group(&peer(), &history.group).unwrap();
    for segment in &history.segments[..3] {
        send(&writer, &history.group, segment).unwrap();
    }
    assert_eq!(refused(&writer, &history, &descriptor(&history.segments[3])), RefusalKind::Full);
    drop(writer);
    let again = StoreWriter::open(folder.path(), options).unwrap();
    assert_eq!(again.used_bytes(), limit);
    assert_eq!(again.head(&history.group), Some(history.segments[2].position));
    history.assert_points(&Store::open(folder.path()).unwrap());
}

#[test]
fn a_second_daemon_is_refused_and_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::new(0);
    let _first = open_writer(folder.path(), &history.group);
    let Err(error) = StoreWriter::open(folder.path(), WriterOptions::default()) else {
        panic!("two daemons")
    };
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    assert!(error.hint().contains("second daemon"));
}

#[test]
fn nothing_that_is_stored_is_ever_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(12, 2);
    // A file in the place of the second segment, which is not of this chain.
    let writer = open_writer(folder.path(), &history.group);
    send(&writer, &history.group, &history.segments[0]).unwrap();
    let stray = segment_path(folder.path(), &history.segments[1]);
    std::fs::write(&stray, b"something else").unwrap();
    let refusal = send(&writer, &history.group, &history.segments[1]).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Retry, "{refusal}");
    assert_eq!(std::fs::read(&stray).unwrap(), b"something else");
    drop(writer);
    // The next start sets it aside.
    let writer = open_writer(folder.path(), &history.group);
    assert_eq!(files_in(&folder.path().join("groups/demo/detached")).len(), 1);
    let head = send(&writer, &history.group, &history.segments[1]).unwrap();
    assert_eq!(head, Some(history.segments[1].position));
}
