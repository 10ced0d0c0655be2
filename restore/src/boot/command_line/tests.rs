use std::path::{Path, PathBuf};

use journal_format::definition::{Disk, Firmware, Nic, VmDefinition};
use serde_json::Value;

use super::{Backends, Image, Network, qemu_arguments};

fn vm() -> VmDefinition {
    VmDefinition {
        name: "erp, the first".to_owned(),
        machine: "pc-q35-10.0".to_owned(),
        accel: "kvm:tcg".to_owned(),
        cpu: "qemu64".to_owned(),
        cpus: 2,
        memory_bytes: 256 << 20,
        uuid: Some("12345678-1234-1234-1234-123456789abc".to_owned()),
        firmware: Firmware::Bios {},
        disks: vec![Disk {
            id: "disk0".to_owned(),
            volume: "system".parse().unwrap(),
            model: "virtio-blk-pci".to_owned(),
            serial: Some("S,drive=other".to_owned()),
            boot_index: Some(0),
            addr: Some("02.0".to_owned()),
        }],
        nics: vec![Nic {
            id: "net0".to_owned(),
            mac: "52:54:00:12:34:56".to_owned(),
            model: "virtio-net-pci".to_owned(),
            addr: None,
        }],
        ready: None,
    }
}

fn arguments(vm: &VmDefinition, network: Network) -> Vec<String> {
    let image = |name: &str| Image {
        volume: name.parse().unwrap(),
        overlay: PathBuf::from(format!("/o/{name}.qcow2")),
    };
    let images = [image("system"), image("vars")];
    let (server, monitor) = (Path::new("/s/nbd.sock"), Path::new("/s/monitor.sock"));
    let backends = Backends { server, monitor, images: &images, durable: false, network };
    qemu_arguments(vm, &backends).into_iter().map(|argument| argument.into_string().unwrap()).collect()
}

fn values<'a>(arguments: &'a [String], option: &str) -> Vec<&'a str> {
    arguments.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_guest_sees_what_its_definition_says() {
    let arguments = arguments(&vm(), Network::Isolated);
    assert_eq!(values(&arguments, "-machine"), ["pc-q35-10.0"]);
    assert_eq!(values(&arguments, "-accel"), ["kvm", "tcg"]);
    assert_eq!(values(&arguments, "-cpu"), ["qemu64"]);
    assert_eq!(values(&arguments, "-smp"), ["2"]);
    assert_eq!(values(&arguments, "-m"), ["256M"]);
    assert_eq!(values(&arguments, "-uuid"), ["12345678-1234-1234-1234-123456789abc"]);
    let devices: Vec<Value> = values(&arguments, "-device").into_iter().map(json).collect();
    assert_eq!(devices[0]["mac"], "52:54:00:12:34:56");
    assert_eq!(devices[1]["id"], "disk0");
    assert_eq!(devices[1]["bootindex"], 0);
    assert_eq!(devices[1]["addr"], "02.0");
}

#[test]
fn no_value_becomes_an_option() {
    let arguments = arguments(&vm(), Network::Isolated);
    let devices: Vec<Value> = values(&arguments, "-device").into_iter().map(json).collect();
    assert_eq!(devices[1]["serial"], "S,drive=other");
    assert_eq!(devices[1]["drive"], "disk-0");
    assert_eq!(values(&arguments, "-name"), ["guest=erp,, the first"]);
}

#[test]
fn the_point_is_never_written_to() {
    let arguments = arguments(&vm(), Network::Isolated);
    let nodes: Vec<Value> = values(&arguments, "-blockdev").into_iter().map(json).collect();
    let point = nodes.iter().find(|node| node["node-name"] == "disk-0-point").unwrap();
    assert_eq!((&point["driver"], &point["read-only"]), (&"nbd".into(), &true.into()));
    let disk = nodes.iter().find(|node| node["node-name"] == "disk-0").unwrap();
    assert_eq!(disk["backing"], "disk-0-point");
    assert_eq!(disk["file"]["filename"], "/o/system.qcow2");
}

#[test]
fn the_network_is_isolated_unless_asked_otherwise() {
    let restrict = |network| json(values(&arguments(&vm(), network), "-netdev")[0])["restrict"].clone();
    assert_eq!(restrict(Network::Isolated), true);
    assert_eq!(restrict(Network::User), false);
}

#[test]
fn firmware_variables_are_a_volume_like_any_other() {
    let mut vm = vm();
    vm.firmware = Firmware::Uefi { code: "/fw/OVMF.fd".to_owned(), vars: "vars".parse().unwrap() };
    let arguments = arguments(&vm, Network::Isolated);
    assert_eq!(values(&arguments, "-machine"), ["pc-q35-10.0,pflash0=firmware,pflash1=variables"]);
    let nodes: Vec<Value> = values(&arguments, "-blockdev").into_iter().map(json).collect();
    let variables = nodes.iter().find(|node| node["node-name"] == "variables").unwrap();
    assert_eq!(variables["file"]["filename"], "/o/vars.qcow2");
}

#[test]
fn definitions_that_could_say_more_than_they_should_are_refused() {
    type Spoil = fn(&mut VmDefinition);
    let spoil: [(&str, Spoil); 6] = [
        ("machine", |vm| vm.machine.push_str(",graphics=on")),
        ("accel", |vm| vm.accel.push_str(":tcg,x=y")),
        ("cpu", |vm| vm.cpu.clear()),
        ("two devices", |vm| vm.nics[0].id = "disk0".to_owned()),
        ("memory", |vm| vm.memory_bytes = 1000),
        ("uuid", |vm| vm.uuid = Some("a b".to_owned())),
    ];
    vm().check().unwrap();
    for (field, spoil) in spoil {
        let mut spoilt = vm();
        spoil(&mut spoilt);
        let said = spoilt.check().unwrap_err().to_string();
        assert!(said.contains(field), "{said}");
    }
}
