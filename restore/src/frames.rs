//! Reading blocks of segments: frames are read, verified and decompressed, and differences are followed down to the blocks that they are
//! taken from. Memory: the tables of the segments that were read last, and decompressed frames; both have limits.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal_format::segment::{
    BlockPlace, DIFFERENCE_STEPS_MAX, FrameEntry, FrameKind, SegmentIndex, SegmentSource, apply_difference,
};
use journal_format::{BLOCK_BYTES, FormatError, Hash};

use crate::cache::Cache;
use crate::decoding::{Decode, Decoding};
use crate::error::StoreError;
use crate::segments::{Segments, WantedFrame};
use crate::sound::SoundFrames;

/// Memory for the tables of segments, in bytes: about 25 KiB for a segment of 64 MiB.
const TABLES_BYTES_MAX: u64 = 64 << 20;
/// Decompressed frames whose memory is kept for others.
const SPARE_MAX: usize = 4;
const BLOCK: usize = BLOCK_BYTES as usize;

/// How many places, from the first on, lie behind one another in one frame.
pub(crate) fn run_of_places(places: &[BlockPlace]) -> usize {
    let follows = |pair: &&[BlockPlace]| {
        pair[1] == BlockPlace { offset: pair[0].offset.wrapping_add(BLOCK as u32), ..pair[0] }
    };
    places.len().min(1 + places.windows(2).take_while(follows).count())
}

/// What of a segment's index is needed to read its blocks.
pub(crate) struct FrameTable {
    /// The segment.
    pub(crate) segment: SegmentSource,
    pub(crate) frames: Vec<FrameEntry>,
    pub(crate) sources: Vec<SegmentSource>,
    pub(crate) bases: Vec<BlockPlace>,
}

impl FrameTable {
    pub(crate) fn of(index: &SegmentIndex) -> FrameTable {
        let (header, hash) = (&index.header, index.trailer.hash);
        let (group, generation, sequence) = (header.group.clone(), header.generation, header.sequence);
        FrameTable {
            segment: SegmentSource { group, generation, sequence, hash },
            frames: index.frames.clone(),
            sources: index.sources.clone(),
            bases: index.bases.clone(),
        }
    }

    fn bytes(&self) -> u64 {
        let bytes = self.frames.len() * size_of::<FrameEntry>()
            + self.sources.len() * size_of::<SegmentSource>()
            + self.bases.len() * size_of::<BlockPlace>();
        bytes as u64
    }

    /// The base of a block of a difference frame.
    fn base(&self, first_base: u32, block: usize) -> (&SegmentSource, BlockPlace) {
        // The index was checked: there is a base for each block, and its source is listed.
        let place = self.bases[first_base as usize + block];
        (&self.sources[place.source as usize], place)
    }

    /// The frames, each with the number of its source, that the differences of a frame are taken from.
    fn frames_of_bases(&self, frame: u32) -> BTreeSet<(u32, u32)> {
        let Some(entry) = self.frames.get(frame as usize) else { return BTreeSet::new() };
        let FrameKind::Difference { first_base, .. } = entry.kind else { return BTreeSet::new() };
        let bases = &self.bases[first_base as usize..][..entry.blocks()];
        bases.iter().map(|base| (base.source, base.frame)).collect()
    }

    /// How many bases from that of `block` on, at most so many, lie behind one another in one frame.
    fn run_of_bases(&self, first_base: u32, block: usize, count_max: usize) -> usize {
        let bases = &self.bases[first_base as usize + block..][..count_max];
        run_of_places(bases)
    }
}

/// Which hashes of a frame are checked when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checks {
    /// That of the stored bytes and, of a plain frame, that of the content.
    All,
    /// That of the stored bytes of a frame that is not known to be sound: for a caller who checks what it makes of the content.
    Stored,
}

/// A decompressed frame, once somebody has read it. Of a folder, who comes meanwhile waits, and does not read it again.
#[derive(Default)]
struct RawFrame(Mutex<Option<Arc<Vec<u8>>>>);

impl RawFrame {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Vec<u8>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The frame, if that needs no waiting.
    fn try_get(&self) -> Option<Arc<Vec<u8>>> {
        self.0.try_lock().ok().and_then(|raw| raw.clone())
    }
}

/// Where bytes go that are read.
enum Target<'a> {
    /// In place of what is there.
    Replaced(&'a mut [u8]),
    /// Combined by exclusive or with what is there.
    Combined(&'a mut [u8]),
}

impl Target<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Target::Replaced(bytes) | Target::Combined(bytes) => bytes,
        }
    }

    fn len(&self) -> usize {
        match self {
            Target::Replaced(bytes) | Target::Combined(bytes) => bytes.len(),
        }
    }

    fn take(&mut self, read: &[u8]) {
        match self {
            Target::Replaced(bytes) => bytes.copy_from_slice(read),
            Target::Combined(bytes) => apply_difference(bytes, read),
        }
    }
}

