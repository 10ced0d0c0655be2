//! The tap goes into and out of the disk path of a running VM, whose guest writes and checks its own records.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use tests::lab::{Daemon, GroupSpec, Lab, wait_for_socket};

/// A running VM whose disk is a plain file.
struct Vm {
    process: Daemon,
    console: PathBuf,
    qmp: PathBuf,
}

impl Vm {
    fn start(lab: &Lab, disk: &Path) -> anyhow::Result<Vm> {
        let (console, qmp) = (lab.path("console.log"), lab.path("qmp.sock"));
        let mut command = Command::new("qemu-system-x86_64");
        command.args(
            "-nodefaults -no-user-config -display none -machine pc-q35-10.0 -accel tcg -cpu qemu64 -m 192M"
                .split(' '),
        );
        command.arg("-blockdev").arg(format!(
            "driver=raw,node-name=disk0,discard=unmap,file.driver=file,file.filename={}",
            disk.display()
        ));
        command.args(["-device", "virtio-blk-pci,drive=disk0,id=vda,werror=stop,rerror=stop,bootindex=0"]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        let process = Daemon::start("qemu", &mut command)?;
        wait_for_socket(&qmp)?;
        Ok(Vm { process, console, qmp })
    }

    /// Records that the guest has written.
    fn records(&self) -> usize {
        let console = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&console).lines().filter(|line| line.starts_with("RECORD ")).count()
    }

    fn wait_for_more_records(&self, lab: &Lab, more: usize) -> anyhow::Result<()> {
        let wanted = self.records() + more;
        lab.eventually("further records of the guest", |_| Ok(self.records() >= wanted))?;
        let console = fs::read(&self.console)?;
        ensure!(!String::from_utf8_lossy(&console).contains("I/O error"), "the guest saw an error");
        Ok(())
    }
}

fn image() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's folder")?;
    let image = root.join("target/guest/disk.raw");
    ensure!(image.is_file(), "the guest's image is missing; run examples/guest/build target/guest");
    Ok(image)
}

#[test]
fn the_tap_goes_into_and_out_of_a_running_vm() -> anyhow::Result<()> {
    let image = image()?;
    let volumes = vec![("disk0".to_owned(), fs::metadata(&image)?.len()), ("small".to_owned(), 1 << 20)];
    let mut lab = Lab::new(&[GroupSpec { name: "demo".to_owned(), volumes, extra: String::new() }])?;
    let leg = lab.leg("demo", "disk0");
    let mut copy = Command::new("cp");
    ensure!(copy.arg("--sparse=always").arg(&image).arg(&leg).status()?.success(), "the image is not copied");
    let mut vm = Vm::start(&lab, &leg)?;
    vm.wait_for_more_records(&lab, 3)?;
    lab.start_site()?;
    lab.start_source()?;
    let text = |path: &Path| path.display().to_string();
    let (qmp, leg_text, tap) = (text(&vm.qmp), text(&leg), format!("unix:{}", lab.tap().display()));
    let device = ["--qmp", &qmp, "--device", "vda", "--leg", &leg_text, "--json"];
    let insert = |export: &'static str| {
        [&["tap", "insert"][..], &device, &["--tap", &tap, "--export", export]].concat()
    };
    let remove = [&["tap", "remove"][..], &device].concat();
    // What must not happen is refused before anything is changed.
    let wrong = text(&lab.leg("demo", "small"));
    let refused = |lab: &Lab, from: &str, to: &str, says: &str| -> anyhow::Result<()> {
        let args: Vec<&str> =
            insert("demo/disk0").into_iter().map(|arg| if arg == from { to } else { arg }).collect();
        let said = lab.fails(2, &args)?;
        ensure!(said.contains(says), "{said}");
        Ok(())
    };
    refused(&lab, &leg_text, &wrong, "not '")?;
    refused(&lab, "vda", "vdz", "no disk with the device id 'vdz'")?;
    refused(&lab, "demo/disk0", "demo/small", "bytes, the VM's disk")?;
    let mut pauses = Vec::new();
    for round in 0..6 {
        let inserted = lab.json(&insert("demo/disk0"))?;
        ensure!(inserted["changed"] == true, "{inserted}");
        vm.wait_for_more_records(&lab, 2)?;
        ensure!(lab.json(&insert("demo/disk0"))?["changed"] == false, "inserting again changes something");
        if round == 0 {
            // The VM wrote past the tap while the agent ran.
            let control = text(&lab.path("source.sock"));
            lab.json(&["resync", "demo", "--wait", "--json", "--control", &control])?;
        }
        let removed = lab.json(&remove)?;
        ensure!(lab.json(&remove)?["changed"] == false, "removing again changes something");
        vm.wait_for_more_records(&lab, 2)?;
        pauses.push((
            inserted["pause_ms"].as_f64().context("no pause")?,
            removed["pause_ms"].as_f64().context("no pause")?,
        ));
    }
    println!("pauses in ms (insert, remove): {pauses:?}");
    lab.json(&insert("demo/disk0"))?;
    let control = text(&lab.path("source.sock"));
    lab.json(&["resync", "demo", "--wait", "--json", "--control", &control])?;
    vm.wait_for_more_records(&lab, 3)?;
    vm.process.kill();
    let cut = lab.cut("demo", &[])?;
    let point = cut["point"].as_str().context("no point")?;
    ensure!(lab.restored("demo", "disk0", point)? == fs::read(&leg)?, "the point differs from the leg");
    Ok(())
}
