//! A point, open for reading: for each volume a sorted, immutable map of where its bytes are.
//!
//! Memory: 24 bytes for each piece (a run of sectors whose bytes lie together in one frame), about 100 for each frame
//! that a piece lies in, twice that while opening, and the cache of decompressed frames. All have limits.

mod cache;
mod map;

use std::sync::Arc;
use std::time::{Duration, Instant};

use journal_format::definition::GroupDefinition;
use journal_format::segment::{FrameEntry, SegmentIndex, VolumeRecord};
use journal_format::{Generation, Hash, SECTOR_BYTES, Sequence, VolumeName};

use crate::catalog::{Point, SegmentRow};
use crate::error::StoreError;
use crate::segment_file;
use crate::store::disk::Disk;
use cache::FrameCache;
pub(crate) use map::Piece;
use map::{MapBuilder, VolumeMap};

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
    disk: Disk,
    point: Point,
    definition: Option<GroupDefinition>,
    maps: Vec<VolumeMap>,
    segments: Vec<(Generation, Sequence)>,
    frames: Vec<FrameRef>,
    cache: FrameCache,
    open_duration: Duration,
}

/// A frame that some piece lies in.
struct FrameRef {
    segment: u32,
    entry: FrameEntry,
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
        disk: Disk,
        point: Point,
        chain: Vec<SegmentRow>,
        options: &ViewOptions,
    ) -> Result<Arc<PointView>, StoreError> {
        let begin = Instant::now();
        let mut opening = Opening::new(&point, options);
        // Newest first, so that only what nothing newer covers is added.
        for row in chain.iter().rev() {
            let path = disk.segment_path(&point.group, row.position.generation, row.position.sequence);
            let index = segment_file::read_index(&path)?;
            let (expected, actual) = (row.position.hash, index.trailer.hash);
            if expected != actual {
                return Err(StoreError::OtherSegment { path, expected, actual });
            }
            opening.add(index)?;
        }
        let Opening { builders, segments, frames, definition, .. } = opening;
        Ok(Arc::new(PointView {
            disk,
            point,
            definition,
            maps: builders.into_iter().map(MapBuilder::finish).collect(),
            segments,
            frames,
            cache: FrameCache::new(options.cache_bytes_max),
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
        map_bytes(pieces, self.frames.len() as u64)
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

    /// A frame, from the cache or from its segment.
    fn frame(&self, number: u32) -> Result<Arc<Vec<u8>>, StoreError> {
        if let Some(bytes) = self.cache.get(number) {
            return Ok(bytes);
        }
        let bytes = Arc::new(self.read_frame(number)?);
        self.cache.put(number, &bytes);
        Ok(bytes)
    }

    fn read_frame(&self, number: u32) -> Result<Vec<u8>, StoreError> {
        let frame = &self.frames[number as usize];
        let (generation, sequence) = self.segments[frame.segment as usize];
        let path = self.disk.segment_path(&self.point.group, generation, sequence);
        segment_file::read_frame(&path, &frame.entry)
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
        self.map().walk(offset, buffer, |piece, from, target| {
            let bytes = self.view.frame(piece.frame);
            let bytes = bytes.map_err(|source| self.read_error(piece.start_bytes() + from, source))?;
            target.copy_from_slice(&bytes[(piece.frame_bytes() + from) as usize..][..target.len()]);
            Ok(())
        })
    }

    /// Reads like [`VolumeView::read_at`] if that needs no disk and no decompression; tells whether it did.
    ///
    /// # Errors
    /// If the range is not one of the volume.
    pub fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, StoreError> {
        self.check_range(offset, buffer.len() as u64)?;
        let result = self.map().walk(offset, buffer, |piece, from, target| {
            let bytes = self.view.cache.get(piece.frame).ok_or(NotCached)?;
            target.copy_from_slice(&bytes[(piece.frame_bytes() + from) as usize..][..target.len()]);
            Ok::<(), NotCached>(())
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

    /// Reads a frame without keeping it.
    pub(crate) fn read_frame(&self, piece: &Piece) -> Result<Vec<u8>, StoreError> {
        let bytes = self.view.read_frame(piece.frame);
        bytes.map_err(|source| self.read_error(piece.start_bytes(), source))
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
    segments: Vec<(Generation, Sequence)>,
    frames: Vec<FrameRef>,
    definition: Option<GroupDefinition>,
}

impl<'a> Opening<'a> {
    fn new(point: &'a Point, options: &ViewOptions) -> Self {
        let builders = point.volumes.iter().map(|volume| MapBuilder::new(volume.size_bytes)).collect();
        let (segments, frames) = (Vec::new(), Vec::new());
        Opening { point, limit_bytes: options.map_bytes_max, builders, segments, frames, definition: None }
    }

    /// Adds a segment that is older than all before it.
    fn add(&mut self, index: SegmentIndex) -> Result<(), StoreError> {
        let SegmentIndex { header, frames, extents, meta, .. } = index;
        let segment = self.segments.len() as u32;
        self.segments.push((header.generation, header.sequence));
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
        let mut numbers: Vec<Option<u32>> = vec![None; frames.len()];
        let (all_frames, builders) = (&mut self.frames, &mut self.builders);
        for extent in &extents {
            let Some(volume) = volumes[usize::from(extent.volume)] else { continue };
            builders[volume].add(extent, |local| {
                *numbers[local as usize].get_or_insert_with(|| {
                    all_frames.push(FrameRef { segment, entry: frames[local as usize].clone() });
                    (all_frames.len() - 1) as u32
                })
            });
        }
        let wanted = self.point.definition;
        if self.definition.is_none() && wanted != Hash::ZERO {
            self.definition = meta.definition.filter(|definition| definition.hash() == wanted);
        }
        let pieces: u64 = self.builders.iter().map(|builder| builder.len() as u64).sum();
        if map_bytes(pieces, self.frames.len() as u64) > self.limit_bytes {
            return Err(StoreError::MapTooLarge { point: self.point.id, limit_bytes: self.limit_bytes });
        }
        Ok(())
    }
}

fn map_bytes(pieces: u64, frames: u64) -> u64 {
    pieces * size_of::<Piece>() as u64 + frames * size_of::<FrameRef>() as u64
}
