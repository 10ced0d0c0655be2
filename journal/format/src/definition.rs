//! The definition of the VMs of a group, as it travels with every point.
//!
//! Neutral JSON rather than a command line: backends (files, sockets, host networks) differ between the sites, what the
//! guest sees must not. The recovery site makes QEMU's command line from it.

use serde::{Deserialize, Serialize};

use crate::{FormatError, Hash, VolumeName};

/// Version of the JSON document.
pub const DEFINITION_VERSION: u32 = 1;

/// Memory comes in this unit.
const MEMORY_UNIT_BYTES: u64 = 1 << 20;

/// Every VM of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupDefinition {
    /// [`DEFINITION_VERSION`].
    pub version: u32,
    /// The VMs, in the order in which they are started.
    pub vms: Vec<VmDefinition>,
}

/// What the guest of one VM sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmDefinition {
    /// Name of the VM, for people.
    pub name: String,
    /// QEMU machine type, versioned (`pc-q35-10.0`), never the alias.
    pub machine: String,
    /// QEMU accelerators in order of preference, separated by ':'.
    pub accel: String,
    /// QEMU CPU model, named (`qemu64`, `Skylake-Server-v4`), never `host` or `max`.
    pub cpu: String,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// UUID in SMBIOS, if set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// What starts the guest.
    pub firmware: Firmware,
    /// Disks, in the order in which they are plugged in after the network cards.
    pub disks: Vec<Disk>,
    /// Network cards, in the order in which they are plugged in.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// A text that the guest prints on its serial console when it is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
}

/// What starts the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Firmware {
    /// SeaBIOS, from the boot disk.
    Bios {},
    /// OVMF: `code` is a file of the host, `vars` a volume of the group.
    Uefi {
        /// Path of the firmware's code on the host that boots the VM.
        code: String,
        /// Volume with the firmware's variables.
        vars: VolumeName,
    },
    /// A kernel from files of the host, for appliances and tests.
    Kernel {
        /// Path of the kernel on the host that boots the VM.
        kernel: String,
        /// Path of the initial RAM disk on the host that boots the VM.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initrd: Option<String>,
        /// Kernel command line.
        #[serde(default)]
        cmdline: String,
    },
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// QEMU device id.
    pub id: String,
    /// Volume of the group with its content.
    pub volume: VolumeName,
    /// QEMU device model.
    #[serde(default = "default_disk_model")]
    pub model: String,
    /// Serial number that the guest sees, if set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Place in the firmware's boot order, if set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_index: Option<u32>,
    /// PCI address (`02.0`); QEMU's next free one if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
}

/// A network card of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// QEMU device id.
    pub id: String,
    /// MAC address.
    pub mac: String,
    /// QEMU device model.
    #[serde(default = "default_nic_model")]
    pub model: String,
    /// PCI address (`01.0`); QEMU's next free one if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
}

fn default_disk_model() -> String {
    "virtio-blk-pci".to_owned()
}

fn default_nic_model() -> String {
    "virtio-net-pci".to_owned()
}

impl GroupDefinition {
    /// The definition without what needs a volume that is not `present`: disks on it, and VMs that keep no disk or lose their firmware's
    /// variables. `None` if no VM is left.
    pub fn restricted_to(&self, present: impl Fn(&VolumeName) -> bool) -> Option<GroupDefinition> {
        let vms = self.vms.iter().filter_map(|vm| {
            let disks: Vec<Disk> = vm.disks.iter().filter(|disk| present(&disk.volume)).cloned().collect();
            let lost_all = disks.is_empty() && !vm.disks.is_empty();
            let lost_firmware = matches!(&vm.firmware, Firmware::Uefi { vars, .. } if !present(vars));
            (!lost_all && !lost_firmware).then(|| VmDefinition { disks, ..vm.clone() })
        });
        let vms: Vec<VmDefinition> = vms.collect();
        (!vms.is_empty()).then_some(GroupDefinition { version: self.version, vms })
    }

    /// Encodes as JSON with the fields in their declared order, so that equal definitions have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a definition has only fields that JSON can hold")
    }

    /// Hash that a point refers to its definition by.
    pub fn hash(&self) -> Hash {
        Hash::of(&self.encode())
    }

    /// Decodes a definition.
    ///
    /// # Errors
    /// [`FormatError::Definition`] if the bytes are not a definition of a version that this build reads.
    pub fn decode(bytes: &[u8]) -> Result<GroupDefinition, FormatError> {
        let invalid = |reason: String| FormatError::Definition { reason };
        let definition: GroupDefinition =
            serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if definition.version == DEFINITION_VERSION {
            Ok(definition)
        } else {
            Err(invalid(format!("version {} is not supported", definition.version)))
        }
    }
}

impl VmDefinition {
    /// Checks what its types do not: that it can become a command line, and says nothing more there than it is meant to.
    ///
    /// # Errors
    /// [`FormatError::Definition`] with the field and the rule.
    pub fn check(&self) -> Result<(), FormatError> {
        let invalid =
            |rule: String| FormatError::Definition { reason: format!("VM '{}': {rule}", self.name) };
        let mut words = vec![("machine", &self.machine), ("accel", &self.accel), ("cpu", &self.cpu)];
        words.extend(self.uuid.iter().map(|uuid| ("uuid", uuid)));
        for disk in &self.disks {
            words.extend([("disk id", &disk.id), ("disk model", &disk.model)]);
            words.extend(disk.addr.iter().map(|addr| ("disk addr", addr)));
        }
        for nic in &self.nics {
            words.extend([("nic id", &nic.id), ("nic model", &nic.model), ("nic mac", &nic.mac)]);
            words.extend(nic.addr.iter().map(|addr| ("nic addr", addr)));
        }
        for (field, value) in words {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
            if value.is_empty() || !value.bytes().all(fits) {
                return Err(invalid(format!("{field} '{value}' may only have letters, digits and '-_.:'")));
            }
        }
        let ids: Vec<&String> =
            self.disks.iter().map(|disk| &disk.id).chain(self.nics.iter().map(|nic| &nic.id)).collect();
        if let Some(id) =
            ids.iter().enumerate().find_map(|(place, id)| ids[..place].contains(id).then_some(id))
        {
            return Err(invalid(format!("two devices have the id '{id}'")));
        }
        if self.cpus == 0 {
            return Err(invalid("cpus is 0".to_owned()));
        }
        if self.memory_bytes == 0 || !self.memory_bytes.is_multiple_of(MEMORY_UNIT_BYTES) {
            return Err(invalid("memory is not a whole number of MiB".to_owned()));
        }
        Ok(())
    }

    /// Its accelerators in order of preference.
    pub fn accelerators(&self) -> impl Iterator<Item = &str> {
        self.accel.split(':')
    }
}

#[cfg(test)]
mod tests;
