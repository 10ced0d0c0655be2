//! The index against maps, through inserts, forgetting, flushes, closing and damage.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const KEYS: u64 = 1500;

#[derive(Clone, Debug)]
enum Step {
    /// So many keys from the first on, in a segment of their own.
    Insert(u64, u64),
    /// Forgets segments whose numbers have this remainder modulo 4.
    Forget(u32),
    Flush,
    Settle,
    Clear,
    /// With or without a flush before.
    Reopen(bool),
    /// Cuts the file at that place among all files to that part of 65536 of its size.
    Truncate(usize, u64),
    /// Changes a byte that a hash covers of the file at that place among all files, and that part of 65536 of its size.
    Garble(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..KEYS, 1..600_u64).prop_map(|(first, count)| Step::Insert(first, count)),
        2 => (0..4_u32).prop_map(Step::Forget),
        2 => Just(Step::Flush),
        2 => Just(Step::Settle),
        1 => Just(Step::Clear),
        3 => any::<bool>().prop_map(Step::Reopen),
        1 => (0..200_usize, 0..65536_u64).prop_map(|(file, part)| Step::Truncate(file, part)),
        1 => (0..200_usize, 0..65536_u64).prop_map(|(file, part)| Step::Garble(file, part)),
    ]
}

struct Model {
    folder: tempfile::TempDir,
    index: Option<Index>,
    /// Every record by its number.
    records: HashMap<u32, SegmentRecord>,
    /// Everything that was ever inserted for a key.
    history: HashMap<u64, HashSet<Location>>,
    /// The newest, where the index cannot have lost it.
    newest: HashMap<u64, Location>,
    /// Keys that may be only in memory.
    unflushed: HashSet<u64>,
    sequence: u64,
}

impl Model {
    fn new() -> Model {
        let folder = tempfile::tempdir().unwrap();
        let index = Some(open(&folder, SMALL));
        Model {
            folder,
            index,
            records: HashMap::new(),
            history: HashMap::new(),
            newest: HashMap::new(),
            unflushed: HashSet::new(),
            sequence: 0,
        }
    }

    fn index(&self) -> &Index {
        self.index.as_ref().unwrap()
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Insert(first, count) => self.insert(first, count),
            Step::Forget(remainder) => {
                self.index().forget_segments(|number, _| number % 4 == remainder).unwrap();
            }
            Step::Flush => {
                self.index().flush().unwrap();
                self.unflushed.clear();
            }
            Step::Settle => self.index().wait_for_merges(),
            Step::Clear => {
                self.index().clear().unwrap();
                self.history.clear();
                self.newest.clear();
            }
            Step::Reopen(flush) => {
                if flush {
                    self.run(Step::Flush);
                }
                self.reopen(|_| ());
            }
            Step::Truncate(file, part) => self.damage(file, |_, bytes| {
                let length = bytes.len() as u64 * part / 65536;
                bytes.truncate(length as usize);
            }),
            Step::Garble(file, part) => self.damage(file, |path, bytes| {
                let place = (bytes.len() as u64 * part / 65536) as usize;
                let is_run = path.extension().is_some_and(|e| e == "run");
                // Pages carry no hash.
                let place = if is_run && place >= 144 { bytes.len().saturating_sub(1) } else { place };
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= 0x55;
                }
            }),
        }
    }

    fn insert(&mut self, first: u64, count: u64) {
        self.sequence += 1;
        let record = record(self.sequence);
        let number = self.index().add_segment(&record).unwrap();
        if self.records.insert(number, record).is_some() {
            // Its record was lost, and no run names it.
            self.history.values_mut().for_each(|of_key| of_key.retain(|l| l.segment() != number));
            self.newest.retain(|_, location| location.segment() != number);
        }
        for key in (first..first + count).map(|key| key % KEYS) {
            let location = location(number, key);
            self.index().insert(&hash(key), location);
            self.history.entry(key).or_default().insert(location);
            self.newest.insert(key, location);
            self.unflushed.insert(key);
        }
    }

    fn reopen(&mut self, between: impl FnOnce(&Path)) {
        self.index = None;
        between(self.folder.path());
        let index = open(&self.folder, SMALL);
        if index.opened.discarded.iter().any(|discarded| discarded.path.ends_with("segments")) {
            self.records.clear();
            self.history.clear();
            self.newest.clear();
        }
        self.newest.retain(|key, _| !self.unflushed.contains(key));
        self.unflushed.clear();
        self.index = Some(index);
    }

    fn damage(&mut self, file: usize, change: impl FnOnce(&Path, &mut Vec<u8>)) {
        self.newest.clear();
        self.reopen(|folder| {
            let mut paths: Vec<_> =
                fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            // The file of segments is the last, and as likely as all others.
            let path = paths.get(file).unwrap_or(&paths[paths.len() - 1]);
            let mut bytes = fs::read(path).unwrap();
            change(path, &mut bytes);
            fs::write(path, bytes).unwrap();
        });
    }

    fn check(&self) {
        let index = self.index();
        for (number, record) in &self.records {
            assert!(index.segment(*number).is_none_or(|found| found == *record));
        }
        for (key, answer) in (0..).zip(lookup_all(index, 0..KEYS)) {
            if let Some(location) = answer {
                assert!(self.history.get(&key).is_some_and(|of_key| of_key.contains(&location)), "{key}");
                assert!(index.segment(location.segment()).is_some(), "{key}");
            }
            let newest = self.newest.get(&key).filter(|location| index.segment(location.segment()).is_some());
            assert!(newest.is_none_or(|newest| answer == Some(*newest)), "{key}: {answer:?}, not {newest:?}");
        }
        assert!(index.statistics().entries <= SMALL.max_entries + SMALL.memtable_entries as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn index_answers_what_was_inserted_or_nothing(steps in prop::collection::vec(step(), 1..30)) {
        let mut model = Model::new();
        for step in steps {
            model.run(step);
            model.check();
        }
    }

    #[test]
    fn garbled_pages_cause_no_panic(
        places in prop::collection::vec((0..200_usize, any::<u16>(), any::<u8>()), 1..100),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let index = open(&folder, SMALL);
        let segment = index.add_segment(&record(0)).unwrap();
        (0..4000).for_each(|number| index.insert(&hash(number), location(segment, number)));
        index.flush().unwrap();
        drop(index);
        let paths = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let runs: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "run")).collect();
        for (run, place, byte) in places {
            let path = &runs[run % runs.len()];
            let mut bytes = fs::read(path).unwrap();
            bytes[4096 + usize::from(place) % 4096] = byte;
            fs::write(path, bytes).unwrap();
        }
        let index = open(&folder, SMALL);
        prop_assert!(index.opened.discarded.is_empty());
        lookup_all(&index, 0..4000);
        (4000..7000).for_each(|number| index.insert(&hash(number), location(segment, number)));
        index.flush().unwrap();
        index.wait_for_merges();
        prop_assert_eq!(lookup_all(&index, 4000..7000).iter().flatten().count(), 3000);
    }
}
