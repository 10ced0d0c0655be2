//! The folder of a store: segments are files, read with `pread`.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use journal_format::segment::{MAX_SEGMENT_BYTES, SegmentIndex, SegmentSource};
use journal_format::{FormatError, Generation, GroupName, Sequence};

use super::{
    GroupWriter, KnownChain, ListedSegment, Listing, Segments, WantedFrame, check_whole, same_segment,
};
use crate::decoding::{Decode, Decoding};
use crate::error::{StoreError, io_error};
use crate::segment_file::{self, FrameFile};
use crate::store::disk::Disk;
use crate::store::{seed_of, writer_of};

impl Segments for Disk {
    fn location(&self) -> String {
        self.root().display().to_string()
    }

    fn groups(&self) -> Result<Vec<GroupName>, StoreError> {
        Disk::groups(self)
    }

    fn list(&self, group: &GroupName, _known: Option<KnownChain>) -> Result<Listing, StoreError> {
        Ok(Listing { kept: Sequence(0), segments: Disk::list(self, group)? })
    }

    fn read_listed(
        &self,
        group: &GroupName,
        listed: &[ListedSegment],
    ) -> Vec<Result<SegmentIndex, StoreError>> {
        listed.iter().map(|listed| segment_file::read_index(&self.place_listed(group, listed))).collect()
    }

    fn index(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError> {
        let path = self.place(segment);
        let index = segment_file::read_index(&path)?;
        same_segment(segment, &index, || path)?;
        Ok(index)
    }

    fn frame(
        &self,
        frame: &WantedFrame<'_>,
        how: Decode,
        decoding: &mut Decoding,
    ) -> Result<Vec<u8>, StoreError> {
        FrameFile::open(&self.place(frame.segment))?.read(frame.entry, how, decoding)
    }

    fn verify(&self, group: &GroupName, listed: &ListedSegment) -> Result<SegmentIndex, StoreError> {
        segment_file::verify(&self.place_listed(group, listed))
    }

    fn verify_named(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError> {
        let path = self.place(segment);
        let index = segment_file::verify(&path)?;
        same_segment(segment, &index, || path)?;
        Ok(index)
    }

    fn whole(&self, segment: &SegmentSource) -> Result<Bytes, StoreError> {
        let path = self.place(segment);
        let size_bytes = fs::metadata(&path).map_err(io_error("look at", &path))?.len();
        if size_bytes > MAX_SEGMENT_BYTES {
            let (part, actual, limit) = ("the segment", size_bytes, MAX_SEGMENT_BYTES);
            return Err(StoreError::Damaged { path, source: FormatError::TooLarge { part, actual, limit } });
        }
        let bytes = fs::read(&path).map_err(io_error("read", &path))?;
        check_whole(segment, &bytes, || path)?;
        Ok(bytes.into())
    }

    fn writer(&self, group: &GroupName) -> Result<Option<GroupWriter>, StoreError> {
        let name = writer_of(self, group)?;
        Ok(name.map(|name| GroupWriter { name, fingerprint: None }))
    }

    fn place(&self, segment: &SegmentSource) -> PathBuf {
        self.segment_path(&segment.group, segment.generation, segment.sequence)
    }

    fn place_listed(&self, group: &GroupName, listed: &ListedSegment) -> PathBuf {
        self.segment_path(group, listed.generation.unwrap_or(Generation(0)), listed.sequence)
    }

    fn seed_of(&self, group: &GroupName) -> Result<Option<GroupName>, StoreError> {
        seed_of(self, group)
    }
}
