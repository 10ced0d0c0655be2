//! The folder of a seed: what is in it is found out when it is opened, and segments are added at its end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use journal_format::seed::{MAX_SEED_FILE_BYTES, SEED_FILE, SeedFile, SeedVolume};
use journal_format::segment::{
    BuildOptions, FrameDecoder, HEADER_BYTES, Header, SegmentIndex, TRAILER_BYTES, Trailer, VolumeRecord,
};
use journal_format::{
    BLOCK_BYTES, Epoch, FormatError, Generation, GroupName, Hash, Position, Sequence, Timestamp,
};
use tracing::info;

use super::SeedError;
use super::reader::Batch;
use crate::capture::EpochChanges;
use crate::chain::{StoredSegment, segment_name, sequence_of};
use crate::error::JournalError;
use crate::known::{KnownBlocks, LearntBlock};
use crate::seal::{SealRequest, seal, source_of};
use crate::storage::{DirStorage, Storage};

/// The index of what the folder holds. It only saves reading the segments again.
const INDEX_FOLDER: &str = "known.blocks";
/// Blocks that the index has room for at least: a group may grow.
const INDEX_BLOCKS_MIN: u64 = 1 << 25;
/// A new file system has this folder.
const OF_THE_FILE_SYSTEM: &str = "lost+found";

/// A seed that is open for adding to it. One process has it at a time.
pub(super) struct SeedFolder {
    path: PathBuf,
    storage: DirStorage,
    /// The group of the segments.
    group: GroupName,
    head: Option<Position>,
    known: Arc<KnownBlocks>,
}

/// What was added.
#[derive(Default)]
pub(super) struct Added {
    pub(super) segments: u64,
    pub(super) bytes: u64,
}

impl SeedFolder {
    /// Opens the seed of `group` in a folder, or begins one in a folder that is empty or absent.
    pub(super) fn open(
        path: &Path,
        group: &GroupName,
        volumes: &[VolumeRecord],
        now: Timestamp,
    ) -> Result<SeedFolder, SeedError> {
        let seed = group.seed().ok_or_else(|| SeedError::NoName { group: group.clone() })?;
        let storage = DirStorage::open(path).map_err(io_error("open the folder", path))?;
        let file = seed_file(&storage, path, group)?;
        let described = volumes
            .iter()
            .map(|volume| SeedVolume { name: volume.name.clone(), size_bytes: volume.size_bytes });
        let described: Vec<SeedVolume> = described.collect();
        let is_new = file.is_none();
        let mut file = file.unwrap_or_else(|| SeedFile::new(group.clone(), now, Vec::new()));
        // Before anything else is there, so that a crash leaves a folder that is known for what it is.
        if is_new || file.volumes != described {
            file.volumes = described;
            storage.write(SEED_FILE, &file.encode()).map_err(io_error("write", &path.join(SEED_FILE)))?;
        }
        let blocks: u64 = volumes.iter().map(|volume| volume.size_bytes / BLOCK_BYTES).sum();
        // Nobody else has the folder from here on.
        let known = KnownBlocks::open(&path.join(INDEX_FOLDER), (2 * blocks).max(INDEX_BLOCKS_MIN))?;
        let mut folder =
            SeedFolder { path: path.to_owned(), storage, group: seed, head: None, known: Arc::new(known) };
        folder.take_up()?;
        Ok(folder)
    }

    /// The blocks that it holds.
    pub(super) fn known(&self) -> Arc<KnownBlocks> {
        self.known.clone()
    }

    /// Removes what was being written when the last export ended, follows the chain, and learns the blocks that the index lacks.
    fn take_up(&mut self) -> Result<(), SeedError> {
        let mut sequences = Vec::new();
        for (name, _) in self.storage.list().map_err(io_error("list", &self.path))? {
            if name.ends_with(".tmp") {
                self.storage.remove(&name).map_err(io_error("remove", &self.path.join(&name)))?;
            }
            sequences.extend(sequence_of(&name));
        }
        sequences.sort();
        for &sequence in &sequences {
            let (header, trailer) = self.outline(sequence)?;
            self.check_place(&header)?;
            self.head = Some(header.position(trailer.hash));
        }
        self.known.forget_behind(&self.group, self.head.map_or(Sequence(0), |head| head.sequence));
        for sequence in sequences {
            let (header, trailer) = self.outline(sequence)?;
            if !self.known.knows(&trailer.hash) {
                self.learn(&header.position(trailer.hash))?;
            }
        }
        if let Some(head) = self.head {
            info!(path = %self.path.display(), last = %head.sequence, blocks = self.known.statistics().entries, "the seed is continued");
        }
        Ok(())
    }

    /// Whether a segment continues the head. The oldest ones may have been taken away.
    fn check_place(&self, header: &Header) -> Result<(), SeedError> {
        let path = self.path_of(header.sequence);
        if header.group != self.group {
            return Err(SeedError::OtherSegment { path });
        }
        match self.head {
            Some(head) if header.sequence != head.sequence.next() => {
                Err(SeedError::Missing { path: self.path_of(head.sequence.next()) })
            }
            Some(head) if header.parent != head.hash => Err(SeedError::OtherSegment { path }),
            _ => Ok(()),
        }
    }

