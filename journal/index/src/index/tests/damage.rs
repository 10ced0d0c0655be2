//! One test for each row of the table of crashes in `INDEX.md`.

use super::*;

const ENTRIES: u64 = 3000;

/// An index with entries of one segment in runs that are merged.
fn filled(folder: &tempfile::TempDir) -> Vec<PathBuf> {
    let index = open(folder, SMALL);
    let segment = index.add_segment(&record(0)).unwrap();
    (0..ENTRIES).for_each(|number| index.insert(&hash(number), location(segment, number)));
    index.flush().unwrap();
    index.wait_for_merges();
    runs(folder)
}

fn runs(folder: &tempfile::TempDir) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut runs: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "run")).collect();
    runs.sort();
    runs
}

fn hits(index: &Index) -> usize {
    let answers = lookup_all(index, 0..ENTRIES);
    for (number, answer) in (0..).zip(&answers) {
        assert!(answer.is_none_or(|answer| answer == location(0, number)), "{number}: {answer:?}");
    }
    answers.iter().flatten().count()
}

#[test]
fn temporary_files_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    filled(&folder);
    let temporary = folder.path().join("00-0000000000000000-0000000000000000.tmp");
    fs::write(&temporary, b"half a run").unwrap();
    let index = open(&folder, SMALL);
    assert!(!temporary.exists());
    assert_eq!((index.opened.discarded.len(), hits(&index)), (0, ENTRIES as usize));
}

#[test]
fn run_that_is_not_whole_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let runs = filled(&folder);
    let bytes = fs::read(&runs[0]).unwrap();
    fs::write(&runs[0], &bytes[..bytes.len() - 1]).unwrap();
    let bytes = fs::read(&runs[1]).unwrap();
    fs::write(&runs[1], [&bytes[..], b"x"].concat()).unwrap();
    let mut bytes = fs::read(&runs[2]).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&runs[2], bytes).unwrap();
    let foreign = folder.path().join("foreign.run");
    fs::write(&foreign, b"").unwrap();
    let index = open(&folder, SMALL);
    let discarded: HashSet<PathBuf> = index.opened.discarded.iter().map(|d| d.path.clone()).collect();
    assert_eq!(discarded, HashSet::from([runs[0].clone(), runs[1].clone(), runs[2].clone(), foreign]));
    assert!(discarded.iter().all(|path| !path.exists()));
    assert!((1..ENTRIES as usize).contains(&hits(&index)));
}

#[test]
fn inputs_of_a_finished_merge_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder, SMALL);
    let segment = index.add_segment(&record(0)).unwrap();
    let mut inputs = Vec::new();
    for round in 0..4 {
        (0..ENTRIES / 4).for_each(|i| index.insert(&hash(i * 4 + round), location(segment, i * 4 + round)));
        index.flush().unwrap();
        inputs.extend(runs(&folder).into_iter().filter_map(|path| Some((fs::read(&path).ok()?, path))));
    }
    index.wait_for_merges();
    let merged = runs(&folder);
    drop(index);
    for (bytes, path) in inputs.iter().filter(|(_, path)| !path.exists()) {
        fs::write(path, bytes).unwrap();
    }
    assert!(runs(&folder).len() > merged.len());
    let index = open(&folder, SMALL);
    assert_eq!((runs(&folder), index.opened.discarded.len()), (merged, 0));
    assert_eq!(hits(&index), ENTRIES as usize);
}

#[test]
fn lost_pages_are_misses() {
    let folder = tempfile::tempdir().unwrap();
    let runs = filled(&folder);
    for path in &runs[..3] {
        let mut bytes = fs::read(path).unwrap();
        bytes[4096..8192].fill(0);
        fs::write(path, bytes).unwrap();
    }
    let index = open(&folder, SMALL);
    assert!(index.opened.discarded.is_empty());
    assert!((1..ENTRIES as usize).contains(&hits(&index)));
}

