//! The file of segments, an append-only log.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::SegmentRecord;
use crate::error::IndexError;

const FILE_NAME: &str = "segments";
const TEMPORARY_NAME: &str = "segments.tmp";
const MAGIC: [u8; 8] = *b"3SITESGR";
const VERSION: u32 = 1;
const RECORD_BYTES: usize = 128;
const HASHED_BYTES: usize = 120;
const KNOWN: u8 = 1;
const FORGOTTEN: u8 = 2;

/// Longest name of a group.
pub(super) const GROUP_BYTES_MAX: usize = 63;

/// Why a file is not one of segments.
#[derive(Debug, Error)]
pub(crate) enum SegmentsError {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("its header is damaged")]
    Header,
    #[error("its version is {0}")]
    Version(u32),
}

/// A record of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Known(u32, SegmentRecord),
    Forgotten(u32),
}

impl Line {
    pub(super) fn number(&self) -> u32 {
        match self {
            Line::Known(number, _) | Line::Forgotten(number) => *number,
        }
    }

    pub(super) fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..4].copy_from_slice(&self.number().to_le_bytes());
        match self {
            Line::Known(_, record) => {
                bytes[4] = KNOWN;
                bytes[5] = record.group.len() as u8;
                bytes[8..16].copy_from_slice(&record.generation.to_le_bytes());
                bytes[16..24].copy_from_slice(&record.sequence.to_le_bytes());
                bytes[24..56].copy_from_slice(&record.hash);
                bytes[56..56 + record.group.len()].copy_from_slice(record.group.as_bytes());
            }
            Line::Forgotten(_) => bytes[4] = FORGOTTEN,
        }
        with_checksum(bytes)
    }

    /// `None` for what is no record.
    pub(super) fn parse(bytes: &[u8; RECORD_BYTES]) -> Option<Line> {
        let number = u32::from_le_bytes(std::array::from_fn(|i| bytes[i]));
        let u64_at = |place: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[place + i]));
        if with_checksum(*bytes) != *bytes {
            return None;
        }
        match bytes[4] {
            KNOWN => {
                let group = bytes.get(56..119)?.get(..usize::from(bytes[5]))?.to_vec();
                let record = SegmentRecord {
                    group: String::from_utf8(group).ok()?,
                    generation: u64_at(8),
                    sequence: u64_at(16),
                    hash: std::array::from_fn(|i| bytes[24 + i]),
                };
                Some(Line::Known(number, record))
            }
            FORGOTTEN => Some(Line::Forgotten(number)),
            _ => None,
        }
    }
}

fn header(next: u32) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&next.to_le_bytes());
    with_checksum(bytes)
}

fn parse_header(bytes: &[u8; RECORD_BYTES]) -> Result<u32, SegmentsError> {
    let u32_at = |place: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[place + i]));
    if bytes[..8] != MAGIC || with_checksum(*bytes) != *bytes {
        return Err(SegmentsError::Header);
    }
    if u32_at(8) == VERSION { Ok(u32_at(12)) } else { Err(SegmentsError::Version(u32_at(8))) }
}

fn with_checksum(mut bytes: [u8; RECORD_BYTES]) -> [u8; RECORD_BYTES] {
    let hash = blake3::hash(&bytes[..HASHED_BYTES]);
    bytes[HASHED_BYTES..].copy_from_slice(&hash.as_bytes()[..RECORD_BYTES - HASHED_BYTES]);
    bytes
}

/// The open file.
#[derive(Debug)]
pub(super) struct Log {
    folder: PathBuf,
    file: File,
    file_bytes: u64,
}

impl Log {
    /// Opens the file of a folder; answers also its lowest number for the next segment and its records.
    pub(super) fn open(folder: &Path) -> Result<(Log, u32, Vec<Line>), SegmentsError> {
        let path = folder.join(FILE_NAME);
        let bytes = fs::read(&path)?;
        let (records, _torn) = bytes.as_chunks();
        let (first, rest) = records.split_first().ok_or(SegmentsError::Header)?;
        let next = parse_header(first)?;
        let lines = rest.iter().filter_map(Line::parse).collect();
        let file = File::options().write(true).open(path)?;
        // The next record takes the place of a torn one.
        let file_bytes = (records.len() * RECORD_BYTES) as u64;
        Ok((Log { folder: folder.to_owned(), file, file_bytes }, next, lines))
    }

    /// Writes the file anew.
    pub(super) fn create(folder: &Path, next: u32, lines: &[Line]) -> Result<Log, IndexError> {
        let path = folder.join(TEMPORARY_NAME);
        let file = File::create(&path).map_err(IndexError::io("create", &path))?;
        let mut log = Log { folder: folder.to_owned(), file, file_bytes: 0 };
        log.write([header(next)].into_iter().chain(lines.iter().map(Line::to_bytes)))?;
        fs::rename(&path, folder.join(FILE_NAME)).map_err(IndexError::io("rename", &path))?;
        Ok(log)
    }

    pub(super) fn append(&mut self, lines: &[Line]) -> Result<(), IndexError> {
        self.write(lines.iter().map(Line::to_bytes))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    fn write(&mut self, records: impl Iterator<Item = [u8; RECORD_BYTES]>) -> Result<(), IndexError> {
        let bytes: Vec<u8> = records.flatten().collect();
        let written = self.file.write_all_at(&bytes, self.file_bytes);
        written.map_err(IndexError::io("write", &self.folder.join(FILE_NAME)))?;
        self.file_bytes += bytes.len() as u64;
        Ok(())
    }
}
