//! The folder of a store: segments are files, read with `pread`.

use std::path::PathBuf;

use journal_format::GroupName;
use journal_format::segment::{SegmentIndex, SegmentSource};

use super::{ListedSegment, Segments, WantedFrame};
use crate::error::StoreError;
use crate::segment_file;
use crate::store::disk::Disk;
use crate::store::seed_of;

impl Segments for Disk {
    fn location(&self) -> String {
        self.root().display().to_string()
    }

    fn groups(&self) -> Result<Vec<GroupName>, StoreError> {
        Disk::groups(self)
    }

    fn list(&self, group: &GroupName) -> Result<Vec<ListedSegment>, StoreError> {
        Disk::list(self, group)
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
        same_segment(segment, &index, path)?;
        Ok(index)
    }

    fn frame(&self, frame: &WantedFrame<'_>) -> Result<Vec<u8>, StoreError> {
        segment_file::read_frame(&self.place(frame.segment), frame.entry)
    }

    fn verify(&self, group: &GroupName, listed: &ListedSegment) -> Result<SegmentIndex, StoreError> {
        segment_file::verify(&self.place_listed(group, listed)).map(|(index, _)| index)
    }

    fn verify_named(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError> {
        let path = self.place(segment);
        let (index, _) = segment_file::verify(&path)?;
        same_segment(segment, &index, path)?;
        Ok(index)
    }

    fn place(&self, segment: &SegmentSource) -> PathBuf {
        self.segment_path(&segment.group, segment.generation, segment.sequence)
    }

    fn place_listed(&self, group: &GroupName, listed: &ListedSegment) -> PathBuf {
        self.segment_path(group, listed.generation, listed.sequence)
    }

    fn seed_of(&self, group: &GroupName) -> Result<Option<GroupName>, StoreError> {
        seed_of(self, group)
    }
}

/// Whether a segment that was found where another one named it is that one.
pub(super) fn same_segment(
    expected: &SegmentSource,
    index: &SegmentIndex,
    path: PathBuf,
) -> Result<(), StoreError> {
    let (expected, actual) = (expected.hash, index.trailer.hash);
    if expected == actual { Ok(()) } else { Err(StoreError::OtherSegment { path, expected, actual }) }
}