/// Reads blocks of the segments in a store; used by many threads at once.
pub(crate) struct Frames {
    segments: Arc<dyn Segments>,
    checks: Checks,
    tables: Cache<Hash, FrameTable>,
    raw: Cache<(Hash, u32), RawFrame>,
    /// Memory of frames that are not kept any more, for others.
    spare: Mutex<Vec<Vec<u8>>>,
    pub(crate) sound: SoundFrames,
    /// What reading needs, for whoever reads next.
    decodings: Mutex<Vec<Decoding>>,
}

impl Frames {
    /// `cache_bytes_max` limits the memory for decompressed frames.
    pub(crate) fn new(segments: Arc<dyn Segments>, cache_bytes_max: u64, checks: Checks) -> Self {
        let (tables, raw) = (Cache::new(TABLES_BYTES_MAX), Cache::new(cache_bytes_max));
        let (spare, decodings) = (Mutex::default(), Mutex::default());
        Frames { segments, checks, tables, raw, spare, sound: SoundFrames::new(), decodings }
    }

    /// The table of a segment, which must be the one with this hash.
    pub(crate) fn table(&self, segment: &SegmentSource) -> Result<Arc<FrameTable>, StoreError> {
        // The hash says what it is, and not where: a reader without this cache has to find it there.
        if let Some(table) = self.tables.get(&segment.hash).filter(|table| table.segment == *segment) {
            return Ok(table);
        }
        let index = self.segments.index(segment)?;
        let (frames, sources, bases) = (index.frames, index.sources, index.bases);
        let table = Arc::new(FrameTable { segment: segment.clone(), frames, sources, bases });
        self.tables.put(segment.hash, &table, table.bytes());
        Ok(table)
    }

    /// Whether it helps to say ahead what is going to be read.
    pub(crate) fn reads_ahead(&self) -> bool {
        self.segments.reads_ahead()
    }

