//! What opening finds: after crashes, and when the catalog is not what it should be.

use std::fs;
use std::path::Path;

use journal_format::segment::SealedSegment;
use journal_format::{Epoch, ErrorKind, Generation, PointId};
use restore::{Selector, Store, StoreError};
use transport::{Heartbeat, Inbox, NewestCut};

use crate::history::{History, files_in, filled, ids, open_writer, segment_path, send, time_of};

#[test]
fn a_crash_before_the_rename_loses_only_what_had_no_receipt() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(20, 4);
    let (last, before) = history.segments.split_last().unwrap();
    let writer = open_writer(folder.path(), &history.group);
    for segment in before {
        send(&writer, &history.group, segment).unwrap();
    }
    drop(writer);
    let incoming = folder.path().join("groups/demo/incoming");
    // Half of it, and a whole one.
    fs::write(incoming.join("a.part"), &last.bytes[..100]).unwrap();
    fs::write(incoming.join("b.part"), &last.bytes).unwrap();
    let writer = open_writer(folder.path(), &history.group);
    assert_eq!(files_in(&incoming), [""; 0]);
    assert_eq!(writer.head(&history.group), Some(before.last().unwrap().position));
    assert_eq!(send(&writer, &history.group, last).unwrap(), history.head());
}

#[test]
fn a_crash_after_the_rename_keeps_the_segment() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(21, 4);
    let (last, before) = history.segments.split_last().unwrap();
    let writer = open_writer(folder.path(), &history.group);
    for segment in before {
        send(&writer, &history.group, segment).unwrap();
    }
    drop(writer);
    fs::write(segment_path(folder.path(), last), &last.bytes).unwrap();
    let writer = open_writer(folder.path(), &history.group);
    assert_eq!(writer.head(&history.group), history.head());
    drop(writer);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(ids(&store, &history.group), history.ids());
    history.assert_points(&store);
}

/// Opens a store whose catalog `spoil` has changed; it has to list the same points with and without a daemon.
fn check_rebuilt(seed: u64, spoil: impl Fn(&Path)) {
    for daemon_first in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let history = History::with_points(seed, 6);
        filled(folder.path(), &history);
        let before = Store::open(folder.path()).unwrap().points(&history.group).unwrap();
        spoil(&folder.path().join("catalog.sqlite"));
        let writer = daemon_first.then(|| open_writer(folder.path(), &history.group));
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.points(&history.group).unwrap(), before);
        assert_eq!(store.group(&history.group).unwrap().head, history.head());
        history.assert_points(&store);
        drop(writer);
    }
}

#[test]
fn a_deleted_catalog_is_made_again() {
    check_rebuilt(22, |catalog| {
        fs::remove_file(catalog).unwrap();
    });
}

#[test]
fn a_catalog_of_garbage_is_made_again() {
    check_rebuilt(23, |catalog| fs::write(catalog, vec![0x5a; 8192]).unwrap());
}

#[test]
fn an_empty_catalog_is_made_again() {
    check_rebuilt(24, |catalog| fs::write(catalog, b"").unwrap());
}

#[test]
fn a_catalog_with_damaged_pages_is_made_again() {
    check_rebuilt(25, |catalog| {
        let mut bytes = fs::read(catalog).unwrap();
        let size = bytes.len();
        bytes[4096..size].fill(0xff);
        fs::write(catalog, bytes).unwrap();
    });
}

#[test]
fn a_catalog_of_another_version_is_made_again() {
    check_rebuilt(26, |catalog| {
        let mut bytes = fs::read(catalog).unwrap();
        // SQLite keeps user_version at offset 60.
        bytes[60..64].copy_from_slice(&77_u32.to_be_bytes());
        fs::write(catalog, bytes).unwrap();
    });
}

/// Fills a store and removes or damages one segment in the middle.
fn broken_in_the_middle(
    seed: u64,
    spoil: impl Fn(&Path, &SealedSegment),
) -> (tempfile::TempDir, History, usize) {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(seed, 8);
    filled(folder.path(), &history);
    let middle = history.segments.len() / 2;
    spoil(folder.path(), &history.segments[middle]);
    (folder, history, middle)
}

/// Points of a history that its first segments complete.
fn ids_up_to(history: &History, segments: usize) -> Vec<PointId> {
    let last = history.segments[segments - 1].position.epoch;
    // The last one may be a part that others would have followed.
    let whole = history.segments.get(segments).is_none_or(|next| next.position.epoch != last);
    let listed = |id: &&PointId| id.epoch < last || whole && id.epoch == last;
    history.ids().iter().filter(listed).copied().collect()
}

