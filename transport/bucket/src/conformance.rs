//! What every backend must do, as one suite. A violation panics, as an assertion of a test does.

mod client;

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use object_store::path::Path;
use object_store::{GetRange, ObjectStore, PutMode};

pub use self::client::Client;
use crate::probe::Ability;
use crate::put_file::{PART_BYTES, PUT_BYTES_MAX};
use crate::store_error::Cause;

/// Writers of one name at the same time.
const RACERS: usize = 16;

/// Runs all of it below the folder `name`, which must be empty. `tries` is how often a call that fails is made: 1 for a backend
/// that must not fail, more for one behind a [`crate::faults::FaultStore`].
///
/// # Panics
/// If the backend does something else than it must.
pub async fn run(store: Arc<dyn ObjectStore>, name: &str, tries: u32) {
    let client = |part: &str| Client::new(Arc::clone(&store), Path::from_iter([name, part]), tries);
    contents_come_back(&client("contents")).await;
    ranges_are_read(&client("ranges")).await;
    what_is_not_there_is_not_found(&client("missing")).await;
    an_object_is_replaced_only_on_request(&client("once")).await;
    one_of_many_writers_wins(&client("race")).await;
    lists_are_whole(&client("list")).await;
    what_is_deleted_is_gone(&client("delete")).await;
    files_are_put_in_parts(&client("files")).await;
    an_upload_leaves_nothing_unless_completed(&client("uploads")).await;
    an_upload_that_wins_is_whole(&client("upload-race")).await;
    if tries == 1 {
        // A fault, of which it knows nothing, is for it something that the server cannot do.
        the_probe_finds_every_ability(&client("probed")).await;
    }
}

/// Bytes that no other seed gives.
#[must_use]
pub fn content(seed: u64, bytes: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut content = vec![0; bytes];
    random.fill(&mut content);
    content.into()
}

async fn contents_come_back(client: &Client) {
    let sizes = [0, 1, 1000, 65_536, 1_000_000];
    for (seed, bytes) in (0..).zip(sizes) {
        for name in
            ["plain", "g0000000001-c0000000001-s00000000000000000001.seg", "a.b_c-d/e~f", "UPPER and space"]
        {
            let key = client.key(&format!("{bytes}/{name}"));
            let content = content(seed, bytes);
            client.put(&key, content.clone(), PutMode::Overwrite).await.expect("put");
            assert_eq!(client.get(&key).await.expect("get"), content, "{key}");
            assert_eq!(client.head(&key).await.expect("head").size, bytes as u64, "{key}");
        }
    }
}

async fn ranges_are_read(client: &Client) {
    let (key, content) = (client.key("object"), content(1, 10_000));
    client.put(&key, content.clone(), PutMode::Overwrite).await.expect("put");
    let check = async |range: GetRange, expected: &[u8]| {
        assert_eq!(client.get_range(&key, range.clone()).await.expect("range"), expected, "{range}");
    };
    check(GetRange::Bounded(0..1), &content[..1]).await;
    check(GetRange::Bounded(1234..5678), &content[1234..5678]).await;
    check(GetRange::Bounded(9000..20_000), &content[9000..]).await;
    check(GetRange::Offset(9999), &content[9999..]).await;
    check(GetRange::Suffix(100), &content[9900..]).await;
    let behind = client.get_range(&key, GetRange::Bounded(10_000..10_001)).await;
    assert!(behind.is_err(), "a range behind the end is not empty but wrong: {behind:?}");
}

async fn what_is_not_there_is_not_found(client: &Client) {
    let key = client.key("nothing");
    assert_eq!(client.get(&key).await.expect_err("get").cause, Cause::NotFound);
    assert_eq!(client.head(&key).await.expect_err("head").cause, Cause::NotFound);
    let range = client.get_range(&key, GetRange::Bounded(0..1)).await;
    assert_eq!(range.expect_err("range").cause, Cause::NotFound);
    assert_eq!(client.list(None, None).await, Vec::<String>::new());
}

async fn an_object_is_replaced_only_on_request(client: &Client) {
    let key = client.key("object");
    let [first, second, third] = [1, 2, 3].map(|seed| content(seed, 1000));
    client.put(&key, first.clone(), PutMode::Create).await.expect("the first put");
    let again = client.put(&key, second, PutMode::Create).await;
    assert_eq!(again.expect_err("the second put").cause, Cause::Exists);
    assert_eq!(client.get(&key).await.expect("get"), first, "a put that is refused changes nothing");
    client.put(&key, third.clone(), PutMode::Overwrite).await.expect("overwrite");
    assert_eq!(client.get(&key).await.expect("get"), third);
}

async fn one_of_many_writers_wins(client: &Client) {
    for round in 0..3 {
        let key = client.key(&format!("round-{round}"));
        let contents: Vec<Bytes> = (0..RACERS).map(|writer| content(writer as u64, 2000)).collect();
        let puts = contents.iter().map(|content| client.put(&key, content.clone(), PutMode::Create));
        let results = join_all(puts).await;
        check_one_winner(client, &key, &contents, &results).await;
    }
}

