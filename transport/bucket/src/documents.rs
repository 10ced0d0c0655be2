//! The small JSON documents in a bucket. Whoever can write to the bucket can write them, so nothing in them is trusted before it is checked.

use std::fmt::Write as _;

use journal_format::{Epoch, Generation, GroupName, Position, Timestamp};
use object_store::path::Path;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use transport::wire::TEXT_BYTES_MAX;
use transport::{Fingerprint, PeerName, PublicKey, Receipt, Signature};

use crate::error::RoadError;
use crate::keys::ClaimNumber;

/// Largest document in bytes.
pub const DOCUMENT_BYTES_MAX: u64 = 64 << 10;

/// A document of a bucket.
pub trait Document: Serialize + DeserializeOwned {
    /// What its field `format` says.
    const FORMAT: &'static str;
    /// The version that this build writes and reads.
    const VERSION: u32 = 1;
    /// What it is called in errors.
    const NAME: &'static str;

    /// Says what is wrong with its content.
    ///
    /// # Errors
    /// The rule that is broken.
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }

    /// Its bytes: one line of JSON.
    fn encode(&self) -> Vec<u8> {
        let framed = Framed { format: Self::FORMAT, version: Self::VERSION, body: self };
        let mut bytes = serde_json::to_vec(&framed).expect("documents of this module are serialisable");
        bytes.push(b'\n');
        bytes
    }

    /// Reads it from the bytes of the object `key`.
    ///
    /// # Errors
    /// [`RoadError::TooLarge`], [`RoadError::Version`] or [`RoadError::Document`].
    fn decode(key: &Path, bytes: &[u8]) -> Result<Self, RoadError> {
        let wrong = |reason: String| RoadError::Document { key: key.clone(), what: Self::NAME, reason };
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            let (actual, limit) = (bytes.len() as u64, DOCUMENT_BYTES_MAX);
            return Err(RoadError::TooLarge { key: key.clone(), actual, limit });
        }
        let stamp: Stamp = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if stamp.format != Self::FORMAT {
            return Err(wrong(format!("its format is {:?}, not {:?}", stamp.format, Self::FORMAT)));
        }
        if stamp.version != u64::from(Self::VERSION) {
            let supported = Self::VERSION;
            return Err(RoadError::Version { key: key.clone(), found: stamp.version, supported });
        }
        let document: Self = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        document.check().map_err(|rule| wrong(rule.to_owned()))?;
        Ok(document)
    }
}

#[derive(Serialize)]
struct Framed<'a, T> {
    format: &'static str,
    version: u32,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Deserialize)]
struct Stamp {
    format: String,
    version: u64,
}

/// `store.json`: a bucket is kept here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMark {}

impl Document for StoreMark {
    const FORMAT: &'static str = "thirdsite-bucket";
    const NAME: &'static str = "mark of a bucket";
}

/// What a claim is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimKind {
    /// Fences older writers; the chain is as it was.
    Fence,
    /// The chain goes on from here under the claim's number.
    Start,
}

/// A random id of a writer's session. Printed as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(pub [u8; 16]);

impl From<SessionId> for String {
    fn from(id: SessionId) -> String {
        hex(&id.0)
    }
}

impl TryFrom<String> for SessionId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        unhex(&text).map(Self).ok_or("a session is 32 hexadecimal digits")
    }
}

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimSource {
    /// Name of the source.
    pub name: PeerName,
    /// Fingerprint of its identity.
    pub fingerprint: Fingerprint,
}

/// A claim: who writes from where on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The group.
    pub group: GroupName,
    /// Its place among the group's claims.
    pub number: ClaimNumber,
    /// What it is for.
    pub kind: ClaimKind,
    /// The writer's session.
    pub session: SessionId,
    /// The writer's generation.
    pub generation: Generation,
    /// The writer.
    pub source: ClaimSource,
    /// Version of the writer's software, for people.
    pub software: String,
    /// The writer's time.
    pub time: Timestamp,
    /// The position behind which a start goes on; none for the beginning of the chain, and in a fence.
    pub behind: Option<Position>,
}

impl Document for Claim {
    const FORMAT: &'static str = "thirdsite-claim";
    const NAME: &'static str = "claim";

