use super::*;

#[test]
fn an_error_survives_the_trait() {
    for cause in
        [Cause::NotFound, Cause::Exists, Cause::Changed, Cause::Denied, Cause::WrongSecret, Cause::Lost]
    {
        let mut error = BucketError::new("put", "s3://bucket/object", cause.clone());
        error.tries = 3;
        let back = BucketError::from_store_error("other", "other", error.into_store_error());
        assert_eq!((back.cause, back.tries, back.operation), (cause, 3, "put"));
    }
}

#[test]
fn an_error_of_a_folder_is_understood() {
    let full =
        StoreError::Generic { store: "local", source: Box::new(io::Error::from(io::ErrorKind::StorageFull)) };
    let error = BucketError::from_store_error("put", "object", full);
    assert_eq!((error.kind(), error.cause), (ErrorKind::Full, Cause::Full));
}

#[test]
fn a_message_says_what_where_and_how_often() {
    let mut error =
        BucketError::new("put", "s3://bucket/object", Cause::ClockSkew { behind_seconds: Some(-1200) });
    assert_eq!(
        error.to_string(),
        "cannot put 's3://bucket/object': the server refuses this machine's clock, which is 1200 s ahead of its own"
    );
    error.cause = Cause::Lost;
    error.tries = 5;
    error.over = Duration::from_secs(600);
    assert_eq!(
        error.to_string(),
        "cannot put 's3://bucket/object': the connection was lost (tried 5 times in 600 s)"
    );
}
