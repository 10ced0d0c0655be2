//! `thirdsite tap insert` and `tap remove`: the tap goes into and out of the disk path of a running QEMU, by exchanging the block node
//! under the disk's device. QEMU drains the device by itself; the guest sees a pause of milliseconds.
//!
//! Node names follow from the device, so a command that was interrupted is repaired by running it again. A tap says which leg it is in front
//! of; nothing is exchanged for another disk.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use journal::leg_in_description;
use journal_nbd::{Client, ExportInfo, Protocol};
use restore::Monitor;
use serde_json::{Value, json};

use crate::args::TapDevice;
use crate::failure::{Failure, exit, with_causes};
use crate::output::print_json;
use crate::settings::Listen;

/// QEMU waits so long for an agent that is away before it stops the VM, in seconds.
const RECONNECT_SECONDS: u64 = 86_400;
const OPEN_SECONDS: u64 = 30;

/// A QEMU that was asked, and one of its disks.
struct Disk<'a> {
    monitor: Monitor,
    device: &'a TapDevice,
}

/// What lies under a device.
struct Node {
    name: String,
    driver: String,
    /// The file at the bottom, or the address of an NBD export.
    file: String,
    size_bytes: u64,
    direct: bool,
}

/// Puts the tap into the path.
pub(crate) fn insert(device: &TapDevice, tap: &Listen, export: &str) -> anyhow::Result<()> {
    let mut disk = Disk::open(device)?;
    let before = disk.node()?;
    let name = disk.tap_node();
    if before.is_tap() {
        disk.check_tap(&before)?;
        return report(device, &before.name, &before.name, None);
    }
    disk.check_leg(&before)?;
    let served = tapped(tap, export)?;
    if served.size_bytes != before.size_bytes {
        let (there, here) = (served.size_bytes, before.size_bytes);
        let message = format!("export '{export}' has {there} bytes, the VM's disk {here}");
        let hint =
            "--export names another volume, or the disk was resized: thirdsite source reload --accept-resize";
        return Err(Failure::invalid(message, hint).into());
    }
    disk.check_served(export, &served)?;
    let server = match tap {
        Listen::Unix(path) => json!({"type": "unix", "path": path}),
        Listen::Tcp(address) => {
            json!({"type": "inet", "host": address.ip().to_string(), "port": address.port().to_string()})
        }
    };
    let node = json!({
        "driver": "nbd", "node-name": name, "server": server, "export": export, "discard": "unmap",
        "reconnect-delay": RECONNECT_SECONDS, "open-timeout": OPEN_SECONDS,
    });
    disk.exchange(&before, &name, &node)
}

/// Takes the tap out of the path.
pub(crate) fn remove(device: &TapDevice) -> anyhow::Result<()> {
    let mut disk = Disk::open(device)?;
    let before = disk.node()?;
    if !before.is_tap() {
        disk.check_leg(&before)?;
        return report(device, &before.name, &before.name, None);
    }
    disk.check_tap(&before)?;
    let size_bytes = size_of(&device.leg)?;
    if size_bytes != before.size_bytes {
        let message =
            format!("'{}' has {size_bytes} bytes, the VM's disk {}", device.leg.display(), before.size_bytes);
        return Err(Failure::invalid(message, "--leg names another file").into());
    }
    let driver = if is_block_device(&device.leg)? { "host_device" } else { "file" };
    let name = disk.leg_node();
    let node = json!({
        "driver": "raw", "node-name": name, "discard": "unmap",
        "file": {"driver": driver, "filename": device.leg, "node-name": format!("{name}-file"), "discard": "unmap"},
    });
    disk.exchange(&before, &name, &node)
}

impl Node {
    fn is_tap(&self) -> bool {
        self.driver == "nbd"
    }

    /// Where its export is served, and its name: QEMU prints `nbd+unix:///EXPORT?socket=PATH` and `nbd://ADDRESS:PORT/EXPORT`.
    fn served_at(&self) -> Option<(Listen, String)> {
        if let Some(rest) = self.file.strip_prefix("nbd+unix:///") {
            let (export, socket) = rest.split_once("?socket=")?;
            return Some((Listen::Unix(PathBuf::from(socket)), export.to_owned()));
        }
        let (address, export) = self.file.strip_prefix("nbd://")?.split_once('/')?;
        Some((Listen::Tcp(address.parse().ok()?), export.to_owned()))
    }
}