#[test]
fn lost_records_of_segments_make_entries_miss() {
    let folder = tempfile::tempdir().unwrap();
    filled(&folder);
    let path = folder.path().join("segments");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..200]).unwrap();
    let index = open(&folder, SMALL);
    assert_eq!(hits(&index), 0);
    // The runs still name 0.
    assert_eq!(index.add_segment(&record(1)).unwrap(), 1);
    assert_eq!(hits(&index), 0);
}

#[test]
fn forgotten_segment_counts_again_when_that_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    filled(&folder);
    // The runs, too: those of forgotten segments may be rewritten at any time.
    let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.map(|path| (fs::read(&path).unwrap(), path)).collect();
    open(&folder, SMALL).forget_segments(|_, _| true).unwrap();
    assert_eq!(hits(&open(&folder, SMALL)), 0);
    files.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
    assert_eq!(hits(&open(&folder, SMALL)), ENTRIES as usize);
}

#[test]
fn runs_go_with_the_segments() {
    let path = |folder: &tempfile::TempDir| folder.path().join("segments");
    let removed = tempfile::tempdir().unwrap();
    let (garbled, of_next_version) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let counts = [&removed, &garbled, &of_next_version].map(|folder| filled(folder).len());
    fs::remove_file(path(&removed)).unwrap();
    fs::write(path(&garbled), b"3SITESGR").unwrap();
    let mut bytes = fs::read(path(&of_next_version)).unwrap();
    bytes[8] = 2;
    let checksum = blake3::hash(&bytes[..120]);
    bytes[120..128].copy_from_slice(&checksum.as_bytes()[..8]);
    fs::write(path(&of_next_version), bytes).unwrap();
    for ((folder, count), others) in [removed, garbled, of_next_version].iter().zip(counts).zip([0, 1, 1]) {
        let index = open(folder, SMALL);
        assert_eq!(index.opened.discarded.len(), count + others);
        assert_eq!((hits(&index), runs(folder).len()), (0, 0));
        assert_eq!(index.add_segment(&record(0)).unwrap(), 0);
    }
}

#[test]
fn entries_in_memory_are_missing_unless_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder, SMALL);
    let segment = index.add_segment(&record(0)).unwrap();
    index.insert(&hash(0), location(segment, 0));
    index.flush().unwrap();
    index.insert(&hash(1), location(segment, 1));
    assert_eq!(hits(&index), 2);
    drop(index);
    assert_eq!(hits(&open(&folder, SMALL)), 1);
}

#[test]
fn run_that_fails_while_open_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let runs = filled(&folder);
    let index = open(&folder, SMALL);
    index.wait_for_merges();
    fs::File::options().write(true).open(&runs[0]).unwrap().set_len(100).unwrap();
    let before = index.statistics().runs;
    assert!((1..ENTRIES as usize).contains(&hits(&index)));
    let figures = index.statistics();
    assert_eq!((figures.failed_runs, figures.runs), (1, before - 1));
    assert!(!runs[0].exists());
    // A merge drops it, too.
    fs::File::options().write(true).open(&runs[runs.len() - 1]).unwrap().set_len(100).unwrap();
    for number in ENTRIES..4 * ENTRIES {
        index.insert(&hash(number), location(0, number));
    }
    index.wait_for_merges();
    assert_eq!(index.statistics().failed_runs, 2);
}

#[test]
fn entries_are_lost_and_counted_when_the_folder_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder, SMALL);
    let segment = index.add_segment(&record(0)).unwrap();
    (0..ENTRIES).for_each(|number| index.insert(&hash(number), location(segment, number)));
    index.wait_for_merges();
    fs::remove_dir_all(folder.path()).unwrap();
    (ENTRIES..20 * ENTRIES).for_each(|number| index.insert(&hash(number), location(segment, number)));
    assert!(index.flush().is_err());
    let figures = index.statistics();
    assert!(figures.lost_entries > 18 * ENTRIES, "{figures:?}");
    assert!(hits(&index) > ENTRIES as usize / 2);
}
