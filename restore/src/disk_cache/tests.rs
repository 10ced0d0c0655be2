use std::os::unix::fs::PermissionsExt;

use super::*;

fn cache(folder: &Path, size_bytes_max: u64) -> DiskCache {
    DiskCache::open(&CacheOptions { folder: Some(folder.to_owned()), size_bytes_max }).unwrap()
}

fn bytes_of(number: u8) -> (Hash, Vec<u8>) {
    let bytes = vec![number; 1000];
    (Hash::of(&bytes), bytes)
}

#[test]
fn what_is_put_is_there_for_another_process_too() {
    let folder = tempfile::tempdir().unwrap();
    let (hash, bytes) = bytes_of(1);
    cache(folder.path(), 10_000).put(Kind::Frame, &hash, &[&bytes[..10], &bytes[10..]]);
    let other = cache(folder.path(), 10_000);
    assert_eq!(other.get(Kind::Frame, &hash), Some(bytes));
    assert_eq!(other.get(Kind::Index, &hash), None);
    other.remove(Kind::Frame, &hash);
    assert!(!other.has(Kind::Frame, &hash));
}

#[test]
fn it_stays_below_its_limit_whoever_has_written() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (cache(folder.path(), 10_000), cache(folder.path(), 10_000));
    for number in 0..100 {
        let (hash, bytes) = bytes_of(number);
        [&one, &two][usize::from(number % 2)].put(Kind::Frame, &hash, &[&bytes]);
        let (hash, bytes) = bytes_of(number);
        assert_eq!(one.get(Kind::Frame, &hash), Some(bytes), "the newest stays");
    }
    let used = |cache: &DiskCache| cache.files().iter().map(|file| file.bytes).sum::<u64>();
    // Each knows what the other has written when it makes room.
    assert!(used(&one) <= 20_000, "{}", used(&one));
    cache(folder.path(), 0).put(Kind::Frame, &Hash([1; 32]), &[b"more than nothing"]);
    assert!(!one.has(Kind::Frame, &Hash([1; 32])));
}

#[test]
fn only_its_owner_can_look_into_it() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(&folder.path().join("new"), 10_000);
    let (hash, bytes) = bytes_of(1);
    cache.put(Kind::Frame, &hash, &[&bytes]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join("new")), 0o700);
    assert_eq!(mode(&cache.path(Kind::Frame, &hash)), 0o600);
    assert_eq!(mode(&cache.store_folder(&hash).unwrap()), 0o700);
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let options = CacheOptions { folder: Some(folder.path().join("file")), size_bytes_max: 1 };
    let Err(error) = DiskCache::open(&options) else { panic!("it was opened") };
    assert!(error.to_string().contains("file"), "{error}");
}