#[test]
fn a_missing_segment_ends_the_chain() {
    let (folder, history, middle) = broken_in_the_middle(27, |root, segment| {
        fs::remove_file(segment_path(root, segment)).unwrap();
    });
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(ids(&store, &history.group), ids_up_to(&history, middle));
    history.assert_points(&store);
    // The daemon continues there and keeps what it cannot use.
    let writer = open_writer(folder.path(), &history.group);
    assert_eq!(writer.head(&history.group), Some(history.segments[middle - 1].position));
    let set_aside = files_in(&folder.path().join("groups/demo/detached")).len();
    assert_eq!(set_aside, history.segments.len() - middle - 1);
    for segment in &history.segments[middle..] {
        assert_eq!(send(&writer, &history.group, segment).unwrap(), Some(segment.position));
    }
    drop(writer);
    assert_eq!(ids(&Store::open(folder.path()).unwrap(), &history.group), history.ids());
}

#[test]
fn a_truncated_segment_ends_the_chain() {
    let (folder, history, middle) = broken_in_the_middle(28, |root, segment| {
        fs::write(segment_path(root, segment), &segment.bytes[..segment.bytes.len() / 2]).unwrap();
    });
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(ids(&store, &history.group), ids_up_to(&history, middle));
    history.assert_points(&store);
}

#[test]
fn a_command_reads_beside_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(29, 6);
    let writer = open_writer(folder.path(), &history.group);
    let store = Store::open(folder.path()).unwrap();
    assert!(matches!(store.points(&history.group), Err(StoreError::UnknownGroup { .. })));
    for segment in &history.segments {
        send(&writer, &history.group, segment).unwrap();
        assert_eq!(store.group(&history.group).unwrap().head, Some(segment.position));
    }
    assert_eq!(ids(&store, &history.group), history.ids());
    history.assert_points(&store);
}

#[test]
fn a_heartbeat_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(30, 1);
    let writer = open_writer(folder.path(), &history.group);
    let newest_cut = Some(NewestCut { epoch: Epoch(9), time: time_of(9) });
    let heartbeat = Heartbeat {
        now: time_of(10),
        newest_cut,
        backlog_bytes: 77,
        backlog_segments: 3,
        state: "streaming".to_owned(),
    };
    writer.heartbeat(&history.group, &heartbeat, time_of(11));
    drop(writer);
    let summary = Store::open(folder.path()).unwrap().group(&history.group).unwrap();
    let kept = summary.heartbeat.unwrap();
    assert_eq!((kept.source_time, kept.received_at), (time_of(10), time_of(11)));
    assert_eq!(kept.newest_cut, Some((Epoch(9), time_of(9))));
    assert_eq!((kept.backlog_bytes, kept.backlog_segments), (77, 3));
}

#[test]
fn folders_that_are_no_stores_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let check = |expected: &str| {
        let Err(error) = Store::open(folder.path()) else { panic!("it was opened") };
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.hint().is_empty());
    };
    check("no store.json");
    fs::write(folder.path().join("mine.txt"), "mine").unwrap();
    let daemon = restore::StoreWriter::open(folder.path(), restore::WriterOptions::default());
    assert!(daemon.is_err(), "a folder with other things in it is not made a store");
    fs::write(folder.path().join("store.json"), "{}").unwrap();
    check("cannot be read");
    fs::write(folder.path().join("store.json"), r#"{"format":"thirdsite-store","version":2}"#).unwrap();
    check("version 2");
}

#[test]
fn points_are_chosen_by_id_time_name_and_age() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(31, 7);
    filled(folder.path(), &history);
    let store = Store::open(folder.path()).unwrap();
    let id = |epoch| PointId { generation: Generation(1), epoch: Epoch(epoch) };
    let check = |selector: Selector, expected| {
        assert_eq!(store.select(&history.group, &selector).unwrap().id, id(expected), "{selector:?}");
    };
    check(Selector::Latest, 7);
    check(Selector::Id(id(4)), 4);
    check(Selector::At(time_of(5)), 5);
    check(Selector::At(journal_format::Timestamp(time_of(5).0 - 1)), 4);
    check(Selector::At(time_of(5000)), 7);
    check(Selector::Bookmark("mark-3".parse().unwrap()), 3);
    let refused = |selector: Selector, expected: &str| {
        let error = store.select(&history.group, &selector).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused(Selector::Id(id(99)), "1-7 (2023-11-14T22:13:27.000Z)");
    refused(Selector::At(time_of(0)), "1-1 (2023-11-14T22:13:21.000Z)");
    refused(Selector::Bookmark("none".parse().unwrap()), "mark-6, mark-3");
    let other = store.select(&"other".parse().unwrap(), &Selector::Latest).unwrap_err();
    assert!(other.to_string().contains("demo"), "{other}");
}
