//! The `thirdsite` commands that the demonstration uses, and what it reads from their JSON.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::process::run;

/// The command-line program.
pub struct Thirdsite {
    /// Its path.
    pub program: PathBuf,
}

#[derive(Deserialize)]
struct Identity {
    fingerprint: String,
}

/// What a daemon says about itself, as far as it is needed here.
#[derive(Debug, Deserialize)]
pub struct Status {
    /// The groups.
    pub groups: Vec<GroupStatus>,
}

/// What a daemon says about a group, as far as it is needed here.
#[derive(Clone, Debug, Deserialize)]
pub struct GroupStatus {
    /// Name of the group.
    pub name: String,
    /// State, in one word.
    pub state: String,
    /// What the state means, for people.
    pub detail: String,
    /// The newest point that the recovery site has confirmed, if there is one.
    confirmed_point: Option<serde_json::Value>,
}

impl GroupStatus {
    /// Says whether the initial sync is over and a point can be booted.
    pub fn is_protected(&self) -> bool {
        self.state == "protected" && self.confirmed_point.is_some()
    }

    /// Says whether nothing will come of waiting.
    pub fn has_failed(&self) -> bool {
        self.state == "failed"
    }
}

/// A recovery point, as far as it is needed here.
#[derive(Clone, Debug, Deserialize)]
pub struct Point {
    /// Its id, which other commands accept.
    pub id: String,
    /// When its epoch was cut, by the protected site's clock (RFC 3339).
    pub time: String,
}

#[derive(Deserialize)]
struct PointList {
    points: Vec<Point>,
}

/// What `thirdsite boot` says when the guest is up, as far as it is needed here.
#[derive(Clone, Debug, Deserialize)]
pub struct BootReport {
    /// The point that was booted.
    pub point: String,
    /// From the start of the command until the guest printed that it is ready.
    pub ready_seconds: f64,
}

impl Thirdsite {
    /// Makes an identity in a folder and returns its fingerprint.
    ///
    /// # Errors
    /// If the command fails.
    pub fn make_identity(&self, folder: &Path, name: &str) -> Result<String> {
        let arguments = words(&["identity", "new", "--json", "--name", name, "--dir"], folder);
        self.ask::<Identity>(&arguments).map(|identity| identity.fingerprint)
    }

    /// Lets a protected site send a group to the site with these settings.
    ///
    /// # Errors
    /// If the command fails.
    pub fn enroll(&self, settings: &Path, name: &str, fingerprint: &str, group: &str) -> Result<()> {
        let fixed =
            ["site", "enroll", "--name", name, "--fingerprint", fingerprint, "--group", group, "--config"];
        run(&self.program, &words(&fixed, settings)).map(drop)
    }

    /// Asks a daemon for its status.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self, control: &Path) -> Result<Status> {
        self.ask(&words(&["status", "--json", "--control"], control))
    }

    /// Returns the newest point of a group in a store, which `store` names to the command.
    ///
    /// # Errors
    /// If the command fails or there is no point.
    pub fn newest_point(&self, group: &str, store: &[OsString]) -> Result<Point> {
        let fixed = ["point", "list", group, "--json", "--last", "1"];
        let arguments = fixed.into_iter().map(OsStr::new).chain(store.iter().map(OsString::as_os_str));
        let list: PointList = self.ask(&arguments.collect::<Vec<_>>())?;
        list.points.into_iter().last().with_context(|| format!("group '{group}' has no point in the store"))
    }

    fn ask<T: DeserializeOwned>(&self, arguments: &[&OsStr]) -> Result<T> {
        let answer = run(&self.program, arguments)?;
        serde_json::from_str(&answer).with_context(|| format!("the answer is not understood: {answer}"))
    }
}

fn words<'a>(fixed: &[&'a str], last: &'a Path) -> Vec<&'a OsStr> {
    fixed.iter().copied().map(OsStr::new).chain([last.as_os_str()]).collect()
}
