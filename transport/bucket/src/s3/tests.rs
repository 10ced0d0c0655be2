use std::time::{Duration, Instant};

use journal_format::ErrorKind;
use object_store::{ObjectStoreExt, WriteMultipart};

use super::*;
use crate::testing::{Action, BUCKET, Connected, Proxy, Rule, S3Server, SECRET, connect, key_file, options};

const BUSY: Action = Action::Answer {
    status: 503,
    headers: "retry-after: 1\r\ncontent-type: application/xml\r\n",
    body: "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
};
const FAILED: Action = Action::Answer { status: 500, headers: "", body: "" };

/// A server behind a proxy with these rules.
async fn spoiled(rules: impl IntoIterator<Item = Rule>) -> (S3Server, Proxy, Connected) {
    let server = S3Server::start().await;
    let proxy = Proxy::start(server.address, rules).await;
    let connected = connect(proxy.url(), |_| ());
    (server, proxy, connected)
}

fn content(bytes: usize) -> Bytes {
    crate::conformance::content(7, bytes)
}

async fn create(store: &S3Store, key: &Path, content: Bytes) -> Result<(), BucketError> {
    let put = store.put_opts(key, content.into(), PutMode::Create.into()).await;
    put.map(drop).map_err(|error| BucketError::from_store_error("put", key.as_ref(), error))
}

async fn read(store: &S3Store, key: &Path) -> Result<Bytes, BucketError> {
    let failed = |error| BucketError::from_store_error("get", key.as_ref(), error);
    store.get(key).await.map_err(failed)?.bytes().await.map_err(failed)
}

/// Begins an upload that must not replace anything, with parts of 5 MiB.
async fn upload(store: &S3Store, key: &Path, content: &Bytes) -> Result<(), BucketError> {
    let mut options = PutMultipartOptions::default();
    options.extensions.insert(IfAbsent);
    let failed = |error| BucketError::from_store_error("put", key.as_ref(), error);
    let mut upload = store.put_multipart_opts(key, options).await.map_err(failed)?;
    for start in (0..content.len()).step_by(5 << 20) {
        let part = content.slice(start..content.len().min(start + (5 << 20)));
        upload.put_part(part.into()).await.map_err(failed)?;
    }
    upload.complete().await.map(drop).map_err(failed)
}

#[tokio::test]
async fn slow_down_is_obeyed() {
    let rule = Rule { times: 2, ..Rule::once("PUT", "object", BUSY) };
    let (_server, proxy, Connected { store, meter, _keys }) = spoiled([rule]).await;
    let begun = Instant::now();
    create(&store, &"object".into(), content(1000)).await.expect("put in the end");
    assert!(begun.elapsed() >= Duration::from_secs(2), "each Retry-After is waited for");
    assert_eq!(proxy.count("PUT", "object"), 3);
    let traffic = meter.traffic();
    let counted = (traffic.puts, traffic.errors, traffic.throttled, traffic.retries, traffic.bytes_sent);
    assert_eq!(counted, (3, 2, 2, 2, 3000));
}

#[tokio::test]
async fn a_put_is_repeated_after_a_reset_in_its_middle() {
    let reset = Rule { times: 3, ..Rule::once("PUT", "object", Action::ResetInBody(500_000)) };
    let (_server, proxy, Connected { store, _keys, .. }) = spoiled([reset]).await;
    let (key, content) = (Path::from("object"), content(1_000_000));
    create(&store, &key, content.clone()).await.expect("put in the end");
    assert_eq!(read(&store, &key).await.expect("read"), content);
    assert_eq!(proxy.count("PUT", "object"), 4);
}

