use super::*;
use crate::location::{Fingerprint, Location};

fn run(folder: &Path, serial: u64, entries: impl IntoIterator<Item = (u64, u32)>) -> Arc<Run> {
    let name = RunName { shard: 0, newest: serial, oldest: serial };
    let mut writer = Writer::new(folder, name).unwrap();
    for (fingerprint, segment) in entries {
        let location = Location::new(segment, 0, 0, 0).unwrap();
        writer.push(Entry { fingerprint: Fingerprint(fingerprint), location }).unwrap();
    }
    Arc::new(writer.finish().unwrap().unwrap())
}

fn all_live() -> Live {
    let folder = tempfile::tempdir().unwrap();
    let mut segments = crate::segments::Segments::create(folder.path(), 0).unwrap();
    let record = crate::SegmentRecord { group: String::new(), generation: 1, sequence: 1, hash: [0; 32] };
    (0..1000).for_each(|_| assert!(segments.add(&record).is_ok()));
    segments.live().as_ref().clone()
}

fn check_group(sizes: &[u64], expected: Option<Range<usize>>) {
    assert_eq!(group(sizes), expected, "{sizes:?}");
}

#[test]
fn groups_take_older_runs_along() {
    check_group(&[], None);
    check_group(&[1], None);
    check_group(&[1, 1], Some(0..2));
    check_group(&[1, 1, 6, 24], Some(0..4));
    check_group(&[1, 1, 7], Some(0..2));
    check_group(&[1, 3, 10, 12, 1000], Some(2..4));
    let growing: Vec<u64> = (0..RUNS_MAX as u32).map(|place| 3_u64.pow(place)).collect();
    check_group(&growing[..31], None);
    assert!(group(&growing).is_some());
}

#[test]
fn runs_stay_few_and_writes_logarithmic() {
    let (mut sizes, mut written, mut longest) = (Vec::new(), 0, 0);
    for _ in 0..292 {
        sizes.insert(0, 1);
        written += 1;
        while let Some(group) = group(&sizes) {
            let sum = sizes[group.clone()].iter().sum();
            written += sum;
            sizes.splice(group, [sum]);
        }
        longest = longest.max(sizes.len());
    }
    assert!(longest <= 5, "{longest} runs");
    assert!(written <= 292 * 8, "{written} writes of 292");
}

#[test]
fn newest_entry_of_a_known_segment_wins() {
    let folder = tempfile::tempdir().unwrap();
    let runs = [
        run(folder.path(), 3, [(1, 30), (2, 5000), (4, 30), (u64::MAX >> 4, 30)]),
        run(folder.path(), 2, [(1, 20), (2, 20), (3, 5)]),
        run(folder.path(), 1, [(2, 10), (3, 11), (5, 4), (u64::MAX >> 4, 10)]),
    ];
    let merged = merge(folder.path(), &runs, &all_live(), 10, &AtomicBool::new(false)).unwrap().unwrap();
    let expected = [(1, 30), (2, 20), (3, 11), (4, 30), (u64::MAX >> 4, 30)];
    assert_eq!(merged.entries(), 5);
    for (fingerprint, segment) in expected {
        let location = merged.find(Fingerprint(fingerprint)).unwrap();
        assert_eq!(location.map(Location::segment), Some(segment));
    }
    assert_eq!(merged.name(), RunName { shard: 0, newest: 3, oldest: 1 });
    assert!(runs.iter().all(|run| merged.name().covers(run.name())));
}

#[test]
fn nothing_is_left_of_dead_runs_or_of_a_stopped_merge() {
    let folder = tempfile::tempdir().unwrap();
    let runs = [run(folder.path(), 1, (0..100_000).map(|fingerprint| (fingerprint, 1)))];
    let dead = merge(folder.path(), &runs, &all_live(), 2, &AtomicBool::new(false)).unwrap();
    assert!(dead.is_none());
    let stopped = merge(folder.path(), &runs, &all_live(), 0, &AtomicBool::new(true));
    assert!(matches!(stopped, Err(MergeError::Stopped)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn oldest_eighth_is_given_up_when_a_shard_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let old = run(folder.path(), 1, (0..1000).map(|place| (place * 2, place as u32 % 100)));
    let new = run(folder.path(), 2, (0..1000).map(|place| (place * 2 + 1, 100 + place as u32 % 100)));
    let runs = [new, old];
    assert_eq!(Plan::of(&runs, 2200, &all_live()).map(|plan| plan.floor), Some(0));
    let plan = Plan::of(&runs, 2112, &all_live()).unwrap();
    assert_eq!(plan.runs, 0..2);
    assert!((25..=45).contains(&plan.floor), "{}", plan.floor);
}

#[test]
fn run_with_half_of_its_entries_dead_is_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let dead_from =
        |dead: u32| (0..1000).map(move |place| (u64::from(place), if place < dead { 7000 } else { 1 }));
    let (dead, alive) =
        (run(folder.path(), 1, dead_from(520)), run(folder.path(), 2, dead_from(100).take(300)));
    let plan = Plan { runs: 1..2, floor: 0 };
    assert_eq!(Plan::of(&[alive, dead], 1 << 20, &all_live()), Some(plan));
}
