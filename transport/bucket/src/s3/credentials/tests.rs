use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG";

fn read(text: &str, mode: u32) -> Result<Credentials, KeyFileError> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), text).expect("written");
    fs::set_permissions(file.path(), Permissions::from_mode(mode)).expect("its mode");
    read_keys(file.path())
}

#[test]
fn keys_are_read_with_comments_and_blank_lines() {
    let text = format!(
        "# made on Monday\n\naccess_key_id = \"AKID\"\nsecret_access_key=\"{SECRET}\"\n  session_token = \"token==\"  \n"
    );
    let keys = read(&text, 0o600).expect("keys");
    assert_eq!(keys.access_key_id(), "AKID");
    assert_eq!(keys.secret_access_key(), SECRET);
    assert_eq!(keys.session_token(), Some("token=="));
    assert!(!format!("{keys:?}").contains(SECRET));
}

#[test]
fn a_file_that_others_may_read_is_refused() {
    let text = format!("access_key_id = \"AKID\"\nsecret_access_key = \"{SECRET}\"\n");
    for mode in [0o640, 0o604, 0o620] {
        let error = read(&text, mode).expect_err("exposed");
        assert!(matches!(error, KeyFileError::Exposed { .. }), "{error}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
    assert!(read(&text, 0o400).is_ok());
}

#[test]
fn what_is_not_understood_is_named_by_its_line_and_not_repeated() {
    let cases = [
        (format!("access_key_id = \"AKID\"\nsecret_access_key = {SECRET}\n"), "line 2"),
        (format!("access_key_id = \"AKID\"\n{SECRET}\n"), "line 2"),
        (format!("aws_secret = \"{SECRET}\"\n"), "line 1"),
        (format!("secret_access_key = \"{SECRET} \"\n"), "line 1"),
        (format!("secret_access_key = \"{SECRET}\"\nsecret_access_key = \"{SECRET}\"\n"), "line 2"),
        (format!("secret_access_key = \"{SECRET}\"\n"), "no line access_key_id"),
        ("access_key_id = \"AKID\"\n".to_owned(), "no line secret_access_key"),
    ];
    for (text, expected) in cases {
        let error = read(&text, 0o600).expect_err("not a file of keys");
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(expected), "{shown}");
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

#[test]
fn a_file_that_is_far_too_large_is_not_read() {
    let error = read(&"#\n".repeat(100_000), 0o600).expect_err("too large");
    assert!(matches!(error, KeyFileError::TooLarge { .. }), "{error}");
}
