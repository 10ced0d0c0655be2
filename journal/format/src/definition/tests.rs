use super::*;

fn disk(volume: &str) -> Disk {
    Disk {
        id: volume.to_owned(),
        volume: volume.parse().unwrap(),
        model: default_disk_model(),
        serial: None,
        boot_index: None,
        addr: None,
    }
}

fn vm(name: &str, firmware: Firmware, volumes: &[&str]) -> VmDefinition {
    VmDefinition {
        name: name.to_owned(),
        machine: "pc-q35-10.0".to_owned(),
        accel: "tcg".to_owned(),
        cpu: "qemu64".to_owned(),
        cpus: 1,
        memory_bytes: MEMORY_UNIT_BYTES,
        uuid: None,
        firmware,
        disks: volumes.iter().map(|volume| disk(volume)).collect(),
        nics: Vec::new(),
        ready: None,
    }
}

/// Names of the VMs that are left, with their disks.
fn left(present: &[&str]) -> Vec<(String, Vec<String>)> {
    let uefi = Firmware::Uefi { code: "code".to_owned(), vars: "vars".parse().unwrap() };
    let vms = vec![
        vm("bios", Firmware::Bios {}, &["a", "b"]),
        vm("uefi", uefi, &["c"]),
        vm("diskless", Firmware::Bios {}, &[]),
    ];
    let definition = GroupDefinition { version: DEFINITION_VERSION, vms };
    let restricted = definition.restricted_to(|volume| present.contains(&volume.as_str()));
    let disks = |vm: &VmDefinition| vm.disks.iter().map(|disk| disk.id.clone()).collect();
    restricted.unwrap().vms.iter().map(|vm| (vm.name.clone(), disks(vm))).collect()
}

#[test]
fn a_definition_keeps_what_needs_no_missing_volume() {
    let name = |vm: &(String, Vec<String>)| vm.0.clone();
    assert_eq!(left(&["a", "b", "c", "vars"]).len(), 3);
    assert_eq!(left(&["a", "c", "vars"])[0], ("bios".to_owned(), vec!["a".to_owned()]));
    assert_eq!(left(&["c"]).iter().map(name).collect::<Vec<_>>(), ["diskless"]);
}

#[test]
fn a_definition_without_any_vm_is_none() {
    let definition =
        GroupDefinition { version: DEFINITION_VERSION, vms: vec![vm("only", Firmware::Bios {}, &["a"])] };
    assert_eq!(definition.restricted_to(|_| false), None);
}
