//! A point, open for reading: for each volume a sorted, immutable map of where its bytes are.
//!
//! Memory: 24 bytes for each piece (a run of sectors whose bytes lie together in one frame), 8 for each frame
//! that a piece lies in, a few times that while opening, and the caches of segments' tables and of decompressed frames. All have limits.

mod map;
mod read_ahead;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use journal_format::definition::GroupDefinition;
use journal_format::segment::{ExtentContent, SegmentIndex, SegmentSource, VolumeRecord};
use journal_format::{Hash, SECTOR_BYTES, VolumeName};

use crate::catalog::{Point, SegmentRow};
use crate::error::StoreError;
use crate::frames::{Checks, FrameTable, Frames};
use crate::segments::Segments;
pub(crate) use map::Piece;
use map::{MapBuilder, VolumeMap};
use read_ahead::ReadAhead;

/// Limits of an opened point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewOptions {
    /// Memory for the maps of all volumes, in bytes.
    pub map_bytes_max: u64,
    /// Memory for decompressed frames, in bytes.
    pub cache_bytes_max: u64,
}

impl Default for ViewOptions {
    /// 1 GiB of map and 64 MiB of frames.
    fn default() -> Self {
        ViewOptions { map_bytes_max: 1 << 30, cache_bytes_max: 64 << 20 }
    }
}

/// A point that is open for reading; used by many threads at once.
pub struct PointView {
    point: Point,
    definition: Option<GroupDefinition>,
    maps: Vec<VolumeMap>,
    /// Those of the chain, and those that they refer to.
    segments: Vec<SegmentSource>,
    places: Vec<FramePlace>,
    frames: Frames,
    read_ahead: Mutex<ReadAhead>,
    open_duration: Duration,
}

/// A frame that some piece lies in.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct FramePlace {
    /// Index into the view's segments.
    segment: u32,
    /// Index into the segment's frame table.
    frame: u32,
}

/// A volume of an opened point.
#[derive(Clone)]
pub struct VolumeView {
    view: Arc<PointView>,
    number: usize,
}

/// Consecutive bytes that are all known to be zero, or that all lie in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroRun {
    /// Bytes.
    pub length: u64,
    /// They are zero, known without reading.
    pub zero: bool,
}

impl PointView {
    pub(crate) fn open(
        from: Arc<dyn Segments>,
        point: Point,
        chain: Vec<SegmentRow>,
        options: &ViewOptions,
    ) -> Result<Arc<PointView>, StoreError> {
        let begin = Instant::now();
        let mut opening = Opening::new(&point, options);
        // Newest first, so that only what nothing newer covers is added.
        let wanted: Vec<SegmentSource> = chain.iter().rev().map(|row| row.source(&point.group)).collect();
        from.indexes(&wanted, &mut |index| opening.add(index))?;
        let Opening { builders, segments, places, definition, .. } = opening;
        Ok(Arc::new(PointView {
            point,
            definition,
            maps: builders.into_iter().map(MapBuilder::finish).collect(),
            segments: segments.list,
            places: places.list,
            frames: Frames::new(from, options.cache_bytes_max, Checks::All),
            read_ahead: Mutex::default(),
            open_duration: begin.elapsed(),
        }))
    }

    /// The point.
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// The VM definitions that travelled with the point, if it has any.
    pub fn definition(&self) -> Option<&GroupDefinition> {
        self.definition.as_ref()
    }

    /// The volumes, in the order of the point.
    pub fn volumes(&self) -> &[VolumeRecord] {
        &self.point.volumes
    }

    /// How long opening took.
    pub fn open_duration(&self) -> Duration {
        self.open_duration
    }

    /// Memory of the maps, in bytes.
    pub fn map_bytes(&self) -> u64 {
        let pieces: u64 = self.maps.iter().map(|map| map.pieces().len() as u64).sum();
        map_bytes(pieces, self.places.len() as u64)
    }

    /// A volume by its name.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVolume`].
    pub fn volume(self: &Arc<Self>, name: &VolumeName) -> Result<VolumeView, StoreError> {
        let number = self.volumes().iter().position(|volume| volume.name == *name);
        let number = number.ok_or_else(|| StoreError::NoSuchVolume {
            point: self.point.id,
            volume: name.to_string(),
            known: self.volumes().iter().map(|volume| volume.name.to_string()).collect(),
        })?;
        Ok(VolumeView { view: Arc::clone(self), number })
    }

