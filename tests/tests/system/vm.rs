//! A real VM: QEMU with the guest of the demonstration, which writes numbered records and checks them at each boot.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use examples::console::Life;
use examples::lines::ReadyLine;
use serde_json::Value;
use tests::lab::{Daemon, Lab, wait_for_socket};

/// A running VM.
pub(crate) struct Vm {
    process: Daemon,
    console: PathBuf,
    /// Its monitor's socket.
    pub(crate) qmp: PathBuf,
}

impl Vm {
    /// Starts a VM on `disk`, the last of the block nodes.
    pub(crate) fn start(lab: &Lab, name: &str, nodes: &[&str], disk: &str) -> anyhow::Result<Vm> {
        let (console, qmp) = (lab.path(&format!("{name}.log")), lab.path(&format!("{name}.qmp")));
        let mut command = Command::new("qemu-system-x86_64");
        command.args(
            "-nodefaults -no-user-config -display none -machine pc-q35-10.0 -accel tcg -cpu qemu64 -m 192M"
                .split(' '),
        );
        nodes.iter().for_each(|node| {
            command.arg("-blockdev").arg(node);
        });
        let device = format!("virtio-blk-pci,drive={disk},id=vda,werror=stop,rerror=stop,bootindex=0");
        command.arg("-device").arg(device);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        let process = Daemon::start("qemu", &mut command)?;
        wait_for_socket(&qmp)?;
        Ok(Vm { process, console, qmp })
    }

    /// What the guest has said so far.
    pub(crate) fn life(&self) -> anyhow::Result<Life> {
        let life = Life::read(&self.console)?;
        ensure!(life.failure.is_none(), "the guest failed: {:?}", life.failure);
        let console = fs::read(&self.console).unwrap_or_default();
        ensure!(!String::from_utf8_lossy(&console).contains("I/O error"), "the guest saw an I/O error");
        Ok(life)
    }

    /// Waits until the guest is up, and answers what it found of earlier lives.
    pub(crate) fn wait_until_ready(&self, lab: &Lab) -> anyhow::Result<ReadyLine> {
        lab.eventually("the guest's being up", |_| Ok(self.life()?.ready.is_some()))?;
        self.life()?.ready.context("it was ready just now")
    }

    /// Waits for so many further records.
    pub(crate) fn wait_for_more_records(&self, lab: &Lab, more: usize) -> anyhow::Result<()> {
        let wanted = self.life()?.records.len() + more;
        lab.eventually("further records of the guest", |_| Ok(self.life()?.records.len() >= wanted))
    }

    /// Gives its monitor a command.
    pub(crate) fn execute(&self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let mut monitor = restore::Monitor::new(UnixStream::connect(&self.qmp)?)?;
        Ok(monitor.execute_with(command, arguments)?)
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }
}

/// The guest's disk, which the test command builds.
pub(crate) fn image() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's folder")?;
    let image = root.join("target/guest/disk.raw");
    ensure!(image.is_file(), "the guest's image is missing; run examples/guest/build target/guest");
    Ok(image)
}

/// Copies a disk without its holes.
pub(crate) fn copy_disk(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = Command::new("cp").arg("--sparse=always").arg(from).arg(to).status()?;
    ensure!(copied.success(), "'{}' is not copied", from.display());
    Ok(())
}