    /// Says what is going to be read, in this order. Of frames of differences, what they are taken from comes right behind them.
    pub(crate) fn expect<'a>(&self, frames: impl Iterator<Item = (&'a SegmentSource, u32)>) {
        let mut expected: Vec<(Arc<FrameTable>, u32)> = Vec::new();
        for (segment, frame) in frames {
            if self.raw.get(&(segment.hash, frame)).is_some_and(|held| held.try_get().is_some()) {
                continue;
            }
            // A table that cannot be read is an error when the frame is read.
            let Ok(table) = self.table(segment) else { continue };
            let bases = table.frames_of_bases(frame);
            expected.push((Arc::clone(&table), frame));
            for (source, frame) in bases {
                let Ok(table) = self.table(&table.sources[source as usize]) else { continue };
                expected.push((table, frame));
            }
        }
        let wanted = expected.iter().filter_map(|(table, number)| {
            let entry = table.frames.get(*number as usize)?;
            Some(WantedFrame { segment: &table.segment, entry })
        });
        self.segments.expect(&wanted.collect::<Vec<_>>());
    }

    /// Reads `buffer` from `offset` of a frame on.
    pub(crate) fn read(
        &self,
        table: &FrameTable,
        frame: u32,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        self.read_below(table, frame, offset, Target::Replaced(buffer), 0)
    }

    fn read_below(
        &self,
        table: &FrameTable,
        frame: u32,
        offset: u64,
        mut target: Target<'_>,
        steps: u8,
    ) -> Result<(), StoreError> {
        let entry = self.entry(table, frame)?;
        let raw = self.raw(table, frame, entry)?;
        let from = usize::try_from(offset).ok().filter(|from| from.saturating_add(target.len()) <= raw.len());
        let from = from.ok_or_else(|| self.broken(table, "a reference lies outside its frame"))?;
        target.take(&raw[from..from + target.len()]);
        match entry.kind {
            FrameKind::Plain => Ok(()),
            FrameKind::Difference { first_base, .. } => {
                self.apply_bases(table, first_base, from, target.bytes(), steps + 1)
            }
        }
    }

    /// Turns differences, which begin at byte `from` of their frame, into what they stand for.
    fn apply_bases(
        &self,
        table: &FrameTable,
        first_base: u32,
        from: usize,
        differences: &mut [u8],
        steps: u8,
    ) -> Result<(), StoreError> {
        if steps > DIFFERENCE_STEPS_MAX {
            return Err(self.broken(table, "a block is taken from too many differences"));
        }
        let mut at = 0;
        while at < differences.len() {
            let (block, skipped) = ((from + at) / BLOCK, (from + at) % BLOCK);
            let left = differences.len() - at;
            let run = table.run_of_bases(first_base, block, (skipped + left).div_ceil(BLOCK));
            let length = (run * BLOCK - skipped).min(left);
            let (source, place) = table.base(first_base, block);
            let start = u64::from(place.offset) + skipped as u64;
            let target = Target::Combined(&mut differences[at..at + length]);
            self.read_below(&*self.table(source)?, place.frame, start, target, steps)?;
            at += length;
        }
        Ok(())
    }

    /// Turns the decompressed bytes of a difference frame into what they stand for.
    pub(crate) fn apply(
        &self,
        table: &FrameTable,
        first_base: u32,
        raw: &mut [u8],
    ) -> Result<(), StoreError> {
        self.apply_bases(table, first_base, 0, raw, 1)
    }

    /// Reads like [`Frames::read`] if that needs no disk and no decompression; tells whether it did.
    pub(crate) fn try_read(
        &self,
        segment: &SegmentSource,
        frame: u32,
        offset: u64,
        buffer: &mut [u8],
    ) -> bool {
        let plain = self.tables.get(&segment.hash).filter(|table| {
            table.frames.get(frame as usize).is_some_and(|entry| entry.kind == FrameKind::Plain)
        });
        let held = plain.and_then(|_| self.raw.get(&(segment.hash, frame)));
        let Some(raw) = held.and_then(|held| held.try_get()) else { return false };
        let bytes = usize::try_from(offset).ok().and_then(|from| raw.get(from..from + buffer.len()));
        bytes.map(|bytes| buffer.copy_from_slice(bytes)).is_some()
    }

    /// A frame that holds the bytes themselves, whole and without being kept; `None` if it is a difference.
    pub(crate) fn whole(&self, table: &FrameTable, frame: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let entry = self.entry(table, frame)?;
        if entry.kind != FrameKind::Plain {
            return Ok(None);
        }
        self.read_raw(table, frame, entry).map(Some)
    }

    fn entry<'a>(&self, table: &'a FrameTable, frame: u32) -> Result<&'a FrameEntry, StoreError> {
        table
            .frames
            .get(frame as usize)
            .ok_or_else(|| self.broken(table, "a reference names a frame that is not there"))
    }

    fn raw(&self, table: &FrameTable, frame: u32, entry: &FrameEntry) -> Result<Arc<Vec<u8>>, StoreError> {
        let (held, dropped) = self.raw.get_or_put((table.segment.hash, frame), u64::from(entry.raw_bytes));
        self.keep_spare(dropped);
        let mut guard = held.lock();
        if let Some(raw) = &*guard {
            return Ok(Arc::clone(raw));
        }
        if self.segments.reads_ahead() {
            // What several want is fetched once, and fails for all of them at once: who waited here would begin to wait again.
            drop(guard);
            let raw = Arc::new(self.read_raw(table, frame, entry)?);
            *held.lock() = Some(Arc::clone(&raw));
            return Ok(raw);
        }
        let raw = Arc::new(self.read_raw(table, frame, entry)?);
        *guard = Some(Arc::clone(&raw));
        Ok(raw)
    }

    fn keep_spare(&self, dropped: Vec<Arc<RawFrame>>) {
        for frame in dropped.into_iter().filter_map(Arc::into_inner) {
            let raw = frame.0.into_inner().unwrap_or_else(PoisonError::into_inner);
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.len() < SPARE_MAX {
                spare.extend(raw.and_then(Arc::into_inner));
            }
        }
    }

    fn read_raw(&self, table: &FrameTable, frame: u32, entry: &FrameEntry) -> Result<Vec<u8>, StoreError> {
        let mut decoding = self.decodings().pop().unwrap_or_default();
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        decoding.give(spare.unwrap_or_default());
        let (wanted, hash) = (WantedFrame { segment: &table.segment, entry }, table.segment.hash);
        let how = match self.checks {
            Checks::All => Decode::Hashed,
            Checks::Stored if self.sound.holds(hash, frame) => Decode::Sound,
            Checks::Stored => Decode::Verified,
        };
        let raw = self.segments.frame(&wanted, how, &mut decoding);
        if how == Decode::Verified && raw.is_ok() {
            self.sound.note(hash, frame);
        }
        self.decodings().push(decoding);
        raw
    }

    fn decodings(&self) -> MutexGuard<'_, Vec<Decoding>> {
        self.decodings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self, table: &FrameTable, rule: &'static str) -> StoreError {
        let source = FormatError::Rule { part: "the segment's table of references", rule };
        StoreError::Damaged { path: self.segments.place(&table.segment), source }
    }
}
