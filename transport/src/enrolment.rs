//! The site's list of sources that may connect, and of the groups that each may send.
//!
//! It is a TOML file that people may edit. Changes are whole or not made at all, and are seen without a restart.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use journal_format::{ErrorKind, GroupName};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::identity::Fingerprint;
use crate::names::PeerName;

/// Version of the file that this build reads and writes.
pub const ENROLMENT_VERSION: u32 = 1;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why the list cannot be used or changed.
#[derive(Debug, Error)]
pub enum EnrolmentError {
    /// The file is not valid TOML, or has keys that do not belong there.
    #[error("{} is not a valid list of enrolled peers; correct it, existing connections go on meanwhile", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: Box<toml::de::Error>,
    },
    /// The file is of another version.
    #[error("{} has version {found}; this build reads version {ENROLMENT_VERSION}", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The file is too large to be a list of peers.
    #[error("{} has {actual} bytes; a list of enrolled peers has at most {FILE_BYTES_MAX}", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        actual: u64,
    },
    /// A fingerprint belongs to another peer already.
    #[error(
        "fingerprint {fingerprint} is enrolled as '{enrolled}' and cannot be '{other}' as well; remove '{enrolled}' first if it was renamed"
    )]
    SameFingerprint {
        /// The fingerprint.
        fingerprint: Fingerprint,
        /// Peer that has it.
        enrolled: PeerName,
        /// Peer that was to get it.
        other: PeerName,
    },
    /// A name belongs to another fingerprint already.
    #[error(
        "peer '{name}' is enrolled twice, with fingerprint {enrolled} and with {other}; remove it first if its identity was made anew"
    )]
    SameName {
        /// The name.
        name: PeerName,
        /// Its fingerprint.
        enrolled: Fingerprint,
        /// The other one.
        other: Fingerprint,
    },
    /// The peer is not in the list.
    #[error("no peer '{name}' is enrolled in {}", .path.display())]
    Unknown {
        /// The name.
        name: PeerName,
        /// The file.
        path: PathBuf,
    },
    /// Input or output failed.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl EnrolmentError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            EnrolmentError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::Full
            }
            EnrolmentError::Io { .. } => ErrorKind::Retry,
            _ => ErrorKind::Invalid,
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EnrolmentError {
    move |source| EnrolmentError::Io { action, path: path.to_owned(), source }
}

/// One source that may connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolledPeer {
    /// Its name.
    pub name: PeerName,
    /// Fingerprint of its identity.
    pub fingerprint: Fingerprint,
    /// Fingerprint of the identity that it changes to; until that is done it may use either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_fingerprint: Option<Fingerprint>,
    /// Groups that it may send.
    pub groups: Vec<GroupName>,
}

impl EnrolledPeer {
    /// The identities that count as this peer.
    pub fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        [Some(self.fingerprint), self.next_fingerprint].into_iter().flatten()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrolmentFile {
    version: u32,
    #[serde(default, rename = "peer")]
    peers: Vec<EnrolledPeer>,
}

/// What every version of the file has.
#[derive(Deserialize)]
struct EnrolmentVersion {
    version: u32,
}

/// The sources that may connect. Names and fingerprints occur once each; a group may belong to both hosts of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enrolment {
    peers: Vec<EnrolledPeer>,
}

