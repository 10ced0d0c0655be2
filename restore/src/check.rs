//! The recovery site's look at a bucket: every new segment of each chain is read whole, with what it refers to, and how far that went is signed and put
//! into `checked.json`, so that a source with `receipts = "checked"` may trim.
//!
//! The safety rule: what is signed is a position before which every segment was verified since it was put, up to the first that is not sound.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use journal_format::segment::{
    BlockPlace, ExtentContent, FrameKind, SegmentIndex, block_hashes, combined_hash,
};
use journal_format::{
    BLOCK_BYTES, ErrorKind, FormatError, GroupName, Hash, PointId, Position, Sequence, Timestamp, with_causes,
};
use transport::{Identity, Receipt};

use crate::bucket::{BucketPlace, checked_position, put_checked};
use crate::catalog::SegmentRow;
use crate::disk_cache::CacheOptions;
use crate::error::StoreError;
use crate::frames::{Checks, FrameTable, Frames, run_of_places};
use crate::segments::KnownChain;
use crate::store::Store;
use crate::verify::DamagedSegment;

/// Memory for frames that references point into.
const FRAME_BYTES_MAX: u64 = 64 << 20;
/// A segment that was found damaged is read again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// What a look at a group found.
#[derive(Clone, Debug)]
pub struct CheckedGroup {
    /// The group.
    pub group: GroupName,
    /// The last segment of its chain.
    pub head: Option<Position>,
    /// Up to here everything was read and verified, now or before.
    pub checked: Option<Position>,
    /// Segments that were read now.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is not as it should be, in the order of the chain.
    pub damaged: Vec<DamagedSegment>,
    /// Points that rest on a damaged segment.
    pub touched: Vec<PointId>,
    /// Whether `checked.json` was put now.
    pub receipted: bool,
}

/// Looks at a bucket, once or again and again.
pub struct Checker {
    place: BucketPlace,
    cache: CacheOptions,
    identity: Option<Identity>,
    /// What was found damaged, by the segment's hash.
    damaged: HashMap<Hash, (Instant, String)>,
    /// What was signed last.
    signed: HashMap<GroupName, Position>,
}

impl Checker {
    /// `identity` is the recovery site's, with which sources know it; without one nothing is signed.
    pub fn new(place: BucketPlace, cache: CacheOptions, identity: Option<Identity>) -> Checker {
        Checker { place, cache, identity, damaged: HashMap::new(), signed: HashMap::new() }
    }

