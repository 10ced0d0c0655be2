//! QEMU's arguments for a VM definition. Pure: the same definition and backends give the same arguments.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use journal_format::VolumeName;
use journal_format::definition::{Disk, Firmware, Nic, VmDefinition};
use serde_json::{Value, json};

/// What the guest's network cards are connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// To nothing that is outside the VM.
    Isolated,
    /// To QEMU's user network, through which the guest reaches what this host reaches.
    User,
}

/// A volume's place on this host.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) volume: VolumeName,
    /// qcow2 file for the guest's writes.
    pub(super) overlay: PathBuf,
}

/// What stands behind the guest's devices on this host.
pub(super) struct Backends<'a> {
    /// Socket of the server with the point's volumes.
    pub(super) server: &'a Path,
    /// Socket on which the monitor's client listens.
    pub(super) monitor: &'a Path,
    pub(super) images: &'a [Image],
    /// Whether the overlays outlive the VM.
    pub(super) durable: bool,
    pub(super) network: Network,
}

/// Makes QEMU's arguments. The console is its standard output. Devices are given as JSON, where no value can become an option;
/// the words that are not were checked by [`VmDefinition::check`].
pub(super) fn qemu_arguments(vm: &VmDefinition, backends: &Backends<'_>) -> Vec<OsString> {
    let mut line = Line(Vec::new());
    line.words(&["-nodefaults", "-no-user-config", "-display", "none", "-rtc", "base=utc"]);
    // The guest is somebody else's: QEMU needs no more than its files and sockets.
    line.words(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    line.option("-name", format!("guest={}", vm.name.replace(',', ",,")));
    line.option("-cpu", &vm.cpu);
    line.option("-smp", vm.cpus.to_string());
    line.option("-m", format!("{}M", vm.memory_bytes >> 20));
    vm.accelerators().for_each(|accel| line.option("-accel", accel));
    if let Some(uuid) = &vm.uuid {
        line.option("-uuid", uuid);
    }
    let mut machine = vm.machine.clone();
    match &vm.firmware {
        Firmware::Bios {} => {}
        Firmware::Uefi { code, vars } => {
            let file = json!({"driver": "file", "filename": code});
            let node = json!({"driver": "raw", "node-name": "firmware", "read-only": true, "file": file});
            line.option("-blockdev", node.to_string());
            line.volume(vars, "variables", backends);
            machine += ",pflash0=firmware,pflash1=variables";
        }
        Firmware::Kernel { kernel, initrd, cmdline } => {
            line.option("-kernel", kernel);
            line.option("-append", cmdline);
            initrd.iter().for_each(|initrd| line.option("-initrd", initrd));
        }
    }
    line.option("-machine", machine);
    line.words(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    let monitor = backends.monitor.display().to_string().replace(',', ",,");
    line.option("-chardev", format!("socket,id=monitor,path={monitor}"));
    line.words(&["-mon", "chardev=monitor,mode=control"]);
    vm.nics.iter().enumerate().for_each(|(number, nic)| line.nic(number, nic, backends.network));
    vm.disks.iter().enumerate().for_each(|(number, disk)| line.disk(number, disk, backends));
    line.0
}

struct Line(Vec<OsString>);

impl Line {
    fn words(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(OsString::from));
    }

    fn option(&mut self, name: &str, value: impl AsRef<str>) {
        self.words(&[name, value.as_ref()]);
    }

    fn nic(&mut self, number: usize, nic: &Nic, network: Network) {
        let backend = format!("network-{number}");
        let restrict = network == Network::Isolated;
        self.option("-netdev", json!({"type": "user", "id": backend, "restrict": restrict}).to_string());
        let mut device = json!({"driver": nic.model, "id": nic.id, "netdev": backend, "mac": nic.mac});
        set(&mut device, "addr", nic.addr.as_deref());
        self.option("-device", device.to_string());
    }

    fn disk(&mut self, number: usize, disk: &Disk, backends: &Backends<'_>) {
        let node = format!("disk-{number}");
        self.volume(&disk.volume, &node, backends);
        let mut device = json!({"driver": disk.model, "id": disk.id, "drive": node});
        // A full or failing overlay stops the VM instead of telling the guest that its disk is broken.
        device["werror"] = "stop".into();
        device["rerror"] = "stop".into();
        set(&mut device, "serial", disk.serial.as_deref());
        set(&mut device, "bootindex", disk.boot_index);
        set(&mut device, "addr", disk.addr.as_deref());
        self.option("-device", device.to_string());
    }

    /// A volume of the point, read-only, under its overlay.
    fn volume(&mut self, volume: &VolumeName, node: &str, backends: &Backends<'_>) {
        let base = format!("{node}-point");
        let server = json!({"type": "unix", "path": backends.server});
        let point = json!({
            "driver": "nbd", "node-name": base, "read-only": true, "export": volume, "server": server,
        });
        self.option("-blockdev", point.to_string());
        let image = backends.images.iter().find(|image| image.volume == *volume);
        let image = image.expect("there is an overlay for each volume of the VM");
        let overlay = json!({
            "driver": "qcow2", "node-name": node, "backing": base, "discard": "unmap",
            "cache": {"direct": false, "no-flush": !backends.durable},
            "file": {"driver": "file", "filename": image.overlay, "discard": "unmap"},
        });
        self.option("-blockdev", overlay.to_string());
    }
}

fn set(device: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        device[key] = value.into();
    }
}

#[cfg(test)]
mod tests;
