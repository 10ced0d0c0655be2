//! Messages and their bytes, as `PROTOCOL.md` defines them. Decoders take bytes from a network and trust none of them.

use std::fmt;

use journal_format::{
    Epoch, ErrorKind, Generation, GroupName, Hash, Position, Sequence, Timestamp, VolumeName,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::identity::{Identity, PublicKey, Signature};

/// Version of the protocol that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// First bytes of every control stream, before the version.
pub const MAGIC: [u8; 4] = *b"TSQP";

/// Bytes of magic and version at the beginning of a control stream.
pub const PREAMBLE_BYTES: usize = 8;

/// Largest message, in bytes, without its length prefix.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Largest segment that is ever accepted, in bytes.
pub const SEGMENT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Longest reason, hint, state or version text that is sent, in bytes; longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 4096;

const RECEIPT_DOMAIN: &[u8] = b"thirdsite receipt v1\0";

/// What is said of a segment before its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SegmentDescriptor {
    /// Position that the chain has with this segment as its last.
    pub position: Position,
    /// Hash of the segment before it, [`Hash::ZERO`] for the chain's first.
    pub parent: Hash,
    /// Length of the whole segment.
    pub size_bytes: u64,
}

/// Largest piece of a segment, in bytes.
pub const PIECE_BYTES_MAX: u64 = 1 << 20;

/// First bytes of the stream of a piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceHeader {
    /// Group that the segment belongs to.
    pub group: GroupName,
    /// The segment of which a piece follows.
    pub segment: SegmentDescriptor,
    /// Where in the segment the piece begins.
    pub offset: u64,
    /// Length of the piece; at most [`PIECE_BYTES_MAX`].
    pub length: u64,
}

impl PieceHeader {
    /// Tells whether the piece is one of its segment.
    pub fn is_valid(&self) -> bool {
        let end = self.offset.checked_add(self.length);
        (1..=PIECE_BYTES_MAX).contains(&self.length) && end.is_some_and(|end| end <= self.segment.size_bytes)
    }
}

/// Most incomplete segments that are named in a Welcome.
pub const PARTIALS_MAX: usize = 128;

/// Most ranges that are named in a Welcome, over all incomplete segments.
pub const PARTIAL_RANGES_MAX: usize = 1024;

/// What a site holds of a segment that is not complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// Sequence of the segment.
    pub sequence: Sequence,
    /// Its hash; another segment with the same sequence has nothing to do with it.
    pub hash: RawHash,
    /// Ranges that are here, as offset and length.
    pub have: Vec<(u64, u64)>,
}

/// First message of a group's control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the source's software, for people.
    pub software: String,
    /// Group that the source wants to send.
    pub group: GroupName,
    /// Generation that the source writes.
    pub generation: Generation,
    /// Position of the newest sealed segment.
    pub head: Option<Position>,
    /// Sequence of the oldest segment that can be sent.
    pub oldest: Sequence,
}

/// The newest cut at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestCut {
    /// Epoch that it ended.
    pub epoch: Epoch,
    /// Time of the cut, by the source's clock.
    pub time: Timestamp,
}

/// What a source says about one group every few seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The source's time.
    pub now: Timestamp,
    /// Its newest cut.
    pub newest_cut: Option<NewestCut>,
    /// Bytes of sealed segments without a receipt.
    pub backlog_bytes: u64,
    /// Sealed segments without a receipt.
    pub backlog_segments: u64,
    /// What the source is doing, for people, for example `streaming` or `resync 31 %`. At most [`TEXT_BYTES_MAX`] bytes.
    pub state: String,
}

/// Messages of a source on a control stream. The order of the variants is part of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceMessage {
    /// Asks to send a group; the first message.
    Hello(Hello),
    /// Says how the group fares.
    Heartbeat(Heartbeat),
    /// Ends the session in good order.
    Goodbye,
}

/// Messages of a site on a control stream. The order of the variants is part of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteMessage {
    /// The group, or what was asked, is refused; the session is over. Keeps its number and layout in all versions.
    Refused(Refusal),
    /// The group is open.
    Welcome {
        /// Version of the site's software, for people.
        software: String,
        /// Position up to which the site has everything, durable and verified.
        head: Option<Position>,
        /// What the site holds of segments behind it; at most [`PARTIALS_MAX`] with [`PARTIAL_RANGES_MAX`] ranges.
        partials: Vec<Partial>,
    },
    /// Answers a heartbeat.
    Pong {
        /// The heartbeat's time, by the source's clock.
        heartbeat: Timestamp,
        /// The site's time.
        now: Timestamp,
    },
    /// The site is shutting down, or has understood a goodbye.
    Goodbye,
}

/// First bytes of a call's stream, before the version.
pub const CALL_MAGIC: [u8; 4] = *b"TSQC";