impl<'a> Disk<'a> {
    fn open(device: &'a TapDevice) -> Result<Disk<'a>, Failure> {
        let unreachable = |error: std::io::Error| {
            let message = format!("no QEMU answers on '{}': {error}", device.qmp.display());
            Failure::unreachable(message, "start QEMU with -qmp unix:PATH,server=on,wait=off and name PATH")
        };
        let stream = UnixStream::connect(&device.qmp).map_err(unreachable)?;
        Ok(Disk { monitor: Monitor::new(stream).map_err(unreachable)?, device })
    }

    fn tap_node(&self) -> String {
        node_name("tap", &self.device.device)
    }

    fn leg_node(&self) -> String {
        node_name("leg", &self.device.device)
    }

    fn path(&self) -> String {
        format!("/machine/peripheral/{}", self.device.device)
    }

    /// The node that the device uses now.
    fn node(&mut self) -> Result<Node, Failure> {
        let wanted = json!({"path": self.path(), "property": "drive"});
        let name = self.monitor.execute_with("qom-get", &wanted).map_err(|error| {
            let message = format!("QEMU has no disk with the device id '{}': {error}", self.device.device);
            Failure::invalid(message, "give the -device of the disk an id, and name it with --device")
        })?;
        let name = name.as_str().unwrap_or_default().to_owned();
        let nodes = self.ask("query-named-block-nodes", &json!({"flat": false}))?;
        let node = nodes.as_array().and_then(|nodes| nodes.iter().find(|node| node["node-name"] == *name));
        let node = node.ok_or_else(|| {
            let hint = "start QEMU with -blockdev and drive=NODE instead of -drive";
            Failure::invalid(format!("'{}' uses '{name}', which is no block node", self.device.device), hint)
        })?;
        let image = &node["image"];
        Ok(Node {
            driver: node["drv"].as_str().unwrap_or_default().to_owned(),
            file: node["file"].as_str().unwrap_or_default().to_owned(),
            size_bytes: image["virtual-size"].as_u64().unwrap_or(0),
            direct: node["cache"]["direct"] == true,
            name,
        })
    }

    /// Whether the VM's disk is the leg, byte for byte: a tap in front of another file would lose the VM's writes.
    fn check_leg(&self, node: &Node) -> Result<(), Failure> {
        let device = &self.device.device;
        if !matches!(node.driver.as_str(), "raw" | "file" | "host_device") {
            let message = format!("the disk '{device}' is '{}', not a raw file or block device", node.driver);
            return Err(Failure::invalid(message, "convert it to raw: a leg is a plain raw disk"));
        }
        if node.direct {
            let hint =
                "start QEMU with cache.direct=off for this disk: it and the tap have to share the page cache";
            return Err(Failure::invalid(format!("the disk '{device}' bypasses the page cache"), hint));
        }
        let file = &node.file;
        if identity(Path::new(file))? == identity(&self.device.leg)? {
            return Ok(());
        }
        let message = format!("the VM's disk '{device}' is {file}, not '{}'", self.device.leg.display());
        Err(Failure::invalid(message, "--leg names another file than the VM uses; nothing was changed"))
    }

    /// Whether the NBD disk of the VM is a tap in front of the leg.
    fn check_tap(&self, node: &Node) -> Result<(), Failure> {
        let (tap, export) = node.served_at().ok_or_else(|| {
            let message = format!("the disk '{}' is '{}'", self.device.device, node.file);
            Failure::invalid(
                message,
                "only a disk behind a tap on a unix socket or a TCP address can be handled",
            )
        })?;
        self.check_served(&export, &tapped(&tap, &export)?)
    }

    fn check_served(&self, export: &str, served: &ExportInfo) -> Result<(), Failure> {
        let behind = served.description.as_deref().and_then(leg_in_description);
        let Some(behind) = behind else {
            let hint = "name the socket of the agent, and one of its exports";
            return Err(Failure::invalid(format!("export '{export}' is not served by a tap"), hint));
        };
        if identity(behind)? == identity(&self.device.leg)? {
            return Ok(());
        }
        let (behind, named) = (behind.display(), self.device.leg.display());
        let message = format!("the tap '{export}' is in front of '{behind}', not of '{named}'");
        Err(Failure::invalid(message, "--leg or --export names another disk; nothing was changed"))
    }

    /// Adds a node, puts it under the device, and removes the one before. What fails is undone.
    fn exchange(&mut self, before: &Node, name: &str, node: &Value) -> anyhow::Result<()> {
        // Left over from a command that was interrupted; if it is in use, adding it fails and says so.
        let _ = self.delete(name);
        self.ask("blockdev-add", node)?;
        let begun = Instant::now();
        let set = json!({"path": self.path(), "property": "drive", "value": name});
        if let Err(failure) = self.ask("qom-set", &set) {
            // The VM uses what it used before.
            let _ = self.delete(name);
            return Err(failure.into());
        }
        let pause = begun.elapsed().as_secs_f64() * 1e3;
        if let Err(failure) = self.delete(&before.name) {
            tracing::warn!(node = before.name, %failure, "the node that was used before stays in QEMU, unused");
        }
        report(self.device, &before.name, name, Some(pause))
    }

    /// Removes a node with the protocol node below it.
    fn delete(&mut self, name: &str) -> Result<(), Failure> {
        self.ask("blockdev-del", &json!({"node-name": name}))?;
        Ok(())
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, Failure> {
        self.monitor.execute_with(command, arguments).map_err(|error| {
            let message = format!("QEMU refused: {}", with_causes(&error));
            Failure::new(exit::FAILED, message, "the VM goes on with the disk that it had")
        })
    }
}

/// QEMU's node names begin with a letter and have at most 31 characters, of which `-file` needs five.
const NODE_NAME_BYTES_MAX: usize = 26;

fn node_name(role: &str, device: &str) -> String {
    let name = format!("thirdsite-{role}-{device}");
    if name.len() <= NODE_NAME_BYTES_MAX {
        return name;
    }
    let hash = journal_format::Hash::of(device.as_bytes()).to_string();
    format!("thirdsite-{role}-{hash:.12}")
}

fn report(device: &TapDevice, before: &str, after: &str, pause_ms: Option<f64>) -> anyhow::Result<()> {
    let changed = pause_ms.is_some();
    let hint = (changed && is_block_device(&device.leg)?).then_some(
        "a block device does not tell that it was written past the tap: run 'thirdsite resync GROUP' when the tap is in",
    );
    if device.json {
        return print_json(&json!({
            "device": device.device, "before": before, "after": after, "changed": changed,
            "pause_ms": pause_ms, "hint": hint,
        }));
    }
    match pause_ms {
        Some(pause) => println!("{}: {before} -> {after}, the VM waited {pause:.1} ms", device.device),
        None => println!("{}: nothing to do, it uses {after}", device.device),
    }
    if let Some(hint) = hint {
        println!("{hint}");
    }
    Ok(())
}

/// What an agent's tap says of an export.
fn tapped(tap: &Listen, export: &str) -> Result<ExportInfo, Failure> {
    let client = match tap {
        Listen::Unix(path) => Client::connect_unix(path, export, Protocol::Structured),
        Listen::Tcp(address) => Client::connect_tcp(*address, export, Protocol::Structured),
    };
    let client = client.map_err(|error| {
        let message = format!("the tap does not serve '{export}' on '{tap}': {}", with_causes(&error));
        Failure::unreachable(message, "start the agent first; 'thirdsite status --json' lists its exports")
    })?;
    let info = client.info().clone();
    // It was only asked.
    let _ = client.disconnect();
    Ok(info)
}

fn metadata(path: &Path) -> Result<std::fs::Metadata, Failure> {
    std::fs::metadata(path)
        .map_err(|error| Failure::invalid(format!("'{}': {error}", path.display()), "check --leg"))
}

/// Device and inode of a file; of a block device, its own number.
fn identity(path: &Path) -> Result<(u64, u64), Failure> {
    use std::os::unix::fs::FileTypeExt;
    let metadata = metadata(path)?;
    Ok(if metadata.file_type().is_block_device() {
        (0, metadata.rdev())
    } else {
        (metadata.dev(), metadata.ino())
    })
}

fn is_block_device(path: &Path) -> Result<bool, Failure> {
    use std::os::unix::fs::FileTypeExt;
    Ok(metadata(path)?.file_type().is_block_device())
}

fn size_of(path: &Path) -> Result<u64, Failure> {
    use std::io::{Seek, SeekFrom};
    let opened = std::fs::File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
    opened.map_err(|error| Failure::invalid(format!("'{}': {error}", path.display()), "check --leg"))
}
