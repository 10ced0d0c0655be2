//! A point as NBD exports: one for each volume, under the volume's name.

mod overlay;

use std::path::Path;
use std::sync::Arc;

use journal_format::ErrorKind;
use journal_nbd::{Errno, Export, Exports, Payload, StatusExtent, ZeroMode};

use crate::error::StoreError;
use crate::view::{PointView, VolumeView};
use overlay::OverlayExport;

/// Extents that one look at the status returns at most.
const STATUS_EXTENTS_MAX: usize = 4096;

/// What clients may do with the volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access<'a> {
    /// Read.
    ReadOnly,
    /// Write too, into temporary overlays without names in this folder. The point stays as it is.
    Overlay(&'a Path),
}

/// Makes an export of each volume of a point.
///
/// # Errors
/// If an overlay cannot be made.
pub fn exports_of(view: &Arc<PointView>, access: Access<'_>) -> Result<Exports, StoreError> {
    let exports = Exports::new();
    for volume in view.all() {
        let name = volume.record().name.clone();
        let export: Arc<dyn Export> = match access {
            Access::ReadOnly => Arc::new(PointExport::new(volume)),
            Access::Overlay(scratch) => Arc::new(OverlayExport::create(PointExport::new(volume), scratch)?),
        };
        exports.add(name.as_str(), export).expect("volumes of a point have different, short names");
    }
    Ok(exports)
}

/// A volume of a point, read-only.
struct PointExport {
    volume: VolumeView,
}

impl PointExport {
    fn new(volume: VolumeView) -> Self {
        PointExport { volume }
    }

    /// What a client is told of an error; people find the rest in the log.
    fn refuse(error: &StoreError) -> Errno {
        tracing::error!(
            error = error as &dyn std::error::Error,
            hint = error.hint(),
            "a read of a point failed"
        );
        match error.kind() {
            ErrorKind::Invalid => Errno::Inval,
            _ => Errno::Io,
        }
    }
}

impl Export for PointExport {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_only(&self) -> bool {
        true
    }

    fn description(&self) -> String {
        let point = self.volume.view().point();
        format!("volume '{}' of point {} of group '{}'", self.volume.record().name, point.id, point.group)
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
        self.volume.try_read_at(offset, buffer).map_err(|error| Self::refuse(&error))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.volume.read_at(offset, buffer).map_err(|error| Self::refuse(&error))
    }

    fn write(&self, _offset: u64, _payload: Payload) -> Result<(), Errno> {
        Err(Errno::Perm)
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn trim(&self, _offset: u64, _length: u64) -> Result<(), Errno> {
        Err(Errno::Perm)
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _mode: ZeroMode) -> Result<(), Errno> {
        Err(Errno::Perm)
    }

    fn block_status(&self, offset: u64, length: u64, extents: &mut Vec<StatusExtent>) -> Result<(), Errno> {
        let end = offset + length;
        let mut at = offset;
        for _ in 0..STATUS_EXTENTS_MAX {
            if at >= end {
                break;
            }
            let run = self.volume.zero_run(at, end - at);
            extents.push(StatusExtent { length: run.length, hole: run.zero, zero: run.zero });
            at += run.length;
        }
        Ok(())
    }

    fn reads_as_zero(&self, offset: u64, length: u64) -> bool {
        let run = self.volume.zero_run(offset, length);
        run.zero && run.length == length
    }
}
