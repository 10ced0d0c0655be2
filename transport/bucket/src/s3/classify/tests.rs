use super::*;

/// Server's clock in these tests; this machine's is 1000 s behind.
const DATE: i64 = 1_700_001_000;
const NOW: i64 = 1_700_000_000;

fn check(status: u16, code: &str, expected: &Cause) {
    let refusal = Refusal { status, code: code.into(), date: Some(DATE), ..Refusal::default() };
    assert_eq!(cause_of_refusal(&refusal, NOW), *expected, "{status} {code}");
}

#[test]
fn what_people_have_to_mend_is_told_apart() {
    check(403, "SignatureDoesNotMatch", &Cause::WrongSecret);
    check(403, "InvalidAccessKeyId", &Cause::UnknownKey);
    check(400, "ExpiredToken", &Cause::ExpiredToken);
    check(403, "RequestTimeTooSkewed", &Cause::ClockSkew { behind_seconds: Some(1000) });
    check(404, "NoSuchBucket", &Cause::NoBucket);
    check(403, "AccessDenied", &Cause::Denied);
    check(403, "", &Cause::Denied);
    check(301, "PermanentRedirect", &Cause::WrongRegion { region: None });
    check(507, "", &Cause::Full);
}

#[test]
fn what_passes_is_tried_again_and_nothing_else() {
    let passing = [
        (503, "SlowDown"),
        (429, ""),
        (503, ""),
        (500, "InternalError"),
        (502, ""),
        (504, ""),
        (400, "RequestTimeout"),
        (400, "BadDigest"),
        (400, "XAmzContentSHA256Mismatch"),
        (409, "ConditionalRequestConflict"),
        (409, "OperationAborted"),
        (200, "InternalError"),
    ];
    let lasting = [
        (412, "PreconditionFailed"),
        (404, "NoSuchKey"),
        (404, "NoSuchUpload"),
        (403, "AccessDenied"),
        (400, "InvalidRequest"),
        (501, "NotImplemented"),
        (416, "InvalidRange"),
        (405, "MethodNotAllowed"),
    ];
    let is_passing = |(status, code): (u16, &str)| {
        let refusal = Refusal { status, code: code.into(), ..Refusal::default() };
        cause_of_refusal(&refusal, NOW).is_passing()
    };
    for case in passing {
        assert!(is_passing(case), "{case:?}");
    }
    for case in lasting {
        assert!(!is_passing(case), "{case:?}");
    }
}

#[test]
fn a_region_is_taken_from_the_header_or_the_message() {
    let message =
        "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'";
    let refusal = Refusal {
        status: 400,
        code: "AuthorizationHeaderMalformed".into(),
        message: message.into(),
        ..Refusal::default()
    };
    assert_eq!(cause_of_refusal(&refusal, NOW), Cause::WrongRegion { region: Some("eu-west-1".into()) });
}

#[test]
fn a_name_without_an_address_is_told_apart() {
    #[derive(Debug, thiserror::Error)]
    #[error("dns error")]
    struct Dns;
    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Connect(#[source] Dns);
    assert_eq!(cause_of_connection(&Connect(Dns)), Cause::Dns);
}

#[test]
fn an_error_of_tls_is_found_inside_one_of_io() {
    let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    let error = io::Error::new(io::ErrorKind::InvalidData, tls);
    assert!(matches!(cause_of_connection(&error), Cause::Tls { .. }));
    assert_eq!(cause_of_connection(&io::Error::from(io::ErrorKind::ConnectionRefused)), Cause::Refused);
    assert_eq!(cause_of_connection(&io::Error::from(io::ErrorKind::ConnectionReset)), Cause::Lost);
}

#[test]
fn a_servers_text_stays_one_short_line() {
    assert_eq!(shortened("two\nlines\u{1b}[31m"), "two lines [31m");
    assert_eq!(shortened(&"long".repeat(1000)).chars().count(), MESSAGE_CHARS_MAX);
}
