//! qcow2 images: `qemu-img` reads the point from a server on a private socket.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{ImageError, io_error};
use crate::local_server::LocalServer;
use crate::program::{ProgramError, check};
use crate::view::VolumeView;

const QEMU_IMG: &str = "qemu-img";
/// Coroutines of `qemu-img`; more do not help with one server.
const COROUTINES: &str = "16";

/// Makes a qcow2 image with the bytes of a volume, and makes it durable.
pub(super) fn write_file(
    volume: &VolumeView,
    path: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<(), ImageError> {
    let server = LocalServer::start(volume.view())?;
    let child = Command::new(QEMU_IMG)
        .args(["convert", "-p", "-W", "-m", COROUTINES, "-f", "raw", "-O", "qcow2"])
        .arg(server.uri(&volume.record().name))
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| ProgramError::Start { program: QEMU_IMG, source })?;
    follow(child, volume.size_bytes(), progress, path)?;
    let file = File::open(path).map_err(io_error("open", path))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(io_error("protect", path))?;
    file.sync_all().map_err(io_error("sync", path))
}

/// Reads `(12.34/100%)` from the program's output until it ends.
fn follow(
    mut child: Child,
    size_bytes: u64,
    progress: &(dyn Fn(u64, u64) + Sync),
    path: &Path,
) -> Result<(), ImageError> {
    let mut output = child.stdout.take().expect("standard output is piped");
    let (mut text, mut buffer) = (String::new(), [0; 256]);
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        while let Some(end) = text.find(')') {
            let line: String = text.drain(..=end).collect();
            let percent = line
                .rsplit('(')
                .next()
                .and_then(|numbers| numbers.split('/').next()?.trim().parse::<f64>().ok());
            if let Some(percent) = percent {
                progress((size_bytes as f64 * percent / 100.0) as u64, size_bytes);
            }
        }
    }
    let output = child.wait_with_output().map_err(io_error("wait for qemu-img to write", path))?;
    Ok(check(QEMU_IMG, output.status, &output.stderr)?)
}
