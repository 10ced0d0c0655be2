//! The blocks that the recovery site is known to keep, of all groups that this host ships to it.
//!
//! Nobody trusts it: a segment names what it refers to with full hashes, the site checks these before it takes the segment, and refuses one
//! that names what it lacks. What it lacks is forgotten here then, and sent by a resync.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use journal_format::segment::SegmentSource;
use journal_format::{BLOCK_BYTES, Generation, GroupName, Hash, Sequence, with_causes};
use journal_index::{Index, IndexError, Location, Options, SegmentRecord, Statistics};
use tracing::{info, warn};

/// At most this part of the blocks is in memory.
const MEMTABLE_SHARE: u64 = 32;
/// After so many segments what is in memory is written, so that a crash loses little.
const FLUSH_SEGMENTS: u32 = 64;

/// A block of a segment, to be known from now on.
#[derive(Clone, Copy, Debug)]
pub struct LearntBlock {
    /// Its hash; of one that is learnt from the site, the first 8 bytes are enough.
    pub hash: Hash,
    /// Number of its frame.
    pub frame: u32,
    /// Offset in the decompressed frame in bytes.
    pub offset: u32,
    /// Differences between it and the plain block under it.
    pub steps: u8,
}

/// Known blocks; shared by the groups of a host.
pub struct KnownBlocks {
    index: Index,
    /// Names the newest segment whose blocks are all on disk.
    watermark: PathBuf,
    unflushed: Mutex<Unflushed>,
    /// Up to where the site has the segments of each group.
    received: Mutex<HashMap<GroupName, Sequence>>,
}

/// What was learnt and is in memory only.
#[derive(Debug, Default)]
struct Unflushed {
    segments: u32,
    /// Number of the newest.
    newest: u32,
}

impl KnownBlocks {
    /// Opens the index in `folder`, or begins one, for at most so many blocks.
    ///
    /// # Errors
    /// If the folder cannot be used. What is in it and cannot be read is left out, and learnt again from the site.
    pub fn open(folder: &Path, blocks_max: u64) -> Result<KnownBlocks, IndexError> {
        let memtable_entries = usize::try_from(blocks_max / MEMTABLE_SHARE).unwrap_or(usize::MAX);
        let memtable_entries = memtable_entries.min(Options::default().memtable_entries);
        let index = Index::open(folder, Options { max_entries: blocks_max, memtable_entries })?;
        let watermark = folder.join("complete");
        // Blocks of later segments were in memory only, when a crash came.
        let complete = fs::read_to_string(&watermark).ok().and_then(|text| text.trim().parse::<u32>().ok());
        index.forget_segments(|number, _| complete.is_none_or(|complete| number > complete))?;
        let known = index.statistics();
        info!(blocks = known.entries, segments = known.segments, discarded = ?index.opened.discarded, "known blocks opened");
        Ok(KnownBlocks { index, watermark, unflushed: Mutex::default(), received: Mutex::default() })
    }

    /// Where a block with this hash may lie.
    pub(crate) fn find(&self, hash: &Hash) -> Option<Location> {
        self.index.lookup(&hash.0)
    }

    /// Whether a block with this hash is known, as far as the first bytes of the hash tell.
    pub(crate) fn holds(&self, hash: &Hash) -> bool {
        self.find(hash).is_some()
    }

    /// The segment that a location is in, if a segment `next` of `group` may refer to it: it lies before it in the chain, or the site has
    /// said that it has it.
    pub(crate) fn source(&self, segment: u32, group: &GroupName, next: Sequence) -> Option<SegmentSource> {
        let SegmentRecord { group: of, generation, sequence, hash } = self.index.segment(segment)?;
        let (of, sequence): (GroupName, _) = (of.parse().ok()?, Sequence(sequence));
        let usable = if of == *group {
            sequence < next
        } else {
            let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
            received.get(&of).is_some_and(|&received| sequence <= received)
        };
        usable.then_some(SegmentSource {
            group: of,
            generation: Generation(generation),
            sequence,
            hash: Hash(hash),
        })
    }

    /// Whether the blocks of a segment are known.
    pub fn knows(&self, segment: &Hash) -> bool {
        self.index.find_segment(&segment.0).is_some()
    }

    /// Takes in the blocks of a segment.
    pub fn learn(&self, source: &SegmentSource, blocks: impl IntoIterator<Item = LearntBlock>) {
        let record = SegmentRecord {
            group: source.group.to_string(),
            generation: source.generation.0,
            sequence: source.sequence.0,
            hash: source.hash.0,
        };
        let number = match self.index.add_segment(&record) {
            Ok(number) => number,
            Err(error) => {
                warn!(
                    error = with_causes(&error),
                    "the blocks of a segment are not remembered; they travel again if they come again"
                );
                return;
            }
        };
        for block in blocks {
            let sector = u16::try_from(block.offset / 512).ok();
            let frame = u16::try_from(block.frame).ok();
            let location = frame.zip(sector).and_then(|(frame, sector)| {
                debug_assert!(u64::from(block.offset).is_multiple_of(BLOCK_BYTES));
                Location::new(number, frame, sector, block.steps)
            });
            // What lies too far inside a segment cannot be named, and is carried again.
            if let Some(location) = location {
                self.index.insert(&block.hash.0, location);
            }
        }
        let mut unflushed = self.unflushed.lock().unwrap_or_else(PoisonError::into_inner);
        unflushed.segments += 1;
        unflushed.newest = number;
        if unflushed.segments >= FLUSH_SEGMENTS {
            self.write(&mut unflushed);
        }
    }