/// Most regions that are compared in one call.
pub const COMPARED_REGIONS_MAX: usize = 64;

/// Most bytes that one host of a pair tells the other in one call.
pub const PAIR_BYTES_MAX: usize = 60 << 10;

/// A hash as 32 bytes; elsewhere on the wire hashes are texts.
pub type RawHash = [u8; 32];

/// A question of a source about an open group; the one message of its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The group.
    pub group: GroupName,
    /// What is asked.
    pub request: CallRequest,
}

/// What a source may ask. The order of the variants is part of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallRequest {
    /// Whether the site has the same bytes.
    Compare {
        /// The volume.
        volume: VolumeName,
        /// Where the regions begin, in bytes; a multiple of 65536.
        offset: u64,
        /// BLAKE3 of consecutive regions of 65536 bytes; the last of a volume may be shorter. At most [`COMPARED_REGIONS_MAX`].
        regions: Vec<RawHash>,
        /// Size of the volume in bytes.
        size_bytes: u64,
    },
    /// What the hosts of a pair tell each other; at most [`PAIR_BYTES_MAX`] bytes.
    Pair(Vec<u8>),
    /// Which segments of the group the site has, newest first, before a sequence or from the newest on.
    Attached {
        /// Those of the group's seed instead.
        seed: bool,
        /// Only segments before this one.
        before: Option<Sequence>,
    },
    /// The blocks of an attached segment.
    Blocks {
        /// One of the group's seed instead.
        seed: bool,
        /// The segment.
        sequence: Sequence,
        /// So many of its blocks are left out: those that were asked for before.
        skip: u32,
    },
}

/// Most segments that are listed in one answer.
pub const LISTED_SEGMENTS_MAX: usize = 512;

/// Most blocks that are listed in one answer.
pub const LISTED_BLOCKS_MAX: usize = 3000;

/// A segment that the site has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedSegment {
    /// Its generation.
    pub generation: Generation,
    /// Its place in the chain.
    pub sequence: Sequence,
    /// Its hash.
    pub hash: RawHash,
}

/// A block of a segment that the site has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedBlock {
    /// Number of its frame.
    pub frame: u32,
    /// Its number in the frame.
    pub block: u16,
    /// Differences between it and the plain block under it.
    pub steps: u8,
    /// The first bytes of its hash.
    pub fingerprint: [u8; 8],
}

/// The answer to a call; the one message that comes back. The order of the variants is part of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallAnswer {
    /// The call is refused.
    Refused(Refusal),
    /// What the site has.
    Compared {
        /// The position whose state was compared; none if the site has nothing of the group.
        head: Option<Position>,
        /// One for each region that was asked for.
        regions: Vec<RegionAnswer>,
    },
    /// What the other host of the pair answers.
    Pair(Vec<u8>),
    /// Segments that the site has, newest first, at most [`LISTED_SEGMENTS_MAX`]; fewer only at the end of the chain.
    Attached(Vec<AttachedSegment>),
    /// Blocks of a segment, at most [`LISTED_BLOCKS_MAX`]; none behind the last.
    Blocks(Vec<ListedBlock>),
}

/// The answer to a stream of a connection that measures its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Bytes that came and were discarded.
    pub bytes: u64,
}

/// What a site has of a region. The order of the variants is part of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegionAnswer {
    /// The same bytes.
    Equal,
    /// Blocks of 4096 bytes with these BLAKE3 hashes; the last of a volume may be shorter. All zeroes stand for a block that the site cannot
    /// read.
    Blocks(Vec<RawHash>),
}

/// Why a site does not take something. The order of the variants is part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The peer is not enrolled for this group.
    NotEnrolled,
    /// The protocol's version is not spoken here.
    Version,
    /// Somebody else is sending this group.
    Busy,
    /// No room is left.
    Full,
    /// The chain does not continue what the site has.
    Diverged,
    /// A newer generation has taken over.
    Fenced,
    /// The bytes are not what their descriptor says.
    Corrupt,
    /// A passing fault, for example of a disk.
    Retry,
    /// The message or request breaks the protocol, or is too large.
    Invalid,
    /// A segment refers to blocks that the site does not have.
    Lacking,
}

impl RefusalKind {
    /// What the caller can do about it.
    pub fn error_kind(self) -> ErrorKind {
        match self {
            RefusalKind::NotEnrolled | RefusalKind::Version | RefusalKind::Invalid => ErrorKind::Invalid,
            RefusalKind::Busy | RefusalKind::Retry => ErrorKind::Retry,
            RefusalKind::Full => ErrorKind::Full,
            RefusalKind::Diverged => ErrorKind::Diverged,
            RefusalKind::Fenced => ErrorKind::Fenced,
            RefusalKind::Corrupt | RefusalKind::Lacking => ErrorKind::Corrupt,
        }
    }
}

