use super::*;

fn parse(text: &str) -> BucketSettings {
    toml::from_str(text).expect("settings")
}

fn refused(text: &str) -> String {
    let error = parse(text).check().expect_err("not usable").to_string();
    println!("{error}");
    error
}

const AWS: &str = "url = \"s3://backups/site-a\"\nregion = \"eu-central-1\"\ncredentials = \"instance\"\n";

#[test]
fn few_settings_are_enough() {
    let settings = parse(AWS);
    settings.check().expect("usable");
    assert_eq!(settings.uploads_max, 8);
    assert_eq!(settings.retry_policy(), RetryPolicy::default());
    assert_eq!((settings.fencing, settings.receipts), (Fencing::PutIfAbsent, Receipts::Stored));
    assert_eq!(settings.validate_interval, Duration::from_secs(5));
    parse("url = \"file:///srv/bucket\"").check().expect("usable");
}

#[test]
fn every_setting_is_understood() {
    let settings = parse(
        r#"
        url = "s3://backups"
        endpoint = "https://s3.example.net:9000"
        region = "garage"
        path_style = false
        ca_file = "ca.pem"
        system_roots = false
        credentials = { file = "keys" }
        checksums = "none"
        uploads_max = 3
        deadline = "5min"
        request_timeout = "20s"
        fencing = "none"
        receipts = "checked"
        heartbeat_interval = "2min"
        validate_interval = "10s"
        [prices]
        put_per_1000 = 0.005
        egress_per_gb = 0.09
        "#,
    );
    settings.check().expect("usable");
    assert_eq!((settings.fencing, settings.receipts), (Fencing::None, Receipts::Checked));
    assert_eq!(settings.deadline, Duration::from_mins(5));
    assert_eq!(settings.prices.and_then(|prices| prices.egress_per_gb), Some(0.09));
    let mut resolved = settings;
    resolved.resolve(FilePath::new("/etc/thirdsite"));
    assert_eq!(resolved.ca_file, Some("/etc/thirdsite/ca.pem".into()));
    assert_eq!(resolved.credentials, Some(CredentialsSource::File("/etc/thirdsite/keys".into())));
}

#[test]
fn what_is_not_known_is_refused() {
    let error = toml::from_str::<BucketSettings>("url = \"file:///b\"\nbucket = \"b\"").expect_err("unknown");
    assert!(error.to_string().contains("unknown field `bucket`"), "{error}");
    let error = toml::from_str::<BucketSettings>("url = \"file:///b\"\ndeadline = 5").expect_err("no unit");
    assert!(error.to_string().contains("expected a string"), "{error}");
}

#[test]
fn what_is_missing_is_told_with_what_to_put_there() {
    assert!(refused("url = \"s3://backups\"\ncredentials = \"environment\"").contains("no 'region'"));
    assert!(refused("url = \"s3://backups\"\nregion = \"eu-central-1\"").contains("no 'credentials'"));
    assert!(refused(&format!("{AWS}system_roots = false")).contains("no 'ca_file'"));
}

#[test]
fn a_url_is_checked() {
    for url in [
        "backups",
        "https://s3.example.net/backups",
        "s3://Backups",
        "s3://ab",
        "s3://-backups",
        "s3://b_c_d",
    ] {
        assert!(refused(&format!("url = \"{url}\"")).contains("'url'"));
    }
    for prefix in ["a//b", "/a", "a/../b", "./a"] {
        let text = AWS.replace("site-a", prefix);
        assert!(refused(&text).contains("prefix"), "{prefix}");
    }
    assert!(refused("url = \"file://folder\"").contains("three slashes"));
    assert_eq!(
        Place::parse("s3://backups/a/b/").expect("usable"),
        Place::S3 { bucket: "backups".into(), prefix: "a/b".into() }
    );
}

#[test]
fn an_endpoint_is_checked() {
    let with = |endpoint: &str, more: &str| format!("{AWS}endpoint = \"{endpoint}\"\n{more}");
    for endpoint in [
        "https://s3.example.net",
        "https://10.0.0.1:9000/",
        "http://127.0.0.1:9000",
        "http://[::1]:9000",
        "http://localhost",
    ] {
        parse(&with(endpoint, "")).check().expect(endpoint);
    }
    for endpoint in [
        "s3.example.net",
        "https://",
        "https://s3.example.net/bucket",
        "ftp://s3.example.net",
        "https://s3.example.net:port",
    ] {
        assert!(refused(&with(endpoint, "")).contains("https://HOST"), "{endpoint}");
    }
    assert!(refused(&with("http://s3.example.net", "")).contains("plain_http"));
    parse(&with("http://s3.example.net", "plain_http = true")).check().expect("promised");
    assert!(!refused(&with("https://user:password@s3.example.net", "")).contains("password"));
}

#[test]
fn what_is_out_of_range_is_told_with_the_range() {
    for wrong in ["uploads_max = 0", "uploads_max = 65", "deadline = \"0s\"", "validate_interval = \"2h\""] {
        assert!(refused(&format!("{AWS}{wrong}")).contains("it is from"), "{wrong}");
    }
    assert!(refused(&format!("{AWS}prices = {{ get_per_1000 = -1.0 }}")).contains("get_per_1000"));
}

#[test]
fn settings_of_s3_do_not_belong_to_a_folder() {
    assert!(refused("url = \"file:///b\"\nendpoint = \"https://s3.example.net\"").contains("'endpoint'"));
    assert!(refused("url = \"file:///b\"\ncredentials = \"environment\"").contains("'credentials'"));
}

#[test]
fn a_folder_that_does_not_exist_is_not_made() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let missing = folder.path().join("missing");
    let error = BucketSettings::new(format!("file://{}", missing.display())).open().expect_err("missing");
    assert!(matches!(error, BucketSettingsError::Folder { .. }), "{error}");
    assert!(!missing.exists());
}

#[test]
fn files_that_the_settings_name_are_read_when_it_is_opened() {
    let mut settings = parse(AWS);
    settings.credentials = Some(CredentialsSource::File("/nonexistent/keys".into()));
    assert!(matches!(settings.open(), Err(BucketSettingsError::Keys(KeyFileError::Read { .. }))));
    let no_certificate = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut settings = parse(AWS);
    settings.ca_file = Some(no_certificate.path().into());
    assert!(matches!(settings.open(), Err(BucketSettingsError::Authority(AuthorityError::Empty { .. }))));
}

#[tokio::test]
async fn names_begin_behind_the_prefix() {
    use object_store::ObjectStoreExt;

    let server = crate::testing::S3Server::start().await;
    let keys = crate::testing::key_file("AKIDFORTESTS", crate::testing::SECRET);
    let open = |prefix: &str| {
        let mut settings = BucketSettings::new(format!("s3://{}{prefix}", crate::testing::BUCKET));
        settings.endpoint = Some(server.url());
        settings.credentials = Some(CredentialsSource::File(keys.path().into()));
        settings.open().expect("opened")
    };
    open("/a/b").store.put(&"object".into(), "bytes".into()).await.expect("put");
    let whole = open("");
    whole.store.head(&"a/b/object".into()).await.expect("it is there");
    assert_eq!(whole.meter.traffic().gets, 1);
    assert!(whole.place.contains(&server.url()), "{}", whole.place);
}
