use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::testing::{group, peer};

fn fingerprint(digit: char) -> Fingerprint {
    String::from(digit).repeat(64).parse().unwrap()
}

fn entry(name: &str, digit: char, groups: &[&str]) -> EnrolledPeer {
    let groups = groups.iter().map(|name| group(name)).collect();
    EnrolledPeer { name: peer(name), fingerprint: fingerprint(digit), next_fingerprint: None, groups }
}

fn list() -> (TempDir, PathBuf) {
    let root = TempDir::new().unwrap();
    let path = root.path().join("enrolled.toml");
    (root, path)
}

#[test]
fn added_peers_are_loaded_and_removed() {
    let (_root, path) = list();
    let (pair, quad) = (entry("pair", '1', &["mail", "web"]), entry("quad", '2', &["db"]));
    let one = Enrolment::add(&path, pair.clone()).unwrap();
    assert_eq!(one.peers(), std::slice::from_ref(&pair));
    assert_eq!(Enrolment::add(&path, quad.clone()).unwrap().peers(), [pair.clone(), quad.clone()]);

    let loaded = Enrolment::load(&path).unwrap();
    assert_eq!(loaded.peers(), [pair.clone(), quad.clone()]);
    assert_eq!(loaded.find(&fingerprint('2')), Some(&quad));
    assert_eq!(loaded.find(&fingerprint('3')), None);

    let left = Enrolment::remove(&path, &peer("pair")).unwrap();
    assert_eq!(left.peers(), std::slice::from_ref(&quad));
    assert_eq!(Enrolment::load(&path).unwrap().peers(), [quad]);
    Enrolment::remove(&path, &peer("quad")).unwrap();
    assert_eq!(Enrolment::load(&path).unwrap(), Enrolment::default());
}

#[test]
fn missing_or_empty_list_admits_nobody() {
    let (_root, path) = list();
    assert_eq!(Enrolment::load(&path).unwrap(), Enrolment::default());
    for text in ["", " \n\n", "version = 1\n"] {
        fs::write(&path, text).unwrap();
        assert_eq!(Enrolment::load(&path).unwrap(), Enrolment::default(), "{text:?}");
    }
}

#[test]
fn adding_again_adds_groups_and_repeats_nothing() {
    let (_root, path) = list();
    Enrolment::add(&path, entry("pair", '1', &["mail"])).unwrap();
    Enrolment::add(&path, entry("pair", '1', &["web", "mail", "web"])).unwrap();
    let before = fs::read(&path).unwrap();
    Enrolment::add(&path, entry("pair", '1', &["mail"])).unwrap();
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(Enrolment::load(&path).unwrap().peers(), [entry("pair", '1', &["mail", "web"])]);
}

/// Adds to a list with `pair` (1, mail); expects an error with these words, and the list as it was.
fn check_refused(new: EnrolledPeer, words: &[&str]) -> EnrolmentError {
    let (root, path) = list();
    Enrolment::add(&path, entry("pair", '1', &["mail"])).unwrap();
    let before = fs::read(&path).unwrap();
    let error = Enrolment::add(&path, new).unwrap_err();
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing is left over");
    error
}

#[test]
fn name_fingerprint_and_group_belong_to_one_peer() {
    let (ones, twos) = ("1".repeat(64), "2".repeat(64));
    let error = check_refused(entry("pair", '2', &["web"]), &["'pair'", &ones, &twos]);
    assert!(matches!(error, EnrolmentError::SameName { .. }), "{error:?}");
    let error = check_refused(entry("quad", '1', &["web"]), &["'pair'", "'quad'", &ones]);
    assert!(matches!(error, EnrolmentError::SameFingerprint { .. }), "{error:?}");
}

