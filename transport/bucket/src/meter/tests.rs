use std::sync::Arc;

use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

use super::*;

#[tokio::test]
async fn calls_and_bytes_of_any_backend_are_counted() {
    let meter = Meter::new();
    let store: Arc<dyn ObjectStore> = Arc::new(MeteredStore::new(InMemory::new(), meter.clone()));
    let key = "a".into();
    store.put(&key, "12345".into()).await.expect("put");
    store.put_opts(&key, "12345".into(), PutMode::Create.into()).await.expect_err("it exists");
    store.get(&key).await.expect("get").bytes().await.expect("bytes");
    store.get_range(&key, 1..3).await.expect("range");
    store.head(&key).await.expect("head");
    store.list(None).try_collect::<Vec<_>>().await.expect("list");
    store.delete(&key).await.expect("delete");
    let mut upload = store.put_multipart(&key).await.expect("begun");
    upload.put_part("123".into()).await.expect("part");
    upload.complete().await.expect("completed");
    let traffic = meter.traffic();
    assert_eq!(
        traffic,
        Traffic {
            seconds: traffic.seconds,
            puts: 5,
            gets: 3,
            lists: 1,
            deletes: 1,
            bytes_sent: 13,
            bytes_received: 7,
            ..Traffic::default()
        }
    );
}

#[test]
fn an_answer_that_there_is_nothing_is_no_error() {
    let outcome = |cause| Outcome::of(&BucketError::new("get", "", cause));
    assert_eq!(outcome(Cause::NotFound), Outcome::Done);
    assert_eq!(outcome(Cause::Lost), Outcome::Failed);
    assert_eq!(outcome(Cause::Busy { status: 503, code: "SlowDown".into() }), Outcome::Throttled);
}

#[tokio::test]
async fn traffic_is_told_as_json() {
    let text = serde_json::to_string(&Meter::new().traffic()).expect("JSON");
    assert!(text.contains("\"bytes_sent\":0"), "{text}");
    assert_eq!(serde_json::from_str::<Traffic>(&text).expect("read"), Traffic::default());
}
