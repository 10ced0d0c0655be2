//! VMs of points, under QEMU, with a guest of one sector.

use std::fs;
use std::time::{Duration, Instant};

use journal_format::ErrorKind;
use journal_format::definition::{DEFINITION_VERSION, Disk, Firmware, GroupDefinition, Nic, VmDefinition};
use restore::{BootError, BootOptions, Console, Network, Selector, Store, Vm};

use crate::history::{History, files_in, filled, open};

/// A boot sector that prints a text on the serial port and halts.
///
/// ```text
/// 7c00  xor ax, ax        7c08  lodsb            7c10  out dx, al
/// 7c02  mov ds, ax        7c09  test al, al      7c11  jmp 7c08
/// 7c04  cld               7c0b  jz 7c13          7c13  hlt
/// 7c05  mov si, 7c16      7c0d  mov dx, 3f8      7c14  jmp 7c13
/// ```
fn boot_sector(text: &str) -> [u8; 512] {
    let code = [
        0x31, 0xc0, 0x8e, 0xd8, 0xfc, 0xbe, 0x16, 0x7c, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee,
        0xeb, 0xf5, 0xf4, 0xeb, 0xfd,
    ];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[code.len()..][..text.len()].copy_from_slice(text.as_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn definition(ready: Option<&str>) -> GroupDefinition {
    let disk = Disk {
        id: "disk0".to_owned(),
        volume: "root".parse().unwrap(),
        model: "virtio-blk-pci".to_owned(),
        serial: Some("R,1".to_owned()),
        boot_index: Some(0),
        addr: Some("05.0".to_owned()),
    };
    let nic = Nic {
        id: "net0".to_owned(),
        mac: "52:54:00:12:34:56".to_owned(),
        model: "virtio-net-pci".to_owned(),
        addr: None,
    };
    let vm = VmDefinition {
        name: "one, sector".to_owned(),
        machine: "pc-q35-10.0".to_owned(),
        accel: "tcg".to_owned(),
        cpu: "qemu64".to_owned(),
        cpus: 1,
        memory_bytes: 32 << 20,
        uuid: None,
        firmware: Firmware::Bios {},
        disks: vec![disk],
        nics: vec![nic],
        ready: ready.map(str::to_owned),
    };
    GroupDefinition { version: DEFINITION_VERSION, vms: vec![vm] }
}

fn options(folder: &std::path::Path) -> BootOptions {
    BootOptions {
        vm: None,
        console: Console::File(folder.join("console.log")),
        ready: None,
        timeout: Duration::from_secs(120),
        network: Network::Isolated,
        keep: None,
        scratch: folder.to_owned(),
        began: Instant::now(),
    }
}

fn start(history: &History, folder: &std::path::Path, options: BootOptions) -> Result<Vm, BootError> {
    filled(&folder.join("store"), history);
    let store = Store::open(&folder.join("store")).unwrap();
    Vm::start(&open(&store, &history.group, &Selector::Latest), options)
}

fn bootable(seed: u64, ready: Option<&str>) -> History {
    let mut history = History::new(seed);
    history.definition = Some(definition(ready));
    history.cut_with(0, 0, &boot_sector("THE GUEST IS UP"));
    history
}

#[test]
fn a_guest_boots_from_a_point_and_ends_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.keep = Some(folder.path().join("kept"));
    let mut vm = start(&bootable(110, Some("GUEST IS UP")), folder.path(), options).unwrap();
    let report = vm.wait_until_ready().unwrap();
    assert!(report.ready_text_seen && report.ready_seconds > report.start_seconds);
    let stopper = vm.stopper();
    std::thread::scope(|scope| {
        scope.spawn(move || stopper.stop());
        vm.wait_until_ended().unwrap();
    });
    assert!(fs::read_to_string(folder.path().join("console.log")).unwrap().contains("THE GUEST IS UP"));
    assert_eq!(files_in(&folder.path().join("kept")), ["root.qcow2"]);
    assert!(!std::path::Path::new(&format!("/proc/{}", report.process_id)).exists(), "QEMU still runs");
}

#[test]
fn a_guest_that_never_says_that_it_is_up_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.timeout = Duration::from_secs(5);
    let mut vm = start(&bootable(111, Some("login:")), folder.path(), options).unwrap();
    let error = vm.wait_until_ready().unwrap_err();
    assert!(matches!(error, BootError::NotReady { .. }), "{error}");
    assert!(error.to_string().contains("login:") && !error.hint().is_empty());
    drop(vm);
    let mut left = files_in(folder.path());
    left.retain(|name| name.contains("boot"));
    assert!(left.is_empty(), "overlays were left: {left:?}");
}

#[test]
fn without_a_text_a_guest_is_up_when_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = start(&bootable(112, None), folder.path(), options(folder.path())).unwrap();
    assert!(!vm.wait_until_ready().unwrap().ready_text_seen);
}

#[test]
fn a_machine_that_qemu_does_not_know_is_an_error_with_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::new(113);
    let mut definition = definition(None);
    definition.vms[0].machine = "pc-q35-99.0".to_owned();
    history.definition = Some(definition);
    history.cut();
    let mut vm = start(&history, folder.path(), options(folder.path())).unwrap();
    let error = vm.wait_until_ready().unwrap_err();
    assert!(error.to_string().contains("pc-q35-99.0"), "{error}");
}

#[test]
fn points_that_cannot_be_booted_say_why() {
    let refused = |definition: Option<GroupDefinition>, vm: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::new(114);
        history.definition = definition;
        history.cut();
        let mut options = options(folder.path());
        options.vm = vm.map(str::to_owned);
        let Err(error) = start(&history, folder.path(), options) else { panic!("it started") };
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(!error.hint().is_empty());
        error.to_string()
    };
    assert!(refused(None, None).contains("no VM definition"));
    let mut two = definition(None);
    two.vms.push(VmDefinition { name: "second".to_owned(), ..two.vms[0].clone() });
    assert!(refused(Some(two.clone()), None).contains("second"));
    assert!(refused(Some(two), Some("third")).contains("no VM 'third'"));
    let mut lost = definition(None);
    lost.vms[0].disks[0].volume = "gone".parse().unwrap();
    assert!(refused(Some(lost), None).contains("'gone'"));
    let mut strange = definition(None);
    strange.vms[0].cpu = "qemu64,-monitor".to_owned();
    assert!(refused(Some(strange), None).contains("cannot be used"));
}