    /// Reads what is new in all groups. `progress` hears bytes done and bytes in all; `now` answers the time for receipts.
    ///
    /// # Errors
    /// If the bucket does not answer, or a receipt cannot be put. Damage is not an error but a finding.
    pub fn check(
        &mut self,
        now: impl Fn() -> Timestamp,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Vec<CheckedGroup>, StoreError> {
        let store = Store::open_bucket(&self.place, &self.cache, &|_, _| {})?;
        let frames = Frames::new(Arc::clone(store.segments()), FRAME_BYTES_MAX, Checks::All);
        let groups = store.groups()?;
        let mut plans: Vec<(GroupName, Option<Position>, Vec<SegmentRow>)> = Vec::new();
        for group in groups {
            let new = store.catalog().unchecked(&group.group)?;
            plans.push((group.group, group.head, new));
        }
        let total = plans.iter().flat_map(|(.., new)| new).map(|row| row.size_bytes).sum();
        let mut done = 0;
        let mut found = Vec::new();
        for (group, head, new) in plans {
            let mut checked = CheckedGroup {
                group,
                head,
                checked: None,
                segments: 0,
                bytes: 0,
                damaged: Vec::new(),
                touched: Vec::new(),
                receipted: false,
            };
            for row in &new {
                self.check_segment(&store, &frames, row, &mut checked)?;
                done += row.size_bytes;
                progress(done, total);
            }
            look_behind_head(&store, &mut checked)?;
            checked.checked = store.catalog().checked_up_to(&checked.group)?;
            checked.touched = touched(&store, &checked)?;
            self.sign(&mut checked, now())?;
            found.push(checked);
        }
        Ok(found)
    }

    fn check_segment(
        &mut self,
        store: &Store,
        frames: &Frames,
        row: &SegmentRow,
        found: &mut CheckedGroup,
    ) -> Result<(), StoreError> {
        let (sequence, hash) = (row.position.sequence, row.position.hash);
        if let Some((looked, problem)) = self.damaged.get(&hash)
            && looked.elapsed() < LOOK_AGAIN
        {
            found.damaged.push(DamagedSegment { sequence, problem: problem.clone() });
            return Ok(());
        }
        let named = row.source(&found.group);
        let verified = store.segments().verify_named(&named);
        let verified = verified.and_then(|index| check_references(store, frames, &index));
        found.segments += 1;
        found.bytes += row.size_bytes;
        match verified {
            Ok(()) => {
                self.damaged.remove(&hash);
                store.catalog().put_checked(&found.group, row)
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let problem = with_causes(&error);
                self.damaged.insert(hash, (Instant::now(), problem.clone()));
                found.damaged.push(DamagedSegment { sequence, problem });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn sign(&mut self, found: &mut CheckedGroup, now: Timestamp) -> Result<(), StoreError> {
        let (Some(identity), Some(position)) = (&self.identity, found.checked) else { return Ok(()) };
        if !self.signed.contains_key(&found.group)
            && let Some(before) = checked_position(&self.place, &found.group, identity.fingerprint())?
        {
            self.signed.insert(found.group.clone(), before);
        }
        if self.signed.get(&found.group) == Some(&position) {
            return Ok(());
        }
        let receipt = Receipt::sign(identity, found.group.clone(), position, now);
        put_checked(&self.place, &receipt, &identity.public_key())?;
        self.signed.insert(found.group.clone(), position);
        found.receipted = true;
        Ok(())
    }
}

/// A segment that is there and should go on where the chain ends has its outline damaged.
fn look_behind_head(store: &Store, found: &mut CheckedGroup) -> Result<(), StoreError> {
    let rows = store.catalog().chain(&found.group, Sequence(i64::MAX as u64))?;
    let next = rows.last().map_or(Sequence(1), |row| row.position.sequence.next());
    let listed = store.segments().list(&found.group, KnownChain::of(&rows))?.segments;
    let Some(first) = listed.iter().find(|listed| listed.sequence == next) else { return Ok(()) };
    match store.segments().read_listed(&found.group, std::slice::from_ref(first)).pop() {
        Some(Err(error)) if error.kind() == ErrorKind::Corrupt => {
            found.damaged.push(DamagedSegment { sequence: next, problem: with_causes(&error) });
            Ok(())
        }
        // It came since the chain was read: the next look takes it in.
        _ => Ok(()),
    }
}

fn touched(store: &Store, found: &CheckedGroup) -> Result<Vec<PointId>, StoreError> {
    let Some(first) = found.damaged.iter().map(|segment| segment.sequence).min() else {
        return Ok(Vec::new());
    };
    let points = store.points(&found.group)?;
    Ok(points.iter().filter(|point| point.sequence >= first).map(|point| point.id).collect())
}

/// Reads everything that a segment refers to, and compares it with the hashes that it names, and what its differences hold with theirs.
fn check_references(store: &Store, frames: &Frames, index: &SegmentIndex) -> Result<(), StoreError> {
    let tables = index.sources.iter().map(|source| frames.table(source)).collect::<Result<Vec<_>, _>>()?;
    let own = FrameTable::of(index);
    let damaged = |source| StoreError::Damaged { path: store.segments().place(&own.segment), source };
    let other = |rule| damaged(FormatError::Rule { part: "the segment's table of references", rule });
    for extent in &index.extents {
        let ExtentContent::Reference(number) = extent.content else { continue };
        let reference = index.references[number as usize];
        let blocks = (extent.length / BLOCK_BYTES) as usize;
        let hashes = read_hashes(frames, &tables, reference.place, blocks)?;
        if combined_hash(&hashes) != reference.hash {
            return Err(other("what it refers to has other hashes"));
        }
    }
    for (number, frame) in (0..).zip(&index.frames) {
        let FrameKind::Difference { first_base, bases_hash } = frame.kind else { continue };
        let mut left = &index.bases[first_base as usize..][..frame.blocks()];
        let mut hashes = Vec::with_capacity(left.len());
        while let Some(&base) = left.first() {
            let run = run_of_places(left);
            hashes.extend(read_hashes(frames, &tables, base, run)?);
            left = &left[run..];
        }
        if combined_hash(&hashes) != bases_hash {
            return Err(other("blocks that differences are taken from have other hashes"));
        }
        let mut content = vec![0; frame.raw_bytes as usize];
        frames.read(&own, number, 0, &mut content)?;
        frame.check_content(&content).map_err(damaged)?;
    }
    Ok(())
}

fn read_hashes(
    frames: &Frames,
    tables: &[Arc<FrameTable>],
    place: BlockPlace,
    blocks: usize,
) -> Result<Vec<Hash>, StoreError> {
    let mut bytes = vec![0; blocks * BLOCK_BYTES as usize];
    frames.read(&tables[place.source as usize], place.frame, place.offset.into(), &mut bytes)?;
    Ok(block_hashes(&bytes))
}
