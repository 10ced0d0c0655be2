use std::fs;

use super::*;

const NAME: RunName = RunName { shard: 3, newest: 0x12, oldest: 0x10 };

fn entry(place: u64) -> Entry {
    let location = Location::new(place as u32 / 100, 0, 0, 0).unwrap();
    Entry { fingerprint: Fingerprint(3 << 60 | place << 40 | 1), location }
}

fn write(folder: &Path, entries: u64) -> Run {
    let mut writer = Writer::new(folder, NAME).unwrap();
    (0..entries).for_each(|place| writer.push(entry(place)).unwrap());
    writer.finish().unwrap().unwrap()
}

fn read(run: &Run) -> Vec<Entry> {
    let mut reader = Reader::new(run.pages()).unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = reader.current() {
        entries.push(entry);
        reader.advance().unwrap();
    }
    entries
}

fn check_whole(run: &Run, entries: u64) {
    assert_eq!(run.entries(), entries);
    for place in 0..entries {
        let entry = entry(place);
        assert!(run.may_hold(entry.fingerprint));
        assert_eq!(run.find(entry.fingerprint).unwrap(), Some(entry.location));
        let missing = Fingerprint(entry.fingerprint.0 + 1);
        assert_eq!(run.find(missing).unwrap(), None);
    }
    assert_eq!(run.find(Fingerprint(3 << 60)).unwrap(), None);
    assert_eq!(read(run), (0..entries).map(entry).collect::<Vec<_>>());
}

#[test]
fn run_holds_its_entries_when_written_and_when_opened() {
    for entries in [1, 255, 256, 257, 64 * 256, 20_000] {
        let folder = tempfile::tempdir().unwrap();
        let run = write(folder.path(), entries);
        check_whole(&run, entries);
        let opened = Run::open(run.path()).unwrap();
        check_whole(&opened, entries);
        assert_eq!(opened.filter, run.filter);
        assert_eq!(opened.ages(), run.ages());
        assert_eq!(opened.file_bytes(), fs::metadata(run.path()).unwrap().len());
    }
}

#[test]
fn ages_are_sixteenths_of_the_entries() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), 160_000);
    for (part, &age) in run.ages().iter().enumerate() {
        assert!(age.abs_diff((part as u32 + 1) * 100) <= 2, "{part}: {age}");
    }
    assert_eq!(run.ages()[AGES - 1], 1599);
}

#[test]
fn empty_run_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Writer::new(folder.path(), NAME).unwrap().finish().unwrap().is_none());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn damage_of_header_or_tail_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), 1000);
    let whole = fs::read(run.path()).unwrap();
    let tail = page_offset(run.pages.fences.len()) as usize;
    for place in (0..176).chain((tail..whole.len()).step_by(7)) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        fs::write(run.path(), &bytes).unwrap();
        assert!(Run::open(run.path()).is_err(), "byte {place}");
    }
    for length in [0, 1, 4095, 4096, 5000, whole.len() - 1] {
        fs::write(run.path(), &whole[..length]).unwrap();
        assert!(Run::open(run.path()).is_err(), "length {length}");
    }
    fs::write(run.path(), [&whole[..], &[0]].concat()).unwrap();
    assert!(Run::open(run.path()).is_err(), "one byte more");
}

#[test]
fn damaged_page_loses_only_its_own_entries() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), 1000);
    let mut bytes = fs::read(run.path()).unwrap();
    let second = page_offset(1) as usize;
    bytes[second..second + PAGE_BYTES].reverse();
    fs::write(run.path(), &bytes).unwrap();
    let run = Run::open(run.path()).unwrap();
    for place in (0..256).chain(512..1000) {
        assert_eq!(run.find(entry(place).fingerprint).unwrap(), Some(entry(place).location));
    }
    let (least, end) = (entry(256).fingerprint, entry(512).fingerprint);
    let others: Vec<_> =
        read(&run).into_iter().filter(|e| e.fingerprint < least || e.fingerprint >= end).collect();
    assert_eq!(others, (0..256).chain(512..1000).map(entry).collect::<Vec<_>>());
    assert!(read(&run).is_sorted_by(|a, b| a.fingerprint < b.fingerprint));
}

#[test]
fn v1_header_is_parsed() {
    let header = Header {
        name: NAME,
        entries: 1000,
        filter_blocks: 17,
        ages: std::array::from_fn(|i| i as u32),
        tail_hash: [7; 32],
    };
    let bytes = header.to_bytes();
    assert_eq!(bytes[..24], *b"3SITEIDX\x01\0\0\0\x03\0\0\0\xE8\x03\0\0\0\0\0\0");
    assert_eq!(bytes[24..48], *b"\x12\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0");
    assert_eq!(bytes[108..112], [15, 0, 0, 0]);
    assert_eq!(bytes[112..144], [7; 32]);
    assert_eq!(bytes[144..176], *blake3::hash(&bytes[..144]).as_bytes());
    assert_eq!(Header::parse(&bytes).unwrap(), header);
    assert_eq!(NAME.file_name(), "03-0000000000000012-0000000000000010.run");
    assert_eq!(RunName::of(Path::new("/x/03-0000000000000012-0000000000000010.run")), Some(NAME));
    assert_eq!(RunName::of(Path::new("03-0000000000000010-0000000000000012.run")), None);
}