#[tokio::test]
async fn a_part_is_repeated_after_a_reset_in_its_middle() {
    let reset =
        Rule { after: 1, times: 2, ..Rule::once("PUT", "partNumber", Action::ResetInBody(1_000_000)) };
    let (_server, proxy, Connected { store, _keys, .. }) = spoiled([reset]).await;
    let (key, content) = (Path::from("object"), content((5 << 20) * 2 + 100));
    upload(&store, &key, &content).await.expect("put in the end");
    assert!(read(&store, &key).await.expect("read") == content);
    assert_eq!(proxy.count("PUT", "partNumber"), 5);
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_counts_as_put() {
    let lost = Rule { times: 2, ..Rule::once("PUT", "object", Action::LoseAnswer) };
    let (_server, proxy, Connected { store, _keys, .. }) = spoiled([lost]).await;
    let key = Path::from("object");
    create(&store, &key, content(1000)).await.expect("it was put by the first try");
    assert_eq!(proxy.count("PUT", "object"), 3);
    let again = create(&store, &key, content(1000)).await;
    assert_eq!(again.expect_err("another put of the same bytes").cause, Cause::Exists);
}

#[tokio::test]
async fn what_somebody_else_put_does_not_count_as_put() {
    let (server, _proxy, Connected { store, _keys, .. }) =
        spoiled([Rule::once("PUT", "object", FAILED)]).await;
    let other = connect(server.url(), |_| ());
    for others in [crate::conformance::content(1, 1000), crate::conformance::content(1, 1001)] {
        let key = Path::from(format!("object-{}", others.len()));
        create(&other.store, &key, others.clone()).await.expect("the other one's put");
        let error = create(&store, &key, content(1000)).await.expect_err("it exists");
        assert_eq!(error.cause, Cause::Exists);
        assert_eq!(read(&store, &key).await.expect("read"), others);
    }
}

#[tokio::test]
async fn an_upload_whose_completion_is_lost_counts_as_put() {
    let (_server, proxy, Connected { store, _keys, .. }) =
        spoiled([Rule::once("POST", "uploadId", Action::LoseAnswer)]).await;
    let (key, content) = (Path::from("object"), content((5 << 20) + 100));
    upload(&store, &key, &content).await.expect("it was completed by the first try");
    assert_eq!(proxy.count("POST", "uploadId"), 2);
    assert!(read(&store, &key).await.expect("read") == content);
}

#[tokio::test]
async fn an_error_with_status_200_is_an_error() {
    let body = "<?xml version=\"1.0\"?><Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>";
    let failed = Action::Answer { status: 200, headers: "content-type: application/xml\r\n", body };
    let (_server, proxy, Connected { store, _keys, .. }) =
        spoiled([Rule::once("POST", "uploadId", failed)]).await;
    let (key, content) = (Path::from("object"), content(100));
    upload(&store, &key, &content).await.expect("completed by the second try");
    assert_eq!(proxy.count("POST", "uploadId"), 2);
    assert_eq!(read(&store, &key).await.expect("read"), content);
}

#[tokio::test]
async fn an_upload_that_is_dropped_is_aborted() {
    let (_server, proxy, Connected { store, meter, _keys }) = spoiled([]).await;
    let mut writer = WriteMultipart::new(store.put_multipart(&"object".into()).await.expect("begun"));
    writer.write(b"something");
    drop(writer);
    while meter.traffic().deletes == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(proxy.count("DELETE", "uploadId"), 1);
}

#[tokio::test]
async fn reading_goes_on_where_an_answer_broke_off() {
    let truncated = Rule { times: 2, ..Rule::once("GET", "object", Action::TruncateAnswer(400_000)) };
    let (_server, proxy, Connected { store, meter, _keys }) = spoiled([truncated]).await;
    let (key, content) = (Path::from("object"), content(1_000_000));
    create(&store, &key, content.clone()).await.expect("put");
    assert_eq!(read(&store, &key).await.expect("read"), content);
    assert_eq!(proxy.count("GET", "object"), 3);
    assert_eq!(meter.traffic().bytes_received, 1_000_000, "nothing is read twice");
}

#[tokio::test]
async fn reading_does_not_go_on_in_another_object() {
    let truncated = Rule::once("GET", "object", Action::TruncateAnswer(1000));
    let (_server, _proxy, Connected { store, _keys, .. }) = spoiled([truncated]).await;
    let key = Path::from("object");
    store.put(&key, content(100_000).into()).await.expect("put");
    let found = store.get(&key).await.expect("begun");
    store.put(&key, crate::conformance::content(8, 100_000).into()).await.expect("replaced");
    let read = found.bytes().await.map(|bytes| bytes.len());
    let error = BucketError::from_store_error("get", "", read.expect_err("it changed"));
    assert_eq!(error.cause, Cause::Changed);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_asked_again() {
    let server = S3Server::start().await;
    let stalls = ["PUT", "GET"].map(|method| Rule::once(method, "object", Action::Stall));
    let proxy = Proxy::start(server.address, stalls).await;
    let Connected { store, _keys, .. } =
        connect(proxy.url(), |options| options.retry.request_base = Duration::from_secs(1));
    let key = Path::from("object");
    create(&store, &key, content(1000)).await.expect("put in the end");
    assert_eq!(read(&store, &key).await.expect("read in the end"), content(1000));
    assert!(proxy.count("PUT", "object") >= 2);
}

#[tokio::test]
async fn a_list_that_breaks_off_is_asked_for_again() {
    let truncated = Rule::once("GET", "list-type=2", Action::TruncateAnswer(150));
    let (_server, proxy, Connected { store, _keys, .. }) = spoiled([truncated]).await;
    for name in ["a/1", "a/2"] {
        create(&store, &name.into(), content(10)).await.expect("put");
    }
    let listed: Vec<_> = store.list(None).collect().await;
    assert_eq!(listed.into_iter().filter(Result::is_ok).count(), 2);
    assert_eq!(proxy.count("GET", "list-type=2"), 2);
}

/// A page of a list, with one name.
fn page(name: &str, next: &str) -> String {
    format!(
        "<ListBucketResult><IsTruncated>{}</IsTruncated>{next}<Contents><Key>{name}</Key><Size>5</Size></Contents></ListBucketResult>",
        !next.is_empty()
    )
}

#[tokio::test]
async fn pages_of_a_list_are_followed_and_one_without_an_end_is_an_error() {
    let more = "<NextContinuationToken>more</NextContinuationToken>";
    let answer = |body: String| Action::Answer { status: 200, headers: "", body: body.leak() };
    let rules = [
        Rule::once("GET", "continuation-token=more", answer(page("b", ""))),
        Rule::once("GET", "continuation-token=more", answer(page("b", more))),
        Rule { times: 2, ..Rule::once("GET", "list-type=2", answer(page("a", more))) },
    ];
    let (_server, _proxy, Connected { store, _keys, .. }) = spoiled(rules).await;
    let names =
        async || store.list(None).map(|meta| meta.map(|meta| meta.location)).collect::<Vec<_>>().await;
    let listed: Vec<Path> = names().await.into_iter().collect::<Result<_>>().expect("two pages");
    assert_eq!(listed, ["a".into(), "b".into()]);
    let error =
        names().await.into_iter().collect::<Result<Vec<_>>>().expect_err("a page that leads to itself");
    let error = BucketError::from_store_error("list", "", error);
    assert!(matches!(error.cause, Cause::BadAnswer { .. }), "{error}");
}

#[tokio::test]
async fn a_range_that_is_ignored_is_not_mistaken_for_the_range() {
    let whole = Action::Answer { status: 200, headers: "etag: \"1\"\r\n", body: "the whole object" };
    let (_server, _proxy, Connected { store, _keys, .. }) =
        spoiled([Rule::always("GET", "object", whole)]).await;
    let error = store.get_range(&"object".into(), 4..9).await.expect_err("no range");
    let error = BucketError::from_store_error("get", "", error);
    assert!(matches!(error.cause, Cause::NotSupported { .. }), "{error}");
}

/// What a put meets when it is answered so, and how often it was tried.
async fn refusal(action: Action) -> (BucketError, usize) {
    let (_server, proxy, Connected { store, _keys, .. }) =
        spoiled([Rule::always("PUT", "object", action)]).await;
    let error = create(&store, &"object".into(), content(10)).await.expect_err("refused");
    (error, proxy.count("PUT", "object"))
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_told_by_how_much_and_not_tried_again() {
    let action = Action::Answer {
        status: 403,
        headers: "date: Wed, 21 Oct 2015 07:28:00 GMT\r\n",
        body: "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>",
    };
    let (error, tries) = refusal(action).await;
    let Cause::ClockSkew { behind_seconds: Some(behind) } = error.cause else { panic!("{error}") };
    assert!(behind < -300_000_000, "this machine is years ahead: {behind}");
    assert_eq!((tries, error.kind()), (1, ErrorKind::Retry));
    assert!(error.hint().is_some_and(|hint| hint.contains("NTP")));
}

#[tokio::test]
async fn a_condition_that_is_not_implemented_is_an_error_of_the_dialect() {
    let body = "<Error><Code>NotImplemented</Code><Message>A header you provided implies functionality that is not implemented</Message></Error>";
    let (error, tries) = refusal(Action::Answer { status: 501, headers: "", body }).await;
    assert!(matches!(error.cause, Cause::Dialect { status: 501, .. }), "{error}");
    assert_eq!((tries, error.kind()), (1, ErrorKind::Invalid));
}

#[tokio::test]
async fn the_right_region_is_told() {
    let headers = "x-amz-bucket-region: eu-central-1\r\n";
    let body = "<Error><Code>PermanentRedirect</Code><Message>The bucket is elsewhere.</Message></Error>";
    let (error, tries) = refusal(Action::Answer { status: 301, headers, body }).await;
    assert_eq!(error.cause, Cause::WrongRegion { region: Some("eu-central-1".into()) });
    assert_eq!(tries, 1);
    assert!(error.hint().is_some_and(|hint| hint.contains("region = \"eu-central-1\"")));
}

#[tokio::test]
async fn a_server_that_only_fails_is_given_up_at_the_deadline() {
    let server = S3Server::start().await;
    let proxy = Proxy::start(server.address, [Rule::always("PUT", "object", FAILED)]).await;
    let Connected { store, _keys, .. } =
        connect(proxy.url(), |options| options.retry.deadline = Duration::from_millis(300));
    let error = create(&store, &"object".into(), content(10)).await.expect_err("given up");
    assert!(matches!(error.cause, Cause::Server { status: 500, .. }), "{error}");
    assert_eq!(error.tries as usize, proxy.count("PUT", "object"));
}

/// What a put meets with these keys; the error shows nothing of them.
async fn refused_keys(id: &str, secret: &str) -> Cause {
    let server = S3Server::start().await;
    let keys = key_file(id, secret);
    let store = S3Store::new(&options(server.url(), &keys), Meter::new());
    let error = create(&store, &"object".into(), content(10)).await.expect_err("refused");
    let shown = format!("{error} {error:?} {:?} {store:?}", error.hint());
    assert!(!shown.contains(secret) && !shown.contains(SECRET), "{shown}");
    error.cause
}

#[tokio::test]
async fn wrong_keys_are_told_apart_and_never_shown() {
    assert_eq!(refused_keys("AKIDFORTESTS", "not-the-secret").await, Cause::WrongSecret);
    assert_eq!(refused_keys("NOBODY", "not-the-secret").await, Cause::UnknownKey);
}

#[tokio::test]
async fn a_file_of_keys_that_is_gone_is_told() {
    let server = S3Server::start().await;
    let connected = connect(server.url(), |options| {
        options.credentials = CredentialsSource::File("/nonexistent/keys".into());
    });
    let error = create(&connected.store, &"object".into(), content(10)).await.expect_err("no keys");
    assert!(matches!(error.cause, Cause::NoCredentials { .. }), "{error} {error:?}");
}

#[tokio::test]
async fn a_bucket_that_is_missing_is_told() {
    let body =
        "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>";
    let (error, tries) = refusal(Action::Answer { status: 404, headers: "", body }).await;
    assert_eq!((error.cause.clone(), tries), (Cause::NoBucket, 1));
    assert!(error.to_string().contains(BUCKET), "{error}");
}

#[tokio::test]
async fn an_endpoint_where_nobody_listens_is_told() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    drop(listener);
    let connected = connect(format!("http://{address}"), |options| {
        options.retry.deadline = Duration::from_millis(50);
    });
    let error = create(&connected.store, &"object".into(), content(10)).await.expect_err("nobody");
    assert_eq!(error.cause, Cause::Refused, "{error:?}");
}

#[tokio::test]
async fn an_authority_of_the_settings_is_trusted_and_no_other() {
    let server = S3Server::start_tls().await;
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), server.certificate.as_ref().expect("it speaks TLS")).expect("written");
    let endpoint = format!("https://localhost:{}", server.address.port());
    let authority = Authority::read(file.path()).expect("a certificate");
    let trusting = connect(endpoint.clone(), |options| options.authority = Some(authority));
    create(&trusting.store, &"object".into(), content(10)).await.expect("trusted");

    let other = connect(endpoint, |_| ());
    let error = create(&other.store, &"object".into(), content(10)).await.expect_err("not trusted");
    assert!(matches!(&error.cause, Cause::Tls { reason } if reason.contains("UnknownIssuer")), "{error:?}");
    assert_eq!(error.tries, 1, "it does not pass by itself");
}

