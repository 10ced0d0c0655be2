use std::time::Duration;

use super::*;

const SOURCE: &str = r#"
version = 1
identity = "id"
journal = "/var/lib/thirdsite/journal"
control = "source.sock"
[[target]]
name = "far"
[target.site]
address = "127.0.0.1:7443"
fingerprint = "ab"
[tap]
listen = ["unix:tap.sock", "127.0.0.1:10809"]
[[group]]
name = "demo"
cut_interval = "500ms"
memory_budget = "64MiB"
[[group.volume]]
name = "disk0"
leg = "disk.raw"
[[group.vm]]
name = "demo"
machine = "pc-q35-10.0"
cpu = "qemu64"
memory = "256MiB"
[group.vm.firmware]
kind = "bios"
[[group.vm.disk]]
id = "disk0"
volume = "disk0"
boot_index = 0
"#;

fn parse(text: &str) -> Result<SourceSettings, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("source.toml");
    fs::write(&path, text).unwrap();
    load::<SourceSettings>(&path).map_err(|error| error.to_string())
}

fn refused(from: &str, to: &str, expected: &str) {
    assert!(SOURCE.contains(from), "{from}");
    let error = parse(&SOURCE.replace(from, to)).unwrap_err();
    assert!(error.contains(expected), "{to}: {error}");
}

#[test]
fn the_templates_are_valid() {
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let source = load::<SourceSettings>(&templates.join("source.toml")).unwrap();
    assert!(source.groups[0].definition().is_some());
    load::<SiteSettings>(&templates.join("site.toml")).unwrap();
}

#[test]
fn definitions_that_cannot_become_a_command_line_are_refused() {
    refused("cpu = \"qemu64\"", "cpu = \"qemu64,x=y\"", "cpu 'qemu64,x=y'");
    refused("memory = \"256MiB\"", "memory = \"100KiB\"", "memory");
}

#[test]
fn a_full_file_is_read_with_units_and_defaults() {
    let settings = parse(SOURCE).unwrap();
    let group = &settings.groups[0];
    assert_eq!(group.cut_interval, Duration::from_millis(500));
    assert_eq!(group.memory_budget, 64 << 20);
    assert_eq!(group.journal_limit, 10 << 30);
    assert!(group.volumes[0].leg.is_absolute() && settings.identity.is_absolute());
    let definition = group.definition().unwrap();
    assert_eq!(definition.vms[0].memory_bytes, 256 << 20);
    assert_eq!(definition.vms[0].disks[0].model, "virtio-blk-pci");
}

#[test]
fn unknown_keys_are_refused_wherever_they_stand() {
    refused("[tap]", "[tap]\ncolour = 1", "colour");
    refused("name = \"demo\"\ncut", "name = \"demo\"\ncut_intervall = \"1s\"\ncut", "cut_intervall");
    refused("boot_index", "bootindex", "bootindex");
    refused("version = 1", "version = 1\nverbose = true", "verbose");
}

#[test]
fn values_without_units_are_refused() {
    refused("\"64MiB\"", "\"64\"", "size with a unit");
    refused("\"500ms\"", "\"500\"", "duration");
}

#[test]
fn rules_between_values_are_checked() {
    refused("version = 1", "version = 2", "version 2");
    refused("volume = \"disk0\"\nboot", "volume = \"disk9\"\nboot", "disk9");
    refused("pc-q35-10.0", "q35", "alias");
    refused("qemu64", "host", "host to host");
    refused("\"500ms\"", "\"1ms\"", "cut_interval");
    refused("\"64MiB\"", "\"1MiB\"", "memory_budget");
    refused("\"unix:tap.sock\", \"127.0.0.1:10809\"", "", "listen is empty");
    refused("name = \"demo\"\ncut", "name = \"Demo\"\ncut", "group name");
    refused("127.0.0.1:10809", "somewhere", "unix:PATH");
}

#[test]
fn a_leg_is_used_once() {
    let twice = "[[group.volume]]\nname = \"disk1\"\nleg = \"disk.raw\"\n[[group.vm]]";
    refused("[[group.vm]]", twice, "used by two volumes");
}
