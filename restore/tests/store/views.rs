//! Points that are open for reading.

use std::fs;
use std::sync::Arc;

use journal_format::ErrorKind;
use restore::{PointView, Selector, Store, ViewOptions};

use crate::history::{History, contents, filled, open, segment_path};

#[test]
fn every_point_of_random_histories_equals_the_model() {
    for seed in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::with_points(1000 + seed, 5);
        // A volume that grows, one that shrinks, one that is new.
        history.volumes[0].1.resize(3 << 20, 0);
        history.volumes[1].1.truncate(512 << 10);
        history.volumes.insert(1, ("late".parse().unwrap(), vec![0; 64 << 10]));
        (0..5).for_each(|_| history.cut());
        // One that grows again does not get back what it lost; one is gone for a while.
        history.volumes[2].1.resize(1 << 20, 0);
        let late = history.volumes.remove(1).0;
        (0..2).for_each(|_| history.cut());
        history.volumes.push((late, vec![0; 64 << 10]));
        (0..3).for_each(|_| history.cut());
        filled(folder.path(), &history);
        history.assert_points(&Store::open(folder.path()).unwrap());
    }
}

#[test]
fn a_volume_that_joins_is_in_no_point_until_it_is_whole_and_then_has_all_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::with_points(41, 2);
    history.joining = vec!["late".parse().unwrap()];
    history.volumes.push(("late".parse().unwrap(), vec![0; 64 << 10]));
    history.cut_with(2, 0, &[7; 4096]);
    let joining = history.ids()[2];
    history.joining.clear();
    history.cut_with(0, 0, &[8; 512]);
    filled(folder.path(), &history);
    let store = Store::open(folder.path()).unwrap();
    let names = |selector: &Selector| {
        let view = open(&store, &history.group, selector);
        view.volumes().iter().map(|volume| volume.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&Selector::Id(joining)), ["root", "data"]);
    assert_eq!(names(&Selector::Latest), ["root", "data", "late"]);
    let view = open(&store, &history.group, &Selector::Latest);
    let mut bytes = [0; 4096];
    view.volume(&"late".parse().unwrap()).unwrap().read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);
}

#[test]
fn any_range_of_sectors_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::with_points(40, 10);
    filled(folder.path(), &history);
    let store = Store::open(folder.path()).unwrap();
    let view = open(&store, &history.group, &Selector::Latest);
    let (name, bytes) = history.volumes[0].clone();
    let volume = view.volume(&name).unwrap();
    let sectors = bytes.len() / 512;
    for _ in 0..300 {
        let start = history.random.below(sectors);
        let end = start + history.random.below((sectors - start).min(400)) + 1;
        let (from, to) = (start * 512, end * 512);
        let mut read = vec![0xee; to - from];
        volume.read_at(from as u64, &mut read).unwrap();
        assert!(read == bytes[from..to], "sectors {start} to {end}");
        read.fill(0xee);
        assert!(volume.try_read_at(from as u64, &mut read).unwrap(), "it has been read before");
        assert!(read == bytes[from..to]);
        let run = volume.zero_run(from as u64, (to - from) as u64);
        assert!((1..=(to - from) as u64).contains(&run.length));
        if run.zero {
            assert!(bytes[from..from + run.length as usize].iter().all(|&byte| byte == 0));
        }
    }
    let mut buffer = [0; 512];
    for (offset, length) in [(1, 512), (0, 100), (bytes.len() as u64, 512), (u64::MAX - 511, 512)] {
        let error = volume.read_at(offset, &mut buffer[..length]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

#[test]
fn many_threads_read_one_view_with_a_small_cache() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(41, 12);
    filled(folder.path(), &history);
    let store = Store::open(folder.path()).unwrap();
    let point = store.select(&history.group, &Selector::Latest).unwrap();
    let options = ViewOptions { cache_bytes_max: 100 << 10, ..ViewOptions::default() };
    let view = store.open_point(&point, &options).unwrap();
    let expected = history.expected(point.id);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(contents(&view) == expected));
        }
    });
}

#[test]
fn a_map_over_its_limit_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(42, 12);
    filled(folder.path(), &history);
    let store = Store::open(folder.path()).unwrap();
    let point = store.select(&history.group, &Selector::Latest).unwrap();
    let options = ViewOptions { map_bytes_max: 1000, ..ViewOptions::default() };
    let Err(error) = store.open_point(&point, &options) else { panic!("it was opened") };
    assert_eq!(error.kind(), ErrorKind::Full);
}

/// Opens the newest point of a store in which one bit of one segment is flipped; `None` if it cannot be opened.
fn with_flipped_bit(store: &Store, history: &History) -> Option<Arc<PointView>> {
    let point = store.select(&history.group, &Selector::Latest).unwrap();
    store.open_point(&point, &ViewOptions::default()).ok()
}

#[test]
fn damage_is_an_error_and_never_wrong_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::with_points(43, 3);
    filled(folder.path(), &history);
    let store = Store::open(folder.path()).unwrap();
    let expected = &history.points.last().unwrap().1;
    let mut errors = 0;
    for segment in &history.segments {
        let path = segment_path(folder.path(), segment);
        for at in (0..segment.bytes.len()).step_by(1 + segment.bytes.len() / 40) {
            let mut damaged = segment.bytes.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, damaged).unwrap();
            let Some(view) = with_flipped_bit(&store, &history) else {
                errors += 1;
                continue;
            };
            for (number, record) in view.volumes().iter().enumerate() {
                let volume = view.volume(&record.name).unwrap();
                for offset in (0..record.size_bytes).step_by(4096) {
                    let mut read = [0; 4096];
                    match volume.read_at(offset, &mut read) {
                        Ok(()) => assert!(read == expected[number][offset as usize..][..4096]),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Corrupt);
                            let text = error.to_string();
                            assert!(text.contains(record.name.as_str()) && text.contains("byte "), "{text}");
                            errors += 1;
                        }
                    }
                }
            }
        }
        fs::write(&path, &segment.bytes).unwrap();
    }
    assert!(errors > 0);
}
