//! What was carried: the segments in a seed's folder, as a chain.

use std::fs;
use std::path::{Path, PathBuf};

use journal_format::seed::{MAX_SEED_FILE_BYTES, SEED_FILE, SeedFile};
use journal_format::segment::{file_name, sequence_of};
use journal_format::{FormatError, GroupName, Sequence};
use transport::SegmentDescriptor;

use super::ImportError;
use crate::error::{StoreError, io_error};
use crate::segment_file::read_outline;

/// A seed's folder.
pub(super) struct Carried {
    /// The group that the seed is of.
    pub(super) group: GroupName,
    /// The group of the segments.
    pub(super) seed: GroupName,
    /// Files and what they say that they are, in the order of the chain. Their payload was not read.
    pub(super) segments: Vec<(PathBuf, SegmentDescriptor)>,
}

/// Looks into a folder.
pub(super) fn carried(folder: &Path) -> Result<Carried, ImportError> {
    let group = group_of(folder)?;
    let seed = group.seed().ok_or_else(|| ImportError::Unreadable {
        path: folder.to_owned(),
        source: FormatError::Seed { reason: format!("'{group}' is too long a name for a seed") },
    })?;
    let mut sequences: Vec<Sequence> = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let name = entry.map_err(io_error("list", folder))?.file_name();
        sequences.extend(name.to_str().and_then(sequence_of));
    }
    sequences.sort();
    let mut segments: Vec<(PathBuf, SegmentDescriptor)> = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let path = folder.join(file_name(sequence));
        let before = segments.last().map(|(_, segment)| segment.position);
        if let Some(missing) = before.map(|before| before.sequence.next()).filter(|next| *next != sequence) {
            return Err(ImportError::Missing { path: folder.join(file_name(missing)) });
        }
        let segment = descriptor(&path, sequence, &seed)?;
        if before.is_some_and(|before| before.hash != segment.parent) {
            return Err(ImportError::OtherSeed { path });
        }
        segments.push((path, segment));
    }
    Ok(Carried { group, seed, segments })
}

fn group_of(folder: &Path) -> Result<GroupName, ImportError> {
    let path = folder.join(SEED_FILE);
    let size = fs::metadata(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => ImportError::NoSeed { path: folder.to_owned() },
        _ => io_error("read", &path)(source).into(),
    })?;
    let too_large = || FormatError::Seed { reason: "it is too large".to_owned() };
    let decoded = if size.len() > MAX_SEED_FILE_BYTES {
        Err(too_large())
    } else {
        SeedFile::decode(&fs::read(&path).map_err(io_error("read", &path))?)
    };
    let file = decoded.map_err(|source| ImportError::Unreadable { path: folder.to_owned(), source })?;
    Ok(file.group)
}

fn descriptor(path: &Path, sequence: Sequence, seed: &GroupName) -> Result<SegmentDescriptor, ImportError> {
    let (header, trailer) = read_outline(path).map_err(|error| match error {
        StoreError::Damaged { path, source } => ImportError::Damaged { path, source },
        error => error.into(),
    })?;
    if header.group != *seed || header.sequence != sequence {
        return Err(ImportError::OtherSeed { path: path.to_owned() });
    }
    Ok(SegmentDescriptor {
        position: header.position(trailer.hash),
        parent: header.parent,
        size_bytes: trailer.file_bytes,
    })
}
