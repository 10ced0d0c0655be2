//! `thirdsite identity`: making and showing the identity by which the sites know each other.

use std::path::Path;

use serde_json::json;
use transport::{Fingerprint, Identity, IdentityError, PeerName};

use crate::failure::Failure;
use crate::output::print_json;

/// Makes an identity.
pub(crate) fn new(dir: &Path, name: &str, json: bool) -> anyhow::Result<()> {
    let name: PeerName = name.parse().map_err(|error| Failure::invalid(format!("{error}"), ""))?;
    let identity = Identity::create(dir, &name).map_err(failure)?;
    report(&identity, dir, json)
}

/// Shows an identity.
pub(crate) fn show(dir: &Path, json: bool) -> anyhow::Result<()> {
    report(&load(dir)?, dir, json)
}

/// Loads the identity in a folder.
pub(crate) fn load(dir: &Path) -> Result<Identity, Failure> {
    Identity::load(dir).map_err(failure)
}

/// Reads a fingerprint as `identity show` prints it.
pub(crate) fn parse_fingerprint(text: &str) -> Result<Fingerprint, Failure> {
    let hint = "'thirdsite identity show' prints it on the other side: 64 hexadecimal digits";
    text.parse().map_err(|_| Failure::invalid(format!("'{text}' is not a fingerprint"), hint))
}

fn failure(error: IdentityError) -> Failure {
    let hint = "make one with 'thirdsite identity new --dir DIR --name NAME'";
    Failure::of(&error, error.kind(), hint)
}

fn report(identity: &Identity, dir: &Path, json: bool) -> anyhow::Result<()> {
    let (name, fingerprint) = (identity.name(), identity.fingerprint());
    if json {
        return print_json(&json!({"name": name, "fingerprint": fingerprint.to_string(), "dir": dir}));
    }
    println!("name         {name}\nfingerprint  {fingerprint}\nfolder       {}", dir.display());
    Ok(())
}