    fn check(&self) -> Result<(), &'static str> {
        check_text(&self.software)?;
        if self.generation.0 == 0 || self.number.0 == 0 {
            return Err("generations and numbers begin at 1");
        }
        match (self.kind, self.behind) {
            (ClaimKind::Fence, Some(_)) => Err("a fence is behind nothing"),
            (_, Some(behind)) if behind.sequence.0 == 0 || behind.sequence.0 == u64::MAX => {
                Err("no position has this sequence")
            }
            (_, Some(behind)) if behind.generation > self.generation => {
                Err("it goes on behind a newer generation than its own")
            }
            _ => Ok(()),
        }
    }
}

/// The newest cut at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatCut {
    /// Epoch that it ended.
    pub epoch: Epoch,
    /// Time of the cut, by the source's clock.
    pub time: Timestamp,
}

/// `heartbeat.json`: what the source last said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketHeartbeat {
    /// The group.
    pub group: GroupName,
    /// The start that the source writes under.
    pub number: ClaimNumber,
    /// The source's generation.
    pub generation: Generation,
    /// The source's time.
    pub now: Timestamp,
    /// Its newest cut.
    pub newest_cut: Option<HeartbeatCut>,
    /// Its newest sealed position.
    pub head: Option<Position>,
    /// Bytes of sealed segments without a receipt.
    pub backlog_bytes: u64,
    /// Sealed segments without a receipt.
    pub backlog_segments: u64,
    /// What the source is doing, for people.
    pub state: String,
    /// Version of the source's software, for people.
    pub software: String,
}

impl Document for BucketHeartbeat {
    const FORMAT: &'static str = "thirdsite-heartbeat";
    const NAME: &'static str = "heartbeat";

    fn check(&self) -> Result<(), &'static str> {
        check_text(&self.state)?;
        check_text(&self.software)
    }
}

/// `checked.json`: how far the recovery site has read and verified, signed by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// The group.
    pub group: GroupName,
    /// Everything up to and including this was read and verified.
    pub position: Position,
    /// The recovery site's time when it signed.
    pub time: Timestamp,
    /// Public key of the recovery site's identity, 64 hexadecimal digits.
    pub public_key: String,
    /// Signature of [`Receipt`], 128 hexadecimal digits.
    pub signature: String,
}

impl Document for Checked {
    const FORMAT: &'static str = "thirdsite-checked";
    const NAME: &'static str = "word of the recovery site";
}

impl Checked {
    /// What a receipt says, for the bucket. `key` is that of the identity that signed it.
    pub fn new(receipt: &Receipt, key: &PublicKey) -> Self {
        Self {
            group: receipt.group.clone(),
            position: receipt.position,
            time: receipt.time,
            public_key: hex(&key.to_bytes()),
            signature: hex(&receipt.signature.0),
        }
    }

    /// The receipt, if the identity with the fingerprint `pinned` signed it for `group`.
    ///
    /// # Errors
    /// [`RoadError::Forged`], which names the object `key`.
    pub fn receipt(&self, key: &Path, group: &GroupName, pinned: Fingerprint) -> Result<Receipt, RoadError> {
        let forged = |reason| RoadError::Forged { key: key.clone(), reason };
        if self.group != *group {
            return Err(forged("it is for another group"));
        }
        let public_key = unhex(&self.public_key).map(PublicKey::from_bytes);
        let public_key = public_key.ok_or_else(|| forged("the public key is not 64 hexadecimal digits"))?;
        if public_key.fingerprint() != pinned {
            return Err(forged("the public key has another fingerprint"));
        }
        let signature = unhex(&self.signature).map(Signature);
        let signature = signature.ok_or_else(|| forged("the signature is not 128 hexadecimal digits"))?;
        let receipt = Receipt { group: group.clone(), position: self.position, time: self.time, signature };
        if receipt.is_signed_by(&public_key) { Ok(receipt) } else { Err(forged("the signature is wrong")) }
    }
}

fn check_text(text: &str) -> Result<(), &'static str> {
    if text.len() <= TEXT_BYTES_MAX { Ok(()) } else { Err("a text is too long") }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a text takes everything");
        text
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