/// A refusal, in words that an operator can act on.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub struct Refusal {
    /// What the receiver of the refusal can do.
    pub kind: RefusalKind,
    /// The segment that is refused; none if the whole group is.
    pub sequence: Option<Sequence>,
    /// What happened.
    pub reason: String,
    /// What to do now; may be empty.
    pub hint: String,
}

impl Refusal {
    /// A refusal of a whole group.
    pub fn new(kind: RefusalKind, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, sequence: None, reason: shortened(reason.into()), hint: shortened(hint.into()) }
    }

    /// The same for one segment.
    #[must_use]
    pub fn of_segment(self, sequence: Sequence) -> Self {
        Self { sequence: Some(sequence), ..self }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind.error_kind()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(sequence) = self.sequence {
            write!(f, "segment {sequence}: ")?;
        }
        f.write_str(&self.reason)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

/// The site's signed word that everything up to a position is durable and verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The group.
    pub group: GroupName,
    /// Everything up to and including this is durable and verified at the site.
    pub position: Position,
    /// The site's time when it signed.
    pub time: Timestamp,
    /// Ed25519 signature of the site's identity over the receipt's canonical bytes.
    pub signature: Signature,
}

impl Receipt {
    /// Signs a receipt.
    pub fn sign(identity: &Identity, group: GroupName, position: Position, time: Timestamp) -> Self {
        let signature = identity.sign(&receipt_bytes(&group, &position, time));
        Self { group, position, time, signature }
    }

    /// Tells whether the holder of `key` signed this.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.verify(&receipt_bytes(&self.group, &self.position, self.time), &self.signature)
    }
}

/// The bytes that a receipt's signature covers; see PROTOCOL.md, "Receipts".
fn receipt_bytes(group: &GroupName, position: &Position, time: Timestamp) -> Vec<u8> {
    let name = group.as_str().as_bytes();
    let mut bytes = RECEIPT_DOMAIN.to_vec();
    // A name has at most 63 bytes.
    bytes.push(name.len() as u8);
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&position.generation.0.to_le_bytes());
    bytes.extend_from_slice(&position.sequence.0.to_le_bytes());
    bytes.extend_from_slice(&position.epoch.0.to_le_bytes());
    bytes.extend_from_slice(&position.hash.0);
    bytes.extend_from_slice(&time.0.to_le_bytes());
    bytes
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The stream does not begin with the protocol's magic number.
    #[error("the stream does not begin with the magic number of thirdsite's protocol")]
    Magic,
    /// The length prefix is above the limit.
    #[error("a message of {actual} bytes is announced; the limit is {MESSAGE_BYTES_MAX}")]
    TooLarge {
        /// Length that was announced.
        actual: u64,
    },
    /// The bytes are not this message.
    #[error("the bytes are not a {what}")]
    Decode {
        /// Which message.
        what: &'static str,
    },
}

impl WireError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

/// The preamble of a control stream in the version of this build.
pub fn preamble() -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    bytes
}

/// The preamble of a call's stream in the version of this build.
pub fn call_preamble() -> [u8; PREAMBLE_BYTES] {
    let mut bytes = preamble();
    bytes[..4].copy_from_slice(&CALL_MAGIC);
    bytes
}

/// Reads the version from a preamble; it may be one that this build does not speak.
///
/// # Errors
/// [`WireError::Magic`].
pub fn parse_preamble(bytes: [u8; PREAMBLE_BYTES]) -> Result<u32, WireError> {
    let [m0, m1, m2, m3, version @ ..] = bytes;
    if [m0, m1, m2, m3] == MAGIC { Ok(u32::from_le_bytes(version)) } else { Err(WireError::Magic) }
}

/// A message with its length prefix.
///
/// # Panics
/// Never for messages of this module: their texts are bounded, so that they stay below [`MESSAGE_BYTES_MAX`].
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let body = postcard::to_stdvec(message).expect("messages of this module are serialisable");
    assert!(body.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes is above the limit", body.len());
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// Checks a length prefix.
///
/// # Errors
/// [`WireError::TooLarge`].
pub fn parse_length(prefix: [u8; 4]) -> Result<usize, WireError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length <= MESSAGE_BYTES_MAX { Ok(length) } else { Err(WireError::TooLarge { actual: length as u64 }) }
}

/// Reads a message, which must take up all of `body`.
///
/// # Errors
/// [`WireError::Decode`], naming `what`.
pub fn decode<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Decode { what }),
    }
}

/// Cuts a text to [`TEXT_BYTES_MAX`] at a character's boundary.
pub fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    }
    text
}

#[cfg(test)]
mod tests;