    /// What a segment is, from its first and its last bytes.
    fn outline(&self, sequence: Sequence) -> Result<(Header, Trailer), SeedError> {
        let path = self.path_of(sequence);
        let damaged = |source: FormatError| SeedError::Damaged { path: path.clone(), source };
        let file_bytes = fs::metadata(&path).map_err(io_error("look at", &path))?.len();
        let header = self.read(sequence, 0, HEADER_BYTES)?;
        let at = file_bytes.saturating_sub(TRAILER_BYTES as u64);
        let trailer = self.read(sequence, at, TRAILER_BYTES)?;
        let trailer = Trailer::decode(&trailer, &header, file_bytes).map_err(damaged)?;
        let header = Header::decode(&header).map_err(damaged)?;
        if header.sequence == sequence {
            Ok((header, trailer))
        } else {
            Err(SeedError::OtherSegment { path })
        }
    }

    /// Reads all of a segment and learns its blocks.
    fn learn(&self, position: &Position) -> Result<(), SeedError> {
        let path = self.path_of(position.sequence);
        let damaged = |source: FormatError| SeedError::Damaged { path: path.clone(), source };
        let file_bytes = fs::metadata(&path).map_err(io_error("look at", &path))?.len();
        let (header, trailer) =
            (self.read(position.sequence, 0, HEADER_BYTES)?, self.outline(position.sequence)?.1);
        let tail_bytes = (file_bytes - trailer.index_offset) as usize;
        let tail = self.read(position.sequence, trailer.index_offset, tail_bytes)?;
        let index = SegmentIndex::decode(&header, &tail, file_bytes).map_err(damaged)?;
        let (mut decoder, mut blocks) = (FrameDecoder::default(), Vec::new());
        for (number, frame) in index.frames.iter().enumerate() {
            let stored = self.read(position.sequence, frame.offset, frame.stored_bytes as usize)?;
            let (_, hashes) = frame.decode_hashed(&mut decoder, &stored).map_err(damaged)?;
            blocks.extend(hashes.into_iter().enumerate().map(|(block, hash)| {
                let offset = block as u32 * BLOCK_BYTES as u32;
                LearntBlock { hash, frame: number as u32, offset, steps: 0 }
            }));
        }
        self.known.learn(&source_of(&self.group, position), blocks);
        Ok(())
    }

    fn read(&self, sequence: Sequence, offset: u64, length: usize) -> Result<Vec<u8>, SeedError> {
        let read = self.storage.read(&segment_name(sequence), offset, length);
        read.map_err(io_error("read", &self.path_of(sequence)))
    }

    fn path_of(&self, sequence: Sequence) -> PathBuf {
        self.path.join(segment_name(sequence))
    }

    /// Adds a segment with these blocks.
    pub(super) fn append(
        &mut self,
        batch: Batch,
        volumes: &[VolumeRecord],
        options: BuildOptions,
        now: Timestamp,
    ) -> Result<Added, SeedError> {
        let next = self.head.map_or((Sequence(1), Hash::ZERO), |head| (head.sequence.next(), head.hash));
        let epoch = self.head.map_or(Epoch(1), |head| head.epoch.next());
        let request = SealRequest {
            group: &self.group,
            generation: Generation(1),
            first_epoch: epoch,
            last_epoch: epoch,
            sealed_at: now,
            volumes,
            point: None,
            definition: None,
            options,
            known: Some(&self.known),
        };
        let (mut added, head) = (Added::default(), &mut self.head);
        let keep = |stored: StoredSegment| {
            *head = Some(stored.position);
            added.segments += 1;
            added.bytes += stored.size_bytes;
            Ok(())
        };
        let sealed = seal(&request, &EpochChanges::of(batch), next, &self.storage, keep, &|_| Ok(()));
        match sealed {
            Ok(_) => Ok(added),
            Err(JournalError::Storage { source, .. }) => {
                Err(SeedError::Io { action: "write", path: self.path_of(next.0), source })
            }
            Err(error) => Err(SeedError::Seal(error)),
        }
    }

    /// Keeps the index for the next export. Answers the newest segment's sequence.
    pub(super) fn finish(self) -> Option<Sequence> {
        self.known.flush();
        self.head.map(|head| head.sequence)
    }
}

/// What the folder says of itself; `None` if it is empty.
fn seed_file(storage: &DirStorage, path: &Path, group: &GroupName) -> Result<Option<SeedFile>, SeedError> {
    let bytes = match storage.read(SEED_FILE, 0, MAX_SEED_FILE_BYTES as usize) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let temporary = format!("{SEED_FILE}.tmp");
            for entry in fs::read_dir(path).map_err(io_error("list", path))? {
                let name = entry.map_err(io_error("list", path))?.file_name();
                if name != OF_THE_FILE_SYSTEM && name != temporary.as_str() {
                    return Err(SeedError::NotEmpty { path: path.to_owned() });
                }
            }
            return Ok(None);
        }
        Err(source) => return Err(io_error("read", &path.join(SEED_FILE))(source)),
    };
    let damaged = |source| SeedError::Damaged { path: path.join(SEED_FILE), source };
    let file = SeedFile::decode(&bytes).map_err(damaged)?;
    if file.group == *group {
        return Ok(Some(file));
    }
    Err(SeedError::OtherGroup { path: path.to_owned(), found: file.group, wanted: group.clone() })
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> SeedError + 'a {
    move |source| SeedError::Io { action, path: path.to_owned(), source }
}
