//! Who may write a group: the fencing that decides between the hosts of a pair.

use std::fs;
use std::io;

use journal_format::{Generation, GroupName, Position};
use serde::{Deserialize, Serialize};
use transport::PeerName;

use super::disk::Disk;
use crate::error::{StoreError, io_error};

const FILE: &str = "writer.json";
const FORMAT: &str = "thirdsite-writer";
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WriterFile {
    format: String,
    version: u32,
    generation: Generation,
    peer: PeerName,
}

/// The generation that may write, and its writer.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    generation: Generation,
    /// None before anybody came; whoever comes first with this generation is its writer.
    peer: Option<PeerName>,
    /// Counts the changes of the writer.
    number: u64,
}

/// Why a claim is refused.
#[derive(Debug)]
pub(super) enum ClaimError {
    /// Another writer is in force.
    Fenced(String),
    /// The claim could not be written.
    Store(StoreError),
}

impl Claim {
    /// Reads the claim of a group whose chain ends at `head`.
    pub(super) fn load(disk: &Disk, group: &GroupName, head: Option<Position>) -> Result<Claim, StoreError> {
        let path = disk.group_file(group, FILE);
        let of_head =
            Claim { generation: head.map_or(Generation(0), |head| head.generation), peer: None, number: 0 };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(of_head),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let file: Option<WriterFile> = serde_json::from_slice(&text).ok();
        match file.filter(|file| file.format == FORMAT && file.version == VERSION) {
            Some(file) if file.generation >= of_head.generation => {
                Ok(Claim { generation: file.generation, peer: Some(file.peer), number: 0 })
            }
            Some(_) => Ok(of_head),
            None => {
                // The next writer has to come with a generation that nobody has had.
                tracing::error!(%group, path = %path.display(), "the record of the group's writer cannot be read; the chain's generation counts");
                Ok(of_head)
            }
        }
    }

    /// Who writes.
    pub(super) fn writer(&self) -> Option<&PeerName> {
        self.peer.as_ref()
    }

    /// Changes with every new writer.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Makes `peer` the writer of a generation, durably, if it may be.
    pub(super) fn take(
        &mut self,
        disk: &Disk,
        group: &GroupName,
        peer: &PeerName,
        generation: Generation,
    ) -> Result<(), ClaimError> {
        if generation < self.generation {
            let newest = self.generation;
            return Err(ClaimError::Fenced(format!(
                "generation {generation} has been superseded by {newest}"
            )));
        }
        if generation == self.generation && self.peer.as_ref().is_some_and(|writer| writer == peer) {
            return Ok(());
        }
        if generation == self.generation
            && let Some(writer) = &self.peer
        {
            return Err(ClaimError::Fenced(format!("generation {generation} is written by '{writer}'")));
        }
        let file = WriterFile { format: FORMAT.to_owned(), version: VERSION, generation, peer: peer.clone() };
        let text = serde_json::to_vec_pretty(&file).expect("the record has only fields that JSON can hold");
        disk.replace_group_file(group, FILE, &text).map_err(ClaimError::Store)?;
        tracing::info!(%group, %peer, %generation, "writes the group from now on");
        *self = Claim { generation, peer: Some(peer.clone()), number: self.number + 1 };
        Ok(())
    }
}
