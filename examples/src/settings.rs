//! The settings files of the demonstration's two sites.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::qemu::Qemu;

/// Name of the group, of its VM and of what is enrolled at the site.
pub const GROUP: &str = "demo";

/// Where everything of the demonstration lies.
#[derive(Clone, Debug)]
pub struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// Everything goes into this folder.
    pub fn new(folder: &Path) -> Layout {
        Layout { folder: folder.to_owned() }
    }

    /// Returns the path of one thing in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns the path of the tap's socket, where QEMU finds its disk.
    pub fn tap(&self) -> PathBuf {
        self.path("tap.sock")
    }

    /// Returns the path of the agent's control socket.
    pub fn source_control(&self) -> PathBuf {
        self.path("source.sock")
    }

    /// Returns the path of the recovery site's store.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Returns the path of the protected guest's disk.
    pub fn leg(&self) -> PathBuf {
        self.path("disk.raw")
    }
}

/// Returns `site.toml`. Relative paths in it count from the file's own folder.
pub fn site_toml(listen: SocketAddr) -> String {
    format!(
        r#"version = 1
identity = "site-id"
store = "store"
control = "site.sock"
listen = "{listen}"
enrolled = "enrolled.toml"
"#
    )
}

/// Returns the table of a target that is a site's daemon.
pub fn site_target(site: SocketAddr, fingerprint: &str) -> String {
    format!(
        "[[target]]\nname = \"recovery\"\n[target.site]\naddress = \"{site}\"\nfingerprint = \"{fingerprint}\"\n"
    )
}

/// Returns the table of a target that is a bucket with these keys.
pub fn bucket_target(keys: &str) -> String {
    format!("[[target]]\nname = \"recovery\"\n[target.bucket]\n{keys}\n")
}

/// Returns `source.toml`: one group, one disk, one VM with the hardware that `qemu` runs.
pub fn source_toml(target: &str, qemu: &Qemu) -> String {
    let Qemu { machine, accel, cpu, memory_mib, mac, .. } = qemu;
    format!(
        r#"version = 1
identity = "source-id"
journal = "journal"
control = "source.sock"

{target}
[tap]
listen = ["unix:tap.sock"]

[[group]]
name = "{GROUP}"
cut_interval = "500ms"
memory_budget = "256MiB"
journal_limit = "4GiB"

[[group.volume]]
name = "disk0"
leg = "disk.raw"

[[group.vm]]
name = "{GROUP}"
machine = "{machine}"
accel = "{accel}"
cpu = "{cpu}"
memory = "{memory_mib}MiB"
cpus = 1

[group.vm.firmware]
kind = "bios"

[[group.vm.disk]]
id = "disk0"
volume = "disk0"
boot_index = 0

[[group.vm.nic]]
id = "net0"
mac = "{mac}"
"#
    )
}
