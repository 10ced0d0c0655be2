//! The meta section: volumes, the point that the segment completes, and VM definitions.

use super::layout::{MAX_DEFINITION_BYTES, hash_at, u16_at, u32_at, u64_at};
use crate::definition::GroupDefinition;
use crate::{BookmarkName, Epoch, FormatError, Hash, SECTOR_BYTES, Timestamp, VolumeName};

const PART: &str = "the segment's meta section";
/// In the byte of a volume's kind: it is joining.
const JOINING: u8 = 0x80;

/// What a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VolumeKind {
    /// A disk.
    Disk,
    /// Firmware variables.
    Firmware,
}

/// A volume of the group as of the segment's last epoch. Its place in the list is the index that extents use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Name of the volume.
    pub name: VolumeName,
    /// What it holds.
    pub kind: VolumeKind,
    /// Size in bytes; a multiple of 512.
    pub size_bytes: u64,
    /// It was added to a group that has points, and is not whole yet: the segment's point does not hold it.
    pub joining: bool,
}

/// How far the guest took part in a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PointKind {
    /// The guest did not know: as after a loss of power.
    Crash,
    /// The guest was quiesced.
    Application,
    /// Memory is part of the point.
    Warm,
}

impl PointKind {
    /// The word that is printed for it.
    pub fn as_str(self) -> &'static str {
        match self {
            PointKind::Crash => "crash-consistent",
            PointKind::Application => "application-consistent",
            PointKind::Warm => "warm",
        }
    }
}

/// The point that a segment completes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointRecord {
    /// Epoch that the cut ended; the segment's last.
    pub epoch: Epoch,
    /// When it was cut, by the protected site's clock.
    pub time: Timestamp,
    /// How far the guest took part.
    pub kind: PointKind,
    /// Name, if an operator gave one.
    pub bookmark: Option<BookmarkName>,
    /// Hash of the VM definition in force, [`Hash::ZERO`] if the group has none.
    pub definition: Hash,
    /// Bytes that the guest wrote since the point before.
    pub written_bytes: u64,
}

/// All that a segment says besides its extents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Volumes of the group.
    pub volumes: Vec<VolumeRecord>,
    /// The point that it completes, if any.
    pub point: Option<PointRecord>,
    /// Definition that no earlier segment of the chain carries, if any.
    pub definition: Option<GroupDefinition>,
}

impl SegmentMeta {
    /// The volumes that the segment's point holds.
    pub fn point_volumes(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.iter().filter(|volume| !volume.joining)
    }

    pub(super) fn volume_sizes(&self) -> Vec<u64> {
        self.volumes.iter().map(|volume| volume.size_bytes).collect()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&(self.volumes.len() as u16).to_le_bytes());
        for volume in &self.volumes {
            let kind = match volume.kind {
                VolumeKind::Disk => 0,
                VolumeKind::Firmware => 1,
            };
            out.push(kind | if volume.joining { JOINING } else { 0 });
            put_text(&mut out, volume.name.as_str());
            out.extend_from_slice(&volume.size_bytes.to_le_bytes());
        }
        out.push(u8::from(self.point.is_some()));
        if let Some(point) = &self.point {
            put_point(&mut out, point);
        }
        let definition = self.definition.as_ref().map(GroupDefinition::encode).unwrap_or_default();
        out.extend_from_slice(&(definition.len() as u32).to_le_bytes());
        out.extend_from_slice(&definition);
        out
    }

    pub(super) fn decode(bytes: &[u8], last_epoch: Epoch) -> Result<SegmentMeta, FormatError> {
        let mut input = Input { bytes };
        let count = u16_at(input.take(2)?, 0);
        let mut volumes: Vec<VolumeRecord> = Vec::new();
        for _ in 0..count {
            let volume = take_volume(&mut input)?;
            if volumes.iter().any(|other| other.name == volume.name) {
                return Err(rule("two volumes have the same name"));
            }
            volumes.push(volume);
        }
        let point = match input.take(1)?[0] {
            0 => None,
            1 => Some(take_point(&mut input)?),
            _ => return Err(rule("more than one point")),
        };
        if point.as_ref().is_some_and(|point| point.epoch != last_epoch) {
            return Err(rule("the point is not that of the last epoch"));
        }
        let definition_bytes = u32_at(input.take(4)?, 0) as usize;
        super::layout::at_most("the VM definition", definition_bytes as u64, MAX_DEFINITION_BYTES as u64)?;
        let definition = match input.take(definition_bytes)? {
            [] => None,
            bytes => Some(GroupDefinition::decode(bytes)?),
        };
        if !input.bytes.is_empty() {
            return Err(rule("there are bytes behind its end"));
        }
        Ok(SegmentMeta { volumes, point, definition })
    }
}

fn rule(rule: &'static str) -> FormatError {
    FormatError::Rule { part: PART, rule }
}

struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, size: usize) -> Result<&'a [u8], FormatError> {
        let (head, tail) = self.bytes.split_at_checked(size).ok_or(FormatError::Truncated {
            part: PART,
            expected: size as u64,
            actual: self.bytes.len() as u64,
        })?;
        self.bytes = tail;
        Ok(head)
    }

    fn text(&mut self) -> Result<&'a str, FormatError> {
        let size = self.take(1)?[0];
        std::str::from_utf8(self.take(size.into())?).map_err(|_| rule("a name is not text"))
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn put_point(out: &mut Vec<u8>, point: &PointRecord) {
    let kind = match point.kind {
        PointKind::Crash => 0,
        PointKind::Application => 1,
        PointKind::Warm => 2,
    };
    out.extend_from_slice(&point.epoch.0.to_le_bytes());
    out.extend_from_slice(&point.time.0.to_le_bytes());
    out.extend_from_slice(&point.written_bytes.to_le_bytes());
    out.extend_from_slice(&point.definition.0);
    out.push(kind);
    put_text(out, point.bookmark.as_ref().map_or("", BookmarkName::as_str));
}

fn take_volume(input: &mut Input<'_>) -> Result<VolumeRecord, FormatError> {
    let byte = input.take(1)?[0];
    let joining = byte & JOINING != 0;
    let kind = match byte & !JOINING {
        0 => VolumeKind::Disk,
        1 => VolumeKind::Firmware,
        _ => return Err(rule("a volume's kind is unknown")),
    };
    let name = input.text()?.parse().map_err(|_| rule("a volume's name is not valid"))?;
    let size_bytes = u64_at(input.take(8)?, 0);
    if !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(rule("a volume's size is not a multiple of 512 bytes"));
    }
    Ok(VolumeRecord { name, kind, size_bytes, joining })
}

fn take_point(input: &mut Input<'_>) -> Result<PointRecord, FormatError> {
    let fixed = input.take(57)?;
    let kind = match fixed[56] {
        0 => PointKind::Crash,
        1 => PointKind::Application,
        2 => PointKind::Warm,
        _ => return Err(rule("a point's kind is unknown")),
    };
    let bookmark = match input.text()? {
        "" => None,
        text => Some(text.parse().map_err(|_| rule("a bookmark's name is not valid"))?),
    };
    Ok(PointRecord {
        epoch: Epoch(u64_at(fixed, 0)),
        time: Timestamp(u64_at(fixed, 8) as i64),
        kind,
        bookmark,
        definition: hash_at(fixed, 24),
        written_bytes: u64_at(fixed, 16),
    })
}
