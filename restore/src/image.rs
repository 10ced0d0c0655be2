//! Writing a volume of a point to a raw file, a block device or a qcow2 image.

mod qcow2;
mod raw;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use journal_format::ErrorKind;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use thiserror::Error;

use crate::error::{StoreError, io_kind, is_full};
use crate::program::ProgramError;
use crate::view::VolumeView;

/// Format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The volume's bytes, sparse.
    Raw,
    /// QEMU's format; made with `qemu-img`.
    Qcow2,
}

/// How a volume is restored.
#[derive(Clone, Copy, Debug)]
pub struct ImageOptions {
    /// Format of the image.
    pub format: ImageFormat,
    /// Whether a file, or a device with content, may be written over.
    pub overwrite: bool,
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// Bytes of it that are not known to be zero.
    pub data_bytes: u64,
    /// How long it took.
    pub duration: Duration,
}

/// Why a volume was not restored. A file that was there before is unchanged then; a device is not.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The point cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refuses.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The target is there and has content.
    #[error("{path} exists and is not empty")]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The device is smaller than the volume.
    #[error("device {path} has {size_bytes} bytes; the volume has {needed_bytes}")]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// Size of the volume.
        needed_bytes: u64,
    },
    /// The target cannot hold an image.
    #[error("{path} is neither a file nor a block device")]
    NotATarget {
        /// The target.
        path: PathBuf,
    },
    /// A qcow2 image has to be a file.
    #[error("{path} is a device; a qcow2 image has to be a file")]
    FormatNeedsFile {
        /// The device.
        path: PathBuf,
    },
    /// `qemu-img` did not do its work.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

impl ImageError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ImageError::Store(error) => error.kind(),
            ImageError::Io { source, .. } => io_kind(source),
            ImageError::Program(_) => ErrorKind::Retry,
            ImageError::Exists { .. }
            | ImageError::TooSmall { .. }
            | ImageError::NotATarget { .. }
            | ImageError::FormatNeedsFile { .. } => ErrorKind::Invalid,
        }
    }

    /// What an operator should do now.
    pub fn hint(&self) -> &'static str {
        match self {
            ImageError::Store(error) => error.hint(),
            ImageError::Io { source, .. } if is_full(source) => {
                "make room, or choose another place; nothing was left behind"
            }
            ImageError::Io { .. } => "look at the path and its owner, then try again",
            ImageError::Exists { .. } => "choose another output, or allow it with --overwrite",
            ImageError::TooSmall { .. } => "choose a device of at least the volume's size",
            ImageError::NotATarget { .. } => "give the path of a file or of a block device",
            ImageError::FormatNeedsFile { .. } => "use --format raw for devices",
            ImageError::Program(error) => error.hint(),
        }
    }
}

/// What a target is.
enum Target {
    /// A file that is to be made or replaced.
    File,
    Device,
}

/// Writes a volume to `output`. A file appears under its name only when all of it is durable. `progress` hears bytes done
/// and bytes in all, from several threads.
///
/// # Errors
/// If the target is not fit, a segment is damaged, or the disk is full.
pub fn restore_volume(
    volume: &VolumeView,
    output: &Path,
    options: ImageOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Restored, ImageError> {
    let begin = Instant::now();
    match (look_at(output, options.overwrite)?, options.format) {
        (Target::Device, ImageFormat::Raw) => raw::write_device(volume, output, options.overwrite, progress)?,
        (Target::Device, ImageFormat::Qcow2) => {
            return Err(ImageError::FormatNeedsFile { path: output.to_owned() });
        }
        (Target::File, format) => {
            let partial = Partial::beside(output);
            match format {
                ImageFormat::Raw => raw::write_file(volume, &partial.path, progress)?,
                ImageFormat::Qcow2 => qcow2::write_file(volume, &partial.path, progress)?,
            }
            partial.publish(output, options.overwrite)?;
        }
    }
    let data_bytes = volume.pieces().iter().map(|piece| piece.size_bytes()).sum();
    Ok(Restored { size_bytes: volume.size_bytes(), data_bytes, duration: begin.elapsed() })
}

fn look_at(output: &Path, overwrite: bool) -> Result<Target, ImageError> {
    match fs::metadata(output) {
        Ok(found) if found.file_type().is_block_device() => Ok(Target::Device),
        Ok(found) if !found.is_file() => Err(ImageError::NotATarget { path: output.to_owned() }),
        Ok(found) if found.len() > 0 && !overwrite => Err(ImageError::Exists { path: output.to_owned() }),
        Ok(_) => Ok(Target::File),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Target::File),
        Err(error) => Err(io_error("look at", output)(error)),
    }
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ImageError + 'a {
    move |source| ImageError::Io { action, path: path.to_owned(), source }
}

/// A file that is being written; removed if it does not get its name.
struct Partial {
    path: PathBuf,
}

impl Partial {
    /// In the same folder, so that giving it its name moves no bytes.
    fn beside(output: &Path) -> Partial {
        let mut name = output.as_os_str().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        Partial { path: PathBuf::from(name) }
    }

    fn publish(self, output: &Path, overwrite: bool) -> Result<(), ImageError> {
        // An empty file that was there is replaced too; one with content that has come since is not.
        let overwrite = overwrite || fs::metadata(output).is_ok_and(|found| found.len() == 0);
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        renameat_with(CWD, &self.path, CWD, output, flags).map_err(|error| match error {
            rustix::io::Errno::EXIST => ImageError::Exists { path: output.to_owned() },
            error => io_error("rename to", output)(error.into()),
        })?;
        let folder =
            output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync", folder))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It has got its name, or was never made.
        let _ = fs::remove_file(&self.path);
    }
}