async fn check_one_winner(
    client: &Client,
    key: &Path,
    contents: &[Bytes],
    results: &[Result<(), crate::BucketError>],
) {
    let winners: Vec<usize> = (0..contents.len()).filter(|&writer| results[writer].is_ok()).collect();
    assert_eq!(winners.len(), 1, "exactly one writer wins: {results:?}");
    let others = results.iter().filter_map(|result| result.as_ref().err());
    for error in others {
        assert_eq!(error.cause, Cause::Exists);
    }
    assert_eq!(client.get(key).await.expect("get"), contents[winners[0]], "and its bytes are there");
}

async fn lists_are_whole(client: &Client) {
    let names: Vec<String> = (0..25).map(|number| format!("a/{number:03}")).collect();
    for name in names.iter().map(String::as_str).chain(["a-b/1", "ab", "b/c/d", "b/e"]) {
        client.put(&client.key(name), content(1, 10), PutMode::Overwrite).await.expect("put");
    }
    assert_eq!(client.list(Some("a"), None).await, names, "a prefix ends at a slash");
    let behind: Vec<String> = names[11..].to_vec();
    assert_eq!(client.list(Some("a"), Some("a/010")).await, behind, "the offset itself is not listed");
    assert_eq!(client.list(Some("a"), Some("a/999")).await, Vec::<String>::new());
    assert_eq!(client.list(Some("c"), None).await, Vec::<String>::new());
    assert_eq!(client.list(None, None).await.len(), names.len() + 4);
    let (folders, objects) = client.level().await;
    assert_eq!(folders, ["a", "a-b", "b"]);
    assert_eq!(objects, ["ab"]);
}

async fn what_is_deleted_is_gone(client: &Client) {
    let (key, other) = (client.key("gone"), client.key("gone-not"));
    for key in [&key, &other] {
        client.put(key, content(1, 100), PutMode::Create).await.expect("put");
    }
    client.delete(&key).await.expect("delete");
    assert_eq!(client.get(&key).await.expect_err("get").cause, Cause::NotFound);
    assert_eq!(client.list(None, None).await, ["gone-not"]);
    client.delete(&key).await.expect("what is not there is deleted");
    client.put(&key, content(2, 100), PutMode::Create).await.expect("its name is free again");
}

async fn files_are_put_in_parts(client: &Client) {
    let large = usize::try_from(PUT_BYTES_MAX + PART_BYTES / 3).expect("it fits");
    for (seed, bytes) in [(1, 1000), (2, large)] {
        let (key, content) = (client.key(&format!("{bytes}.seg")), content(seed, bytes));
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&content)
            .and_then(|()| file.write_all(b"what is behind is not put"))
            .expect("written");
        let file: Arc<File> = Arc::new(file);
        client.put_file(&key, &file, bytes as u64, &content).await.expect("put");
        assert!(client.get(&key).await.expect("get") == content, "{key} comes back");
        let other = Arc::new(tempfile::tempfile().expect("a temporary file"));
        other.set_len(bytes as u64).expect("zeroes");
        let again = client.put_file(&key, &other, bytes as u64, &vec![0; bytes].into()).await;
        assert_eq!(again.expect_err("it exists").cause, Cause::Exists);
        assert!(client.get(&key).await.expect("get") == content, "{key} is not replaced");
    }
}

async fn an_upload_leaves_nothing_unless_completed(client: &Client) {
    let key = client.key("object");
    for aborted in [true, false] {
        let mut upload = client.begin_upload(&key).await;
        // With faults the part may fail, which does not matter here.
        drop(upload.put_part(content(1, 1000).into()).await);
        if aborted {
            upload.abort().await.expect("aborted");
        }
        drop(upload);
        assert_eq!(client.get(&key).await.expect_err("get").cause, Cause::NotFound);
        assert_eq!(client.list(None, None).await, Vec::<String>::new());
    }
}

async fn an_upload_that_wins_is_whole(client: &Client) {
    let key = client.key("object");
    let contents: Vec<Bytes> = (0..RACERS).map(|writer| content(writer as u64, 2000)).collect();
    let puts = contents.iter().map(|content| client.put_in_parts(&key, content.clone()));
    let results = join_all(puts).await;
    // Not exactly one: SeaweedFS 4.48 lets several through that complete within the same milliseconds. Nothing rests on it, because
    // what keeps writers apart, a claim, is put at once.
    let won: Vec<&Bytes> =
        (0..RACERS).filter(|&writer| results[writer].is_ok()).map(|writer| &contents[writer]).collect();
    let found = client.get(&key).await.expect("get");
    assert!(won.contains(&&found), "{} writers won, and another one's bytes are there", won.len());
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(error.cause, Cause::Exists);
    }
}

async fn the_probe_finds_every_ability(client: &Client) {
    let report = client.probe().await;
    let abilities = [
        &report.read_after_write,
        &report.put_if_absent,
        &report.multipart_if_absent,
        &report.ranged_reads,
        &report.listing,
        &report.deletion,
    ];
    assert!(abilities.iter().all(|ability| **ability == Ability::Yes), "{report:?}");
}

#[cfg(test)]
mod tests;