    /// All volumes, in the order of the point.
    pub fn all(self: &Arc<Self>) -> impl Iterator<Item = VolumeView> {
        (0..self.volumes().len()).map(|number| VolumeView { view: Arc::clone(self), number })
    }

    /// Where a frame of the view is: the table of its segment, and its number there.
    fn frame(&self, number: u32) -> Result<(Arc<FrameTable>, u32), StoreError> {
        let FramePlace { segment, frame } = self.places[number as usize];
        Ok((self.frames.table(&self.segments[segment as usize])?, frame))
    }
}

impl VolumeView {
    /// The volume.
    pub fn record(&self) -> &VolumeRecord {
        &self.view.point.volumes[self.number]
    }

    /// The opened point that it belongs to.
    pub fn view(&self) -> &Arc<PointView> {
        &self.view
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.record().size_bytes
    }

    fn map(&self) -> &VolumeMap {
        &self.view.maps[self.number]
    }

    /// Reads `buffer` from `offset` on; both are multiples of 512 bytes. Every frame is verified.
    ///
    /// # Errors
    /// If the range is not one of the volume, or a segment is missing or damaged; `buffer` then holds nothing of use.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.check_range(offset, buffer.len() as u64)?;
        if self.view.frames.reads_ahead() {
            self.read_ahead(offset, offset + buffer.len() as u64);
        }
        self.map().walk(offset, buffer, |piece, from, target| {
            let read = self.view.frame(piece.frame).and_then(|(table, frame)| {
                self.view.frames.read(&table, frame, piece.frame_bytes() + from, target)
            });
            read.map_err(|source| self.read_error(piece.start_bytes() + from, source))
        })
    }

    /// Reads like [`VolumeView::read_at`] if that needs no disk and no decompression; tells whether it did.
    ///
    /// # Errors
    /// If the range is not one of the volume.
    pub fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, StoreError> {
        self.check_range(offset, buffer.len() as u64)?;
        let result = self.map().walk(offset, buffer, |piece, from, target| {
            let FramePlace { segment, frame } = self.view.places[piece.frame as usize];
            let segment = &self.view.segments[segment as usize];
            let read = self.view.frames.try_read(segment, frame, piece.frame_bytes() + from, target);
            if read { Ok(()) } else { Err(NotCached) }
        });
        Ok(result.is_ok())
    }

    /// The run that begins at `offset`, at most `length` bytes long. Reads nothing.
    pub fn zero_run(&self, offset: u64, length: u64) -> ZeroRun {
        self.map().run(offset, length)
    }

    pub(crate) fn pieces(&self) -> &[Piece] {
        self.map().pieces()
    }

    /// Says which bytes are read, and going to be read as it seems.
    fn read_ahead(&self, start: u64, end: u64) {
        let mut readers = self.view.read_ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = readers.handle_read(self.number, start..end);
        drop(readers);
        let pieces = self.map().from(expected.start);
        self.expect_pieces(pieces.iter().take_while(|piece| piece.start_bytes() < expected.end));
    }

    /// Says which pieces are going to be read, in this order.
    pub(crate) fn expect_pieces<'a>(&self, pieces: impl Iterator<Item = &'a Piece>) {
        if !self.view.frames.reads_ahead() {
            return;
        }
        let mut seen = HashSet::new();
        let frames = pieces.filter(|piece| seen.insert(piece.frame)).map(|piece| {
            let FramePlace { segment, frame } = self.view.places[piece.frame as usize];
            (&self.view.segments[segment as usize], frame)
        });
        self.view.frames.expect(frames);
    }

    /// Reads pieces that lie in one frame and hands each to `put`. Of a frame that holds the bytes themselves nothing is kept.
    pub(crate) fn read_pieces<E: From<StoreError>>(
        &self,
        pieces: &[Piece],
        mut put: impl FnMut(&Piece, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(first) = pieces.first() else { return Ok(()) };
        let failed = |piece: &Piece, source| self.read_error(piece.start_bytes(), source);
        let (table, frame) = self.view.frame(first.frame).map_err(|source| failed(first, source))?;
        let whole = self.view.frames.whole(&table, frame).map_err(|source| failed(first, source))?;
        let mut buffer = Vec::new();
        for piece in pieces {
            let (from, length) = (piece.frame_bytes(), piece.size_bytes() as usize);
            match &whole {
                // A reference that lies outside its frame was not taken; a segment may have been put there past the store.
                Some(bytes) if bytes.len() >= from as usize + length => {
                    put(piece, &bytes[from as usize..][..length])?;
                }
                _ => {
                    buffer.resize(length, 0);
                    let read = self.view.frames.read(&table, frame, from, &mut buffer);
                    read.map_err(|source| failed(piece, source))?;
                    put(piece, &buffer)?;
                }
            }
        }
        Ok(())
    }

    fn read_error(&self, offset: u64, source: StoreError) -> StoreError {
        let (point, volume) = (self.view.point.id, self.record().name.clone());
        StoreError::Read { point, volume, offset, source: Box::new(source) }
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        let end = offset.saturating_add(length);
        let size_bytes = self.size_bytes();
        let sectors = offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES);
        if sectors && end <= size_bytes {
            return Ok(());
        }
        Err(StoreError::Range { volume: self.record().name.clone(), offset, end, size_bytes })
    }
}

