//! A network namespace that a descriptor keeps alive, with a TUN device in it.

use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns, unshare};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::error::LabError;

const DEVICE: &str = "wan0";
const PREFIX: u8 = 24;
/// Packets that wait for the emulator's thread. Long, because the link's own queue is in the model.
const QUEUE_PACKETS: u32 = 20_000;

/// A thread inside a namespace.
#[derive(Debug)]
pub struct SideThread<T>(JoinHandle<Option<T>>);

impl<T> SideThread<T> {
    /// Waits for its end.
    ///
    /// # Errors
    /// What it panicked with.
    pub fn join(self) -> std::thread::Result<T> {
        self.0.join().map(|result| result.expect("a thread that may not enter is not handed out"))
    }
}

#[derive(Debug)]
pub(super) struct Namespace {
    handle: Arc<File>,
}

impl Namespace {
    /// Makes a namespace and its device, which has the address and is up.
    pub(super) fn make(address: Ipv4Addr, mtu: u32) -> Result<(Namespace, SyncDevice), LabError> {
        // A thread of its own: the calling one stays where it is.
        let making = std::thread::Builder::new().name("wan-make".to_owned()).spawn(move || {
            let namespace_error = |source| LabError::Namespace { source };
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| namespace_error(errno.into()))?;
            let handle = File::open("/proc/thread-self/ns/net").map_err(namespace_error)?;
            let device = device().map_err(|source| LabError::Tun { source })?;
            configure(address, mtu)?;
            Ok((Namespace { handle: Arc::new(handle) }, device))
        });
        let making = making.map_err(|source| LabError::Start { source })?;
        making.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub(super) fn spawn<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<SideThread<T>, LabError> {
        let handle = self.handle.clone();
        let (entered, has_entered) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("wan-side".to_owned()).spawn(move || {
            let result = setns(handle.as_fd(), CloneFlags::CLONE_NEWNET);
            let may_run = result.is_ok();
            let _ = entered.send(result);
            may_run.then(run)
        });
        let thread = thread.map_err(|source| LabError::Start { source })?;
        match has_entered.recv() {
            Ok(Ok(())) => Ok(SideThread(thread)),
            Ok(Err(errno)) => Err(LabError::Namespace { source: errno.into() }),
            Err(_) => Err(LabError::Namespace { source: io::Error::other("its thread has ended") }),
        }
    }

    pub(super) fn run<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LabError> {
        let thread = self.spawn(run)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// Packets that the device had no room for, because the emulator's thread was too slow.
    pub(super) fn device_drops(&self) -> Result<u64, LabError> {
        let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
        let table = table.map_err(|source| LabError::Namespace { source })?;
        let row = table.lines().find_map(|line| line.trim().strip_prefix(DEVICE)?.strip_prefix(':'));
        // Eight columns of what was received, then bytes, packets, errors and drops of what was sent.
        let drops = row.and_then(|row| row.split_whitespace().nth(11)?.parse().ok());
        drops.ok_or_else(|| LabError::Namespace {
            source: io::Error::other(format!("/proc/net/dev has no row for {DEVICE}")),
        })
    }
}

fn device() -> io::Result<SyncDevice> {
    let device = DeviceBuilder::new().name(DEVICE).enable(false).build_sync()?;
    device.set_nonblocking(true)?;
    Ok(device)
}

/// `ip` does this over netlink, which works in a user namespace as well; the older ioctl for the queue does not.
fn configure(address: Ipv4Addr, mtu: u32) -> Result<(), LabError> {
    // No router solicitations and the like: they would be counted as packets of the link. Without IPv6 there is no file.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6"), "1");
    let commands = format!(
        "link set dev lo up\n\
         address add {address}/{PREFIX} dev {DEVICE}\n\
         link set dev {DEVICE} mtu {mtu} txqueuelen {QUEUE_PACKETS} up\n"
    );
    let program_error = |source| LabError::Program { program: "ip", source };
    let mut ip = Command::new("ip");
    ip.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = ip.spawn().map_err(program_error)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(commands.as_bytes()).map_err(program_error)?;
    }
    let output = child.wait_with_output().map_err(program_error)?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            Err(LabError::Refused { command: "ip -batch".to_owned(), said })
        }
    }
}