impl Enrolment {
    /// Reads the list. A file that does not exist is an empty list, which admits nobody.
    ///
    /// # Errors
    /// If it is not a valid list of this version, or cannot be read.
    pub fn load(path: &Path) -> Result<Self, EnrolmentError> {
        let size = match fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(io_error("read", path)(error)),
        };
        if size > FILE_BYTES_MAX {
            return Err(EnrolmentError::TooLarge { path: path.to_owned(), actual: size });
        }
        let text = fs::read_to_string(path).map_err(io_error("read", path))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let malformed =
            |source| EnrolmentError::Malformed { path: path.to_owned(), source: Box::new(source) };
        // Known before the rest is read, which may be anything in another version.
        let EnrolmentVersion { version: found } = toml::from_str(&text).map_err(malformed)?;
        if found != ENROLMENT_VERSION {
            return Err(EnrolmentError::Version { path: path.to_owned(), found });
        }
        let file: EnrolmentFile = toml::from_str(&text).map_err(malformed)?;
        let mut enrolment = Self::default();
        for peer in file.peers {
            if let Some(enrolled) = enrolment.peers.iter().find(|enrolled| enrolled.name == peer.name) {
                return Err(EnrolmentError::SameName {
                    name: peer.name,
                    enrolled: enrolled.fingerprint,
                    other: peer.fingerprint,
                });
            }
            enrolment.insert(peer)?;
        }
        Ok(enrolment)
    }

    /// Adds a peer, or groups to the peer that has this name and fingerprint, in the file at `path`. What is there
    /// already stays; repeating it changes nothing.
    ///
    /// # Errors
    /// If the name or the fingerprint belongs to another peer; or as `load`.
    pub fn add(path: &Path, peer: EnrolledPeer) -> Result<Self, EnrolmentError> {
        change(path, |enrolment| enrolment.insert(peer))
    }

    /// Removes a peer from the file at `path`. Its connections are closed within 5 seconds.
    ///
    /// # Errors
    /// [`EnrolmentError::Unknown`]; or as `load`.
    pub fn remove(path: &Path, name: &PeerName) -> Result<Self, EnrolmentError> {
        change(path, |enrolment| {
            let before = enrolment.peers.len();
            enrolment.peers.retain(|peer| peer.name != *name);
            if enrolment.peers.len() < before {
                return Ok(());
            }
            Err(EnrolmentError::Unknown { name: name.clone(), path: path.to_owned() })
        })
    }

    /// Lets a peer use another identity besides its own in the file at `path`, or, with none, makes the other one its own.
    ///
    /// # Errors
    /// [`EnrolmentError::Unknown`]; if the fingerprint belongs to another peer; or as `load`.
    pub fn rotate(path: &Path, name: &PeerName, next: Option<Fingerprint>) -> Result<Self, EnrolmentError> {
        change(path, |enrolment| {
            if let Some(next) = next
                && let Some(other) = enrolment.find(&next)
                && other.name != *name
            {
                let (enrolled, other) = (other.name.clone(), name.clone());
                return Err(EnrolmentError::SameFingerprint { fingerprint: next, enrolled, other });
            }
            let unknown = || EnrolmentError::Unknown { name: name.clone(), path: path.to_owned() };
            let peer = enrolment.peers.iter_mut().find(|peer| peer.name == *name).ok_or_else(unknown)?;
            match next {
                Some(next) => peer.next_fingerprint = Some(next).filter(|next| *next != peer.fingerprint),
                None => peer.fingerprint = peer.next_fingerprint.take().unwrap_or(peer.fingerprint),
            }
            Ok(())
        })
    }

    /// All peers, in the order of the file.
    pub fn peers(&self) -> &[EnrolledPeer] {
        &self.peers
    }

    /// The peer that has this identity.
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<&EnrolledPeer> {
        self.peers.iter().find(|peer| peer.fingerprints().any(|own| own == *fingerprint))
    }

    fn insert(&mut self, new: EnrolledPeer) -> Result<(), EnrolmentError> {
        for peer in &self.peers {
            if peer.name == new.name && !peer.fingerprints().any(|own| own == new.fingerprint) {
                return Err(EnrolmentError::SameName {
                    name: new.name,
                    enrolled: peer.fingerprint,
                    other: new.fingerprint,
                });
            }
            if peer.name != new.name
                && let Some(fingerprint) =
                    peer.fingerprints().find(|own| new.fingerprints().any(|new| new == *own))
            {
                return Err(EnrolmentError::SameFingerprint {
                    fingerprint,
                    enrolled: peer.name.clone(),
                    other: new.name,
                });
            }
        }
        let index = self.peers.iter().position(|peer| peer.name == new.name).unwrap_or_else(|| {
            self.peers.push(EnrolledPeer { groups: Vec::new(), ..new.clone() });
            self.peers.len() - 1
        });
        let groups = &mut self.peers[index].groups;
        for group in new.groups {
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        Ok(())
    }
}

/// Reads, changes and replaces the file while no other process does so.
fn change(
    path: &Path,
    edit: impl FnOnce(&mut Enrolment) -> Result<(), EnrolmentError>,
) -> Result<Enrolment, EnrolmentError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(io_error("create", dir))?;
    let folder = File::open(dir).map_err(io_error("open", dir))?;
    flock(&folder, FlockOperation::LockExclusive).map_err(|error| io_error("lock", dir)(error.into()))?;

    let mut enrolment = Enrolment::load(path)?;
    edit(&mut enrolment)?;
    let file = EnrolmentFile { version: ENROLMENT_VERSION, peers: enrolment.peers.clone() };
    let text = toml::to_string(&file).expect("a list of peers is serialisable");
    let staging = path.with_extension("toml.new");
    write_private(&staging, text.as_bytes()).map_err(io_error("write", &staging))?;
    fs::rename(&staging, path).map_err(io_error("replace", path))?;
    folder.sync_all().map_err(io_error("sync", dir))?;
    Ok(enrolment)
}

/// Writes a file of mode 0600, whatever an interrupted change left behind under that name.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
