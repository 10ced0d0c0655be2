//! QEMU for the protected VM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The protected VM's hardware: the same in QEMU's command line and in the settings that travel with each point.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// Program.
    pub program: PathBuf,
    /// Machine type, versioned.
    pub machine: &'static str,
    /// Accelerator.
    pub accel: String,
    /// CPU model, named.
    pub cpu: &'static str,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Address of the network card.
    pub mac: &'static str,
}

impl Qemu {
    /// Returns the arguments for a VM whose disk is behind the tap at `tap`. Its network card leads nowhere.
    pub fn arguments(&self, tap: &Path, export: &str, console: &Path) -> Vec<OsString> {
        // A request that fails stops the VM, and a lost connection is waited for: the guest never sees an error.
        let disk = serde_json::json!({
            "driver": "nbd", "node-name": "disk0", "export": export, "discard": "unmap",
            "server": {"type": "unix", "path": tap}, "reconnect-delay": 86400, "open-timeout": 30,
        });
        let mac = self.mac;
        let mut serial = OsString::from("file:");
        serial.push(console);
        [
            "-nodefaults -no-user-config -display none -rtc base=utc".to_owned(),
            format!("-machine {} -accel {} -cpu {}", self.machine, self.accel, self.cpu),
            format!("-m {}M -smp 1", self.memory_mib),
            "-netdev user,id=net0,restrict=on".to_owned(),
            format!("-device virtio-net-pci,netdev=net0,id=net0,mac={mac}"),
            "-device virtio-blk-pci,drive=disk0,id=disk0,werror=stop,rerror=stop,bootindex=0".to_owned(),
        ]
        .iter()
        .flat_map(|words| words.split(' '))
        .map(OsString::from)
        .chain(["-blockdev".into(), disk.to_string().into()])
        .chain(["-serial".into(), serial])
        .collect()
    }
}
