//! What the two hosts tell each other, as `PAIR.md` defines it. Bytes come from a network; none are trusted.

use journal::MarkedPage;
use journal_format::{Hash, Position, Sequence, VolumeName};
use serde::{Deserialize, Serialize};

/// Version of the link.
pub(crate) const VERSION: u32 = 1;

/// A page of an intent map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WirePage {
    volume: u16,
    page: u32,
    version: u64,
    bits: Vec<u8>,
}

impl From<&MarkedPage> for WirePage {
    fn from(page: &MarkedPage) -> Self {
        WirePage { volume: page.volume, page: page.page, version: page.version, bits: page.bits.clone() }
    }
}

impl From<WirePage> for MarkedPage {
    fn from(page: WirePage) -> Self {
        MarkedPage { volume: page.volume, page: page.page, version: page.version, bits: page.bits }
    }
}

/// How the active host introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begin {
    pub(crate) version: u32,
    pub(crate) settings: Hash,
    pub(crate) volumes: Vec<(VolumeName, u64)>,
    pub(crate) next: Sequence,
    pub(crate) parent: Hash,
    pub(crate) covered: Option<Position>,
    pub(crate) patience_ms: u64,
}

/// What the active host says. The order of the variants is part of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PairMessage {
    Begin(Begin),
    Marks { number: u64, heard: u64, pages: Vec<WirePage> },
    Complete { number: u64, heard: u64 },
    Lease { number: u64, heard: u64, covered: Option<Position> },
}

/// What the standby answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PairAnswer {
    Done,
    Refused(String),
}

impl PairMessage {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a message has only fields that postcard can hold")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<PairMessage> {
        postcard::from_bytes(bytes).ok()
    }
}

impl PairAnswer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("an answer has only fields that postcard can hold")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<PairAnswer> {
        postcard::from_bytes(bytes).ok()
    }
}

/// What has to be equal in the settings of both hosts.
pub(crate) fn settings_hash<'a>(volumes: impl Iterator<Item = (&'a VolumeName, u64)>) -> Hash {
    let text: String = volumes.map(|(name, size_bytes)| format!("{name} {size_bytes}\n")).collect();
    Hash::of(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_meaning_and_garbage_has_none() {
        let page = WirePage { volume: 1, page: 2, version: 3, bits: vec![7; 488] };
        let message = PairMessage::Marks { number: 9, heard: 8, pages: vec![page] };
        let bytes = message.encode();
        assert_eq!(PairMessage::decode(&bytes), Some(message));
        for length in 0..bytes.len() {
            assert_eq!(PairMessage::decode(&bytes[..length]), None);
        }
        assert_eq!(PairMessage::decode(&[9, 1, 2]), None);
        let answer = PairAnswer::Refused("no".to_owned());
        assert_eq!(PairAnswer::decode(&answer.encode()), Some(answer));
    }

    #[test]
    fn a_hundred_pages_fit_into_a_call() {
        let page = WirePage { volume: u16::MAX, page: u32::MAX, version: u64::MAX, bits: vec![255; 488] };
        let message = PairMessage::Marks { number: u64::MAX, heard: u64::MAX, pages: vec![page; 100] };
        assert!(message.encode().len() < 60 << 10);
    }
}
