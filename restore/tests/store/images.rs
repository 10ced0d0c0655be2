//! Volumes written to files, and stores read again as a whole.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use journal_format::ErrorKind;
use restore::{
    ImageError, ImageFormat, ImageOptions, Restored, Selector, Store, restore_volume, verify_store,
};

use crate::history::{History, files_in, filled, open, segment_path};

const RAW: ImageOptions = ImageOptions { format: ImageFormat::Raw, overwrite: false };
const QCOW2: ImageOptions = ImageOptions { format: ImageFormat::Qcow2, overwrite: false };

fn write(
    folder: &Path,
    history: &History,
    volume: usize,
    output: &Path,
    options: ImageOptions,
) -> Result<Restored, ImageError> {
    let store = Store::open(&folder.join("store")).unwrap();
    let view = open(&store, &history.group, &Selector::Latest);
    let volume = view.volume(&history.volumes[volume].0).unwrap();
    let steps = Mutex::new(Vec::new());
    let done =
        restore_volume(&volume, output, options, &|done, total| steps.lock().unwrap().push((done, total)));
    let steps = steps.into_inner().unwrap();
    assert!(steps.iter().all(|(done, total)| done <= total));
    if done.is_ok() {
        assert_eq!(
            steps.iter().map(|step| step.0).max(),
            steps.first().map(|step| step.1),
            "all of it was reported"
        );
    }
    done
}

fn filled_folder(history: &History) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    filled(&folder.path().join("store"), history);
    folder
}

#[test]
fn raw_and_qcow2_images_have_the_bytes_of_the_point() {
    let history = History::with_points(90, 12);
    let folder = filled_folder(&history);
    for (number, (_, bytes)) in history.volumes.iter().enumerate() {
        let (raw, qcow2) =
            (folder.path().join(format!("{number}.raw")), folder.path().join(format!("{number}.qcow2")));
        let done = write(folder.path(), &history, number, &raw, RAW).unwrap();
        assert_eq!(done.size_bytes, bytes.len() as u64);
        assert!(fs::read(&raw).unwrap() == *bytes);
        write(folder.path(), &history, number, &qcow2, QCOW2).unwrap();
        let mut compare = Command::new("qemu-img");
        compare.args(["compare", "-f", "raw", "-F", "qcow2"]).arg(&raw).arg(&qcow2);
        assert!(compare.status().expect("qemu-img is missing").success());
        let checked = Command::new("qemu-img").args(["check", "-q"]).arg(&qcow2).status();
        assert!(checked.unwrap().success());
    }
    let left = files_in(folder.path());
    assert!(!left.iter().any(|name| name.contains("partial")), "{left:?}");
}

#[test]
fn what_is_there_is_not_replaced_unless_that_is_allowed() {
    let history = History::with_points(91, 3);
    let folder = filled_folder(&history);
    for options in [RAW, QCOW2] {
        let output = folder.path().join("disk");
        fs::write(&output, "precious").unwrap();
        let error = write(folder.path(), &history, 0, &output, options).unwrap_err();
        assert!(matches!(error, ImageError::Exists { .. }) && error.kind() == ErrorKind::Invalid, "{error}");
        assert_eq!(fs::read(&output).unwrap(), b"precious");
        write(folder.path(), &history, 0, &output, ImageOptions { overwrite: true, ..options }).unwrap();
        assert_ne!(fs::read(&output).unwrap(), b"precious");
        // An empty file is nothing that could be lost.
        fs::write(&output, "").unwrap();
        write(folder.path(), &history, 0, &output, options).unwrap();
    }
    let error = write(folder.path(), &history, 0, folder.path(), RAW).unwrap_err();
    assert!(matches!(error, ImageError::NotATarget { .. }), "{error}");
    let error = write(folder.path(), &history, 0, &folder.path().join("no/such/folder"), RAW).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn damage_leaves_no_image() {
    let history = History::with_points(92, 1);
    let folder = filled_folder(&history);
    let path = segment_path(&folder.path().join("store"), &history.segments[0]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[journal_format::segment::HEADER_BYTES + 40] ^= 1;
    fs::write(&path, bytes).unwrap();
    let output = folder.path().join("disk.raw");
    for volume in 0..history.volumes.len() {
        if let Err(error) = write(folder.path(), &history, volume, &output, RAW) {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert_eq!(files_in(folder.path()), ["store"]);
            return;
        }
        fs::remove_file(&output).unwrap();
    }
    panic!("the damage was not found");
}

#[test]
fn a_whole_store_is_verified() {
    let history = History::with_points(93, 8);
    let folder = filled_folder(&history);
    let store = Store::open(&folder.path().join("store")).unwrap();
    let reports = verify_store(&store, &|_, _| {}).unwrap();
    let [report] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((report.segments, report.points), (history.segments.len() as u64, 8));
    assert_eq!(report.bytes, history.segments.iter().map(|segment| segment.bytes.len() as u64).sum::<u64>());
    assert!(report.damaged.is_empty() && report.touched.is_empty());
}

#[test]
fn every_kind_of_damage_is_found() {
    let history = History::with_points(94, 8);
    let segment = &history.segments[4];
    let truncated = &segment.bytes[..segment.bytes.len() - 1];
    let mut flipped = segment.bytes.clone();
    flipped[segment.bytes.len() / 2] ^= 1;
    for (what, content) in [("flipped", Some(&flipped[..])), ("truncated", Some(truncated)), ("gone", None)] {
        for after_opening in [true, false] {
            let folder = filled_folder(&history);
            let root = folder.path().join("store");
            let opened = after_opening.then(|| Store::open(&root).unwrap());
            let path = segment_path(&root, segment);
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let store = opened.unwrap_or_else(|| Store::open(&root).unwrap());
            let reports = verify_store(&store, &|_, _| {}).unwrap();
            let damaged = &reports[0].damaged;
            assert!(!damaged.is_empty(), "{what}, after opening: {after_opening}");
            assert!(
                damaged.iter().all(|one| one.sequence >= segment.position.sequence),
                "{what}: {damaged:?}"
            );
            let whole = history.ids().len() as u64 - reports[0].touched.len() as u64;
            assert!(!after_opening || reports[0].points == whole);
            assert!(reports[0].points < 8, "{what}: all points are called whole");
        }
    }
}