struct NotCached;

/// The state of opening a point.
struct Opening<'a> {
    point: &'a Point,
    limit_bytes: u64,
    builders: Vec<MapBuilder>,
    segments: Numbered<SegmentSource>,
    places: Numbered<FramePlace>,
    definition: Option<GroupDefinition>,
}

impl<'a> Opening<'a> {
    fn new(point: &'a Point, options: &ViewOptions) -> Self {
        let builders = point.volumes.iter().map(|volume| MapBuilder::new(volume.size_bytes)).collect();
        let (segments, places) = (Numbered::new(), Numbered::new());
        Opening { point, limit_bytes: options.map_bytes_max, builders, segments, places, definition: None }
    }

    /// Adds a segment that is older than all before it.
    fn add(&mut self, index: SegmentIndex) -> Result<(), StoreError> {
        let SegmentIndex { header, trailer, extents, sources, references, meta, .. } = index;
        let (group, generation, sequence) = (header.group, header.generation, header.sequence);
        let this = self.segments.number(SegmentSource { group, generation, sequence, hash: trailer.hash });
        let sources: Vec<u32> = sources.into_iter().map(|source| self.segments.number(source)).collect();
        // Volumes are known by name; their numbers may differ between segments.
        let volumes: Vec<Option<usize>> = meta
            .volumes
            .iter()
            .map(|volume| self.point.volumes.iter().position(|other| other.name == volume.name))
            .collect();
        for (volume, builder) in self.point.volumes.iter().zip(&mut self.builders) {
            let then = meta.volumes.iter().find(|other| other.name == volume.name);
            builder.limit_to(then.map_or(0, |then| then.size_bytes));
        }
        let (places, builders) = (&mut self.places, &mut self.builders);
        let mut place = |content| match content {
            ExtentContent::Zero => None,
            ExtentContent::Frame { frame, offset } => {
                Some((places.number(FramePlace { segment: this, frame }), offset))
            }
            ExtentContent::Reference(number) => {
                let place = references[number as usize].place;
                let segment = sources[place.source as usize];
                Some((places.number(FramePlace { segment, frame: place.frame }), place.offset))
            }
        };
        for extent in &extents {
            let Some(volume) = volumes[usize::from(extent.volume)] else { continue };
            builders[volume].add(extent, &mut place);
        }
        let wanted = self.point.definition;
        if self.definition.is_none() && wanted != Hash::ZERO {
            self.definition = meta.definition.filter(|definition| definition.hash() == wanted);
        }
        let pieces: u64 = self.builders.iter().map(|builder| builder.len() as u64).sum();
        if map_bytes(pieces, self.places.list.len() as u64) > self.limit_bytes {
            return Err(StoreError::MapTooLarge { point: self.point.id, limit_bytes: self.limit_bytes });
        }
        Ok(())
    }
}

fn map_bytes(pieces: u64, frames: u64) -> u64 {
    pieces * size_of::<Piece>() as u64 + frames * size_of::<FramePlace>() as u64
}

/// Different values in the order in which they came.
struct Numbered<T> {
    list: Vec<T>,
    numbers: HashMap<T, u32>,
}

impl<T: Clone + Eq + std::hash::Hash> Numbered<T> {
    fn new() -> Self {
        Numbered { list: Vec::new(), numbers: HashMap::new() }
    }

    fn number(&mut self, value: T) -> u32 {
        let next = self.list.len() as u32;
        *self.numbers.entry(value).or_insert_with_key(|value| {
            self.list.push(value.clone());
            next
        })
    }
}
