//! The tap goes into and out of the disk path of a running VM, whose guest writes and checks its own records.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use tests::lab::{GroupSpec, Lab};

use crate::vm::{Vm, copy_disk, image};

#[test]
fn the_tap_goes_into_and_out_of_a_running_vm() -> anyhow::Result<()> {
    let image = image()?;
    let volumes = vec![("disk0".to_owned(), fs::metadata(&image)?.len()), ("small".to_owned(), 1 << 20)];
    let mut lab = Lab::new(&[GroupSpec { name: "demo".to_owned(), volumes, extra: String::new() }])?;
    let leg = lab.leg("demo", "disk0");
    copy_disk(&image, &leg)?;
    let file =
        format!("driver=raw,node-name=disk0,discard=unmap,file.driver=file,file.filename={}", leg.display());
    let mut vm = Vm::start(&lab, "vm", &[&file], "disk0")?;
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
    for _round in 0..6 {
        let inserted = lab.json(&insert("demo/disk0"))?;
        ensure!(inserted["changed"] == true, "{inserted}");
        vm.wait_for_more_records(&lab, 2)?;
        ensure!(lab.json(&insert("demo/disk0"))?["changed"] == false, "inserting again changes something");
        let removed = lab.json(&remove)?;
        ensure!(lab.json(&remove)?["changed"] == false, "removing again changes something");
        vm.wait_for_more_records(&lab, 2)?;
        pauses.push((
            inserted["pause_ms"].as_f64().context("no pause")?,
            removed["pause_ms"].as_f64().context("no pause")?,
        ));
    }
    println!("pauses in ms (insert, remove): {pauses:?}");
    // What the VM wrote past the tap is found by itself.
    lab.json(&insert("demo/disk0"))?;
    vm.wait_for_more_records(&lab, 3)?;
    vm.kill();
    let cut = lab.cut("demo", &[])?;
    let point = cut["point"].as_str().context("no point")?;
    ensure!(lab.restored("demo", "disk0", point)? == fs::read(&leg)?, "the point differs from the leg");
    Ok(())
}

/// The tap goes out, QEMU makes the disk larger, the agent takes that in, and the tap goes in again: the guest never stops.
#[test]
fn a_disk_is_resized_under_a_running_vm() -> anyhow::Result<()> {
    let image = image()?;
    let size = fs::metadata(&image)?.len();
    let larger = size + (64 << 20);
    let mut lab = Lab::demo(&[size])?;
    let leg = lab.leg("demo", "disk0");
    copy_disk(&image, &leg)?;
    lab.start_site()?;
    lab.start_source()?;
    let text = |path: &Path| path.display().to_string();
    let tap = format!(
        "driver=nbd,node-name=disk0,server.type=unix,server.path={},export=demo/disk0,reconnect-delay=86400,open-timeout=30,discard=unmap",
        lab.tap().display()
    );
    let mut vm = Vm::start(&lab, "vm", &[&tap], "disk0")?;
    vm.wait_for_more_records(&lab, 3)?;
    let before = lab.cut("demo", &[])?["point"].as_str().context("no point")?.to_owned();
    let (qmp, leg_text, unix) = (text(&vm.qmp), text(&leg), format!("unix:{}", lab.tap().display()));
    let device = ["--qmp", &qmp, "--device", "vda", "--leg", &leg_text, "--json"];
    let node = json_text(&lab.json(&[&["tap", "remove"][..], &device].concat())?["after"])?;
    // The agent refuses a leg of another size until somebody says that it is meant.
    vm.execute("block_resize", &serde_json::json!({"node-name": node, "size": larger}))?;
    let control = text(&lab.path("source.sock"));
    let accept = ["source", "reload", "--accept-resize", "demo/disk0", "--json", "--control", &control];
    lab.json(&accept)?;
    let insert = ["tap", "insert", "--tap", &unix, "--export", "demo/disk0"];
    lab.json(&[&insert[..], &device].concat())?;
    vm.wait_for_more_records(&lab, 3)?;
    vm.kill();
    let cut = lab.cut("demo", &[])?;
    let point = cut["point"].as_str().context("no point")?;
    let restored = lab.restored("demo", "disk0", point)?;
    ensure!(restored.len() as u64 == larger, "the point has {} bytes instead of {larger}", restored.len());
    ensure!(restored == fs::read(&leg)?, "the point differs from the leg");
    ensure!(lab.restored("demo", "disk0", &before)?.len() as u64 == size, "an older point has another size");
    Ok(())
}

fn json_text(value: &serde_json::Value) -> anyhow::Result<String> {
    Ok(value.as_str().context("no text")?.to_owned())
}
