use std::io;

use crate::{Enrolment, LinkError};

use super::*;

#[test]
fn error_without_a_source_has_no_causes() {
    assert_eq!(causes(&LinkError::SiteStopped), None);
}

#[test]
fn causes_are_told_on_one_line() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("enrolled.toml");
    std::fs::write(&path, "version = 1\npeers = 3\n").unwrap();
    let malformed = Enrolment::load(&path).unwrap_err();
    let told = causes(&malformed).unwrap();
    assert!(told.contains("line 2") && told.contains("peers = 3") && !told.contains('\n'), "{told}");

    let outer = LinkError::Resolve { address: "site:1".into(), source: io::Error::other(malformed) };
    let chained = causes(&outer).unwrap();
    assert!(chained.ends_with(&format!(": {told}")), "{chained}");
}