#[test]
fn unknown_peer_cannot_be_removed() {
    let (_root, path) = list();
    Enrolment::add(&path, entry("pair", '1', &["mail"])).unwrap();
    let before = fs::read(&path).unwrap();
    let error = Enrolment::remove(&path, &peer("quad")).unwrap_err();
    assert!(matches!(error, EnrolmentError::Unknown { .. }), "{error:?}");
    assert!(error.to_string().contains("'quad'") && error.to_string().contains("enrolled.toml"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

fn peer_text(name: &str, digit: char, group: &str) -> String {
    let fingerprint = fingerprint(digit);
    format!("[[peer]]\nname = \"{name}\"\nfingerprint = \"{fingerprint}\"\ngroups = [\"{group}\"]\n")
}

/// Loads a list that somebody edited.
fn load(text: &str) -> Result<Enrolment, EnrolmentError> {
    let (_root, path) = list();
    fs::write(&path, text).unwrap();
    Enrolment::load(&path)
}

#[test]
fn edited_list_is_read() {
    let text = format!("# ours\nversion = 1\n\n{}", peer_text("pair", 'A', "mail"));
    assert_eq!(load(&text).unwrap().peers(), [entry("pair", 'a', &["mail"])]);
}

#[test]
fn edited_list_that_breaks_a_rule_is_refused() {
    let both = |one: String, other: String| load(&format!("version = 1\n{one}{other}")).unwrap_err();
    let pair = || peer_text("pair", '1', "mail");
    let error = both(pair(), pair());
    assert!(matches!(error, EnrolmentError::SameName { .. }), "{error:?}");
    let error = both(pair(), peer_text("quad", '1', "web"));
    assert!(matches!(error, EnrolmentError::SameFingerprint { .. }), "{error:?}");
}

#[test]
fn both_hosts_of_a_pair_may_have_the_same_group() {
    let (_root, path) = list();
    Enrolment::add(&path, entry("host-a", '1', &["mail"])).unwrap();
    let list = Enrolment::add(&path, entry("host-b", '2', &["mail"])).unwrap();
    assert_eq!(list.peers().len(), 2);
}

#[test]
fn malformed_list_names_the_file_and_keeps_what_the_parser_says() {
    let pair = peer_text("pair", '1', "mail");
    let cases = [
        (format!("version = 1\nadmin = true\n{pair}"), "admin"),
        (format!("version = 1\n{pair}group = [\"web\"]\n"), "group"),
        (format!("version = 1\n{}", pair.replace("fingerprint", "finger")), "finger"),
        (format!("version = 1\n{}", pair.replace("mail", "Mail")), "group name"),
        (format!("version = 1\n{}", pair.replace("\"pair\"", "\"\"")), "peer name"),
        (format!("version = 1\n{}", pair.replace("11", "1")), "64 hexadecimal digits"),
        (pair.clone(), "version"),
        ("version = 1\n[[peer]".to_owned(), "TOML"),
        ("version = 1\n[[peer]]\n".to_owned(), "name"),
    ];
    for (text, word) in cases {
        let error = load(&text).unwrap_err();
        assert!(matches!(error, EnrolmentError::Malformed { .. }), "{error:?}");
        assert!(error.to_string().contains("enrolled.toml"), "{error}");
        let source = error.source().unwrap().to_string();
        assert!(source.contains(word), "{source}");
    }
}

#[test]
fn list_of_another_version_is_told_as_such_whatever_else_it_has() {
    for text in ["version = 2\n", "version = 2\ndefault = \"deny\"\n[[source]]\nname = 1\n"] {
        let error = load(text).unwrap_err();
        assert!(matches!(error, EnrolmentError::Version { found: 2, .. }), "{error:?}");
    }
}

#[test]
fn list_that_is_too_large_is_not_read() {
    let error = load(&"#".repeat(FILE_BYTES_MAX as usize + 1)).unwrap_err();
    assert!(matches!(error, EnrolmentError::TooLarge { actual, .. } if actual == FILE_BYTES_MAX + 1));
}

#[test]
fn malformed_list_is_not_replaced_by_a_change() {
    let (_root, path) = list();
    fs::write(&path, "version = 1\npeers = 3\n").unwrap();
    Enrolment::add(&path, entry("pair", '1', &["mail"])).unwrap_err();
    Enrolment::remove(&path, &peer("pair")).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), b"version = 1\npeers = 3\n");
}

#[test]
fn interrupted_change_is_no_hindrance() {
    let (root, path) = list();
    Enrolment::add(&path, entry("pair", '1', &["mail"])).unwrap();
    // What a process leaves behind that is killed before the rename.
    let staging = root.path().join("enrolled.toml.new");
    fs::write(&staging, "version = 1\n[[pee").unwrap();
    assert_eq!(Enrolment::load(&path).unwrap().peers().len(), 1);
    Enrolment::add(&path, entry("quad", '2', &["web"])).unwrap();
    assert_eq!(Enrolment::load(&path).unwrap().peers().len(), 2);
    assert!(!staging.exists());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn readers_see_whole_lists_and_writers_lose_nothing() {
    let (_root, path) = list();
    Enrolment::add(&path, entry("always", 'f', &["there"])).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::Relaxed) {
                seen = Enrolment::load(&path).expect("every list that is seen is whole").peers().len();
                assert!(seen > 0, "the list was gone");
            }
            seen
        });
        let writers: Vec<_> = ['1', '2', '3', '4']
            .into_iter()
            .map(|digit| {
                let path = &path;
                scope.spawn(move || {
                    for index in 0..10 {
                        let groups = [&*format!("{digit}-{index}")];
                        Enrolment::add(path, entry(&format!("peer-{digit}"), digit, &groups)).unwrap();
                    }
                })
            })
            .collect();
        let written: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        assert!(written.iter().all(Result::is_ok));
    });
    let enrolment = Enrolment::load(&path).unwrap();
    let groups: usize = enrolment.peers().iter().map(|peer| peer.groups.len()).sum();
    assert_eq!((enrolment.peers().len(), groups), (5, 41));
}
