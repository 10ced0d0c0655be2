//! The folder of a store: segments are files, read with `pread`.

use std::path::PathBuf;

use journal_format::segment::{SegmentIndex, SegmentSource};
use journal_format::{Generation, GroupName, Sequence};

use super::{KnownChain, ListedSegment, Listing, Segments, WantedFrame, same_segment};
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

    fn frame(&self, frame: &WantedFrame<'_>) -> Result<Vec<u8>, StoreError> {
        segment_file::read_frame(&self.place(frame.segment), frame.entry)
    }

    fn verify(&self, group: &GroupName, listed: &ListedSegment) -> Result<SegmentIndex, StoreError> {
        segment_file::verify(&self.place_listed(group, listed)).map(|(index, _)| index)
    }

    fn verify_named(&self, segment: &SegmentSource) -> Result<SegmentIndex, StoreError> {
        let path = self.place(segment);
        let (index, _) = segment_file::verify(&path)?;
        same_segment(segment, &index, || path)?;
        Ok(index)
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
