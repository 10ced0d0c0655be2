//! Changed settings, taken in by a running agent: what may change, and what has to wait until no VM uses it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use journal::FileLeg;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::failure::{Failure, exit};
use crate::settings::{self, SourceSettings};

/// Somebody asks the agent to take in its settings.
pub(super) struct Reload {
    accept_resize: Vec<String>,
    answer: oneshot::Sender<Result<Value, Failure>>,
}

/// Where a control socket hands such a request to the agent.
pub(super) type ReloadSender = mpsc::Sender<Reload>;

/// Hands a request to the agent and waits for its decision. Blocks.
pub(super) fn request(sender: &ReloadSender, accept_resize: Vec<String>) -> Result<Value, Failure> {
    let ending = || Failure::unreachable("the agent is ending", "ask again when it is back");
    let (answer, decided) = oneshot::channel();
    sender.blocking_send(Reload { accept_resize, answer }).map_err(|_| ending())?;
    decided.blocking_recv().map_err(|_| ending())?
}

/// What an agent is asked to become.
pub(super) struct Accepted {
    pub(super) settings: SourceSettings,
    pub(super) accept_resize: Vec<String>,
}

impl Reload {
    /// Decides and answers. `in_use` are the exports that VMs have opened.
    pub(super) fn decide(
        self,
        current: &SourceSettings,
        config: &Path,
        in_use: &[String],
    ) -> Option<Accepted> {
        let decision = decide(current, config, in_use);
        let (answer, settings) = match decision {
            Ok((settings, answer)) => (Ok(answer), Some(settings)),
            Err(failure) => (Err(failure), None),
        };
        // Who asked may be gone; the settings are taken in all the same.
        let _ = self.answer.send(answer);
        settings.map(|settings| Accepted { settings, accept_resize: self.accept_resize })
    }
}

/// Reads the settings and compares them with those in force.
pub(super) fn decide(
    current: &SourceSettings,
    config: &Path,
    in_use: &[String],
) -> Result<(SourceSettings, Value), Failure> {
    let wanted: SourceSettings =
        settings::load(config).map_err(|error| Failure::invalid(crate::failure::with_causes(&error), ""))?;
    if let Some(part) = current.fixed_part_that_differs(&wanted) {
        let message = format!("{part} in the settings has changed, which a running agent cannot take in");
        return Err(Failure::invalid(message, "restart the agent; VMs wait meanwhile"));
    }
    let (before, after) = (exports(current), exports(&wanted));
    for name in in_use {
        if before.get(name) != after.get(name) {
            let message =
                format!("a VM uses {name}, which the new settings do not have, or with another leg");
            let hint = "take the tap out first: thirdsite tap remove; nothing was changed";
            return Err(Failure::invalid(message, hint));
        }
    }
    let added: Vec<&String> = after.keys().filter(|name| !before.contains_key(*name)).collect();
    for name in &added {
        let leg = after[*name];
        FileLeg::open(leg).map_err(|error| {
            let message = format!("leg '{}' of {name} cannot be opened: {error}", leg.display());
            Failure::new(exit::INVALID, message, "nothing was changed")
        })?;
    }
    let removed: Vec<&String> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    let answer = json!({"added": added, "removed": removed});
    Ok((wanted, answer))
}

/// The legs by the names of their exports.
fn exports(settings: &SourceSettings) -> BTreeMap<String, &PathBuf> {
    let of_group = settings.groups.iter().flat_map(|group| {
        group.volumes.iter().map(|volume| (format!("{}/{}", group.name, volume.name), &volume.leg))
    });
    of_group.collect()
}