    fn write(&self, unflushed: &mut Unflushed) {
        let Unflushed { segments: 1.., newest } = std::mem::take(unflushed) else { return };
        let flushed = self.index.flush().map_err(|error| with_causes(&error));
        let noted = flushed.and_then(|()| {
            let temporary = self.watermark.with_extension("tmp");
            let written = fs::write(&temporary, newest.to_string())
                .and_then(|()| fs::rename(&temporary, &self.watermark));
            written.map_err(|error| error.to_string())
        });
        if let Err(error) = noted {
            warn!(
                error,
                "known blocks cannot be written; after a restart they are learnt again from the site"
            );
        }
    }

    /// Takes in that the site has the segments of a group up to `sequence`.
    pub fn note_received(&self, group: &GroupName, sequence: Sequence) {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.insert(group.clone(), sequence);
    }

    /// Forgets the segments of a group behind `sequence`: they are given up.
    pub(crate) fn forget_behind(&self, group: &GroupName, sequence: Sequence) {
        self.forget(|record| record.group == group.as_str() && record.sequence > sequence.0);
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.entry(group.clone()).and_modify(|received| *received = sequence.min(*received));
    }

    /// Forgets segments by their hashes: the site lacks something of them.
    pub fn forget_segments(&self, hashes: &[Hash]) {
        self.forget(|record| hashes.contains(&Hash(record.hash)));
    }

    fn forget(&self, matches: impl Fn(&SegmentRecord) -> bool) {
        match self.index.forget_segments(|_, record| matches(record)) {
            Ok(0) => {}
            Ok(segments) => info!(segments, "the blocks of segments were forgotten"),
            Err(error) => {
                warn!(
                    error = with_causes(&error),
                    "segments could not be forgotten for good; a restart remembers them, and the site refuses what it lacks"
                );
            }
        }
    }

    /// Writes what is in memory, so that the next start knows it.
    pub fn flush(&self) {
        self.write(&mut self.unflushed.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Size and use of the index.
    pub fn statistics(&self) -> Statistics {
        self.index.statistics()
    }
}

#[cfg(test)]
mod tests {
    use super::{GroupName, Hash, KnownBlocks, LearntBlock, SegmentSource, Sequence};
    use journal_format::Generation;

    const BLOCKS_MAX: u64 = 1 << 18;

    fn source(group: &str, sequence: u64) -> SegmentSource {
        let hash = Hash::of(format!("{group} {sequence}").as_bytes());
        let (group, generation) = (group.parse().unwrap(), Generation(1));
        SegmentSource { group, generation, sequence: Sequence(sequence), hash }
    }

    fn block(number: u64) -> LearntBlock {
        LearntBlock { hash: Hash::of(&number.to_le_bytes()), frame: 3, offset: 8192, steps: 1 }
    }

    /// The segment that a block may be referred to in.
    fn found(known: &KnownBlocks, number: u64, group: &str, next: u64) -> Option<SegmentSource> {
        let location = known.find(&block(number).hash)?;
        assert_eq!((location.frame(), location.sector(), location.depth()), (3, 16, 1));
        let group: GroupName = group.parse().unwrap();
        known.source(location.segment(), &group, Sequence(next))
    }

    #[test]
    fn a_group_refers_to_what_is_before_it_and_to_what_the_site_has_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownBlocks::open(folder.path(), BLOCKS_MAX).unwrap();
        known.learn(&source("one", 5), [block(1)]);
        assert_eq!(found(&known, 1, "one", 6), Some(source("one", 5)));
        assert_eq!(found(&known, 1, "one", 5), None);
        assert_eq!(found(&known, 1, "two", 100), None);
        known.note_received(&"one".parse().unwrap(), Sequence(5));
        assert_eq!(found(&known, 1, "two", 1), Some(source("one", 5)));
        assert_eq!(found(&known, 2, "one", 6), None);
    }

    #[test]
    fn what_is_given_up_or_lacking_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownBlocks::open(folder.path(), BLOCKS_MAX).unwrap();
        (1..=4).for_each(|number| known.learn(&source("one", number), [block(number)]));
        known.forget_behind(&"one".parse().unwrap(), Sequence(3));
        known.forget_segments(&[source("one", 2).hash]);
        let left: Vec<u64> = (1..=4).filter(|&number| found(&known, number, "one", 9).is_some()).collect();
        assert_eq!(left, [1, 3]);
        assert!(known.knows(&source("one", 1).hash) && !known.knows(&source("one", 2).hash));
    }

    #[test]
    fn a_crash_loses_whole_segments_so_that_they_are_learnt_again() {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownBlocks::open(folder.path(), BLOCKS_MAX).unwrap();
        known.learn(&source("one", 1), [block(1)]);
        known.flush();
        known.learn(&source("one", 2), [block(2)]);
        drop(known);
        let known = KnownBlocks::open(folder.path(), BLOCKS_MAX).unwrap();
        assert!(known.knows(&source("one", 1).hash) && found(&known, 1, "one", 9).is_some());
        assert!(!known.knows(&source("one", 2).hash) && found(&known, 2, "one", 9).is_none());
    }
}