#[tokio::test]
async fn a_server_without_tls_is_told() {
    let server = S3Server::start().await;
    let connected = connect(format!("https://{}", server.address), |options| {
        options.retry.deadline = Duration::from_millis(50);
    });
    let error = create(&connected.store, &"object".into(), content(10)).await.expect_err("no TLS");
    assert!(matches!(error.cause, Cause::Tls { .. }), "{error:?}");
}

#[tokio::test]
async fn puts_under_way_are_bounded_over_all_users_of_a_store() {
    let server = S3Server::start().await;
    let proxy = Proxy::start(server.address, [Rule::always("PUT", "object", Action::Stall)]).await;
    let Connected { store, _keys, .. } = connect(proxy.url(), |options| options.uploads_max = 2);
    let puts: Vec<_> = (0..5)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { create(&store, &format!("object-{number}").into(), content(10)).await })
        })
        .collect();
    while proxy.count("PUT", BUCKET) < 2 {
        tokio::task::yield_now().await;
    }
    // The others wait for a permit, not for the network: nothing is under way that could still arrive.
    while store.shared.uploads.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(proxy.count("PUT", BUCKET), 2);
    puts.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn attributes_are_refused_and_not_dropped() {
    let server = S3Server::start().await;
    let connected = connect(server.url(), |_| ());
    let mut options = PutOptions::default();
    options.attributes.insert(object_store::Attribute::ContentType, "text/plain".into());
    let put = connected.store.put_opts(&"object".into(), content(1).into(), options).await;
    assert!(matches!(put, Err(Error::NotSupported { .. })));
}
