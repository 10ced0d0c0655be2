//! The pair: a mirror of QEMU's writes to both hosts' legs, the active host is killed under load, the other takes over.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use tests::lab::{Daemon, Lab, wait_for_socket};
use tests::scaled;
use tests::stamps::CutWindow;
use tests::workload::{Random, Shape, Workload};

use crate::vm::{Vm, copy_disk, image};

const VOLUME_BYTES: u64 = 32 << 20;
/// One host: its agent, and what runs the VM's disk while the VM is here.
struct Host {
    /// What its files begin with.
    prefix: &'static str,
    agent: Option<Daemon>,
}

impl Host {
    fn control(&self) -> String {
        format!("{}source.sock", self.prefix)
    }

    fn leg(&self, lab: &Lab) -> PathBuf {
        lab.path(&format!("{}demo-disk0.raw", self.prefix))
    }

    fn start(&mut self, lab: &Lab, says: &str) -> anyhow::Result<()> {
        let config = format!("{}source.toml", self.prefix);
        let agent = lab.daemon(self.prefix, &["source", "run", "--config"], &config)?;
        agent.wait_for(says)?;
        self.agent = Some(agent);
        Ok(())
    }

    fn status(&self, lab: &Lab) -> anyhow::Result<serde_json::Value> {
        lab.status(&self.control(), "demo")
    }

    fn take_over(&self, lab: &Lab) -> anyhow::Result<()> {
        let control = lab.path(&self.control()).display().to_string();
        lab.run(&["pair", "takeover", "--control", &control]).map(drop)
    }
}

/// Cuts that follow each other quickly, so that the open epoch is small. All points are looked at in the full run, which is long.
fn extra() -> String {
    format!("cut_interval = \"{}ms\"\nclear_interval = \"200ms\"", scaled(50, 250))
}

fn hosts() -> [Host; 2] {
    [Host { prefix: "", agent: None }, Host { prefix: "b-", agent: None }]
}

/// The VM's disk, as QEMU has it: every write goes to the tap of the host that it runs on and, while there is a mirror, to the
/// leg of the other host before it is answered.
fn run_disk(lab: &Lab, here: &Host, there: Option<&Host>) -> anyhow::Result<Daemon> {
    let socket = lab.path("vm.sock");
    // Its owner was killed.
    let _ = fs::remove_file(&socket);
    let tap = lab.path(&format!("{}tap.sock", here.prefix));
    let mut command = Command::new("qemu-storage-daemon");
    command.arg("--blockdev").arg(format!(
        "driver=nbd,node-name=tap,server.type=unix,server.path={},export=demo/disk0",
        tap.display()
    ));
    let node = match there {
        Some(there) => {
            let leg = there.leg(lab);
            command.arg("--blockdev").arg(format!("driver=file,node-name=leg,filename={}", leg.display()));
            command.arg("--blockdev").arg(
                "driver=quorum,node-name=both,children.0=tap,children.1=leg,vote-threshold=1,read-pattern=fifo",
            );
            "both"
        }
        None => "tap",
    };
    command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={}", socket.display()));
    command.arg("--export").arg(format!("type=nbd,id=vm,node-name={node},name=disk0,writable=on"));
    let daemon = Daemon::start("qemu-storage-daemon", &mut command)?;
    wait_for_socket(&socket)?;
    Ok(daemon)
}

fn wait_until_in_step(lab: &Lab, active: &Host) -> anyhow::Result<()> {
    lab.eventually("the standby's being in step", |lab| Ok(active.status(lab)?["pair"]["state"] == "in-step"))
}

#[test]
fn the_pair_goes_on_on_the_other_leg_when_the_active_host_is_killed() -> anyhow::Result<()> {
    let mut lab = Lab::pair(VOLUME_BYTES, &extra())?;
    lab.start_site()?;
    let [mut active, mut standby] = hosts();
    standby.start(&lab, "standing by")?;
    active.start(&lab, "ready")?;
    let mut disk = run_disk(&lab, &active, Some(&standby))?;
    lab.cut_by(&active.control(), "demo", &[])?;
    let shape = Shape { blocks: VOLUME_BYTES / 4096, blocks_per_write: 4, depth: 8, writes_per_flush: 50 };
    let workload = Workload::start(&lab.path("vm.sock"), &["disk0"], shape, 7);
    let mut random = Random::new(7);
    let mut fresh = 0;
    let kills = scaled(4, 50);
    for kill in 0..kills {
        wait_until_in_step(&lab, &active)?;
        workload.wait_for(workload.issued() + 100 + random.below(600) as usize);
        // The place where the VM runs dies: the VM first or the agent first, as chance has it.
        if random.below(2) == 0 {
            disk.kill();
        }
        active.agent.take();
        disk.kill();
        let begun = std::time::Instant::now();
        standby.take_over(&lab)?;
        let said = standby.agent.as_ref().map(Daemon::log).unwrap_or_default();
        fresh +=
            u64::from(said.iter().rev().take(200).any(|line| line.contains("its intent map is up to date")));
        std::mem::swap(&mut active, &mut standby);
        disk = run_disk(&lab, &active, None)?;
        lab.cut_by(&active.control(), "demo", &[])?;
        println!("kill {kill}: a point of the other host after {:.2} s", begun.elapsed().as_secs_f64());
        // The old host comes back: it is fenced, and stands by without a copy of data.
        standby.start(&lab, "standing by")?;
        workload.pause();
        disk.kill();
        // What the pair's mirror does when a host is back.
        fs::copy(active.leg(&lab), standby.leg(&lab))?;
        disk = run_disk(&lab, &active, Some(&standby))?;
        workload.resume();
    }
    let history = workload.end();
    let last = lab.cut_by(&active.control(), "demo", &[])?;
    let last = last["point"].as_str().context("no id")?;
    ensure!(
        lab.restored("demo", "disk0", last)? == fs::read(active.leg(&lab))?,
        "the last point differs from the leg"
    );
    let points = lab.points_to_check("demo")?;
    for point in &points {
        let verdict = history.check(&[lab.restored("demo", "disk0", point)?], CutWindow::default());
        ensure!(verdict.is_ok(), "point {point}: {}", verdict.unwrap_err());
    }
    let site = lab.site_status("demo")?;
    println!(
        "{kills} kills, {fresh} with a fresh map, {} writes, {} points checked; the site received {} bytes, {} of them again",
        history.writes.len(),
        points.len(),
        site["received_bytes"],
        site["received_again_bytes"]
    );
    ensure!(site["received_again_bytes"] == 0, "something was received twice");
    ensure!(fresh == kills, "only {fresh} of {kills} takeovers had a fresh map");
    drop(disk);
    Ok(())
}

/// The same with a real guest: QEMU and agent of the active host are killed, the VM boots from the other leg with every record that it had
/// announced, and its point at the recovery site is the leg.
#[test]
fn a_guest_boots_from_the_other_leg_with_every_record() -> anyhow::Result<()> {
    let image = image()?;
    let mut lab = Lab::pair(fs::metadata(&image)?.len(), &extra())?;
    let [mut active, mut standby] = hosts();
    copy_disk(&image, &active.leg(&lab))?;
    copy_disk(&image, &standby.leg(&lab))?;
    lab.start_site()?;
    standby.start(&lab, "standing by")?;
    active.start(&lab, "ready")?;
    let tap = |lab: &Lab, host: &Host| {
        format!(
            "driver=nbd,node-name=tap,server.type=unix,server.path={},export=demo/disk0,reconnect-delay=86400,open-timeout=30,discard=unmap",
            lab.path(&format!("{}tap.sock", host.prefix)).display()
        )
    };
    let both =
        "driver=quorum,node-name=both,children.0=tap,children.1=leg,vote-threshold=1,read-pattern=fifo";
    let mut random = Random::new(11);
    let mut announced = 0;
    let kills = scaled(1, 5);
    for kill in 0..kills {
        wait_until_in_step(&lab, &active)?;
        let leg = format!("driver=file,node-name=leg,filename={}", standby.leg(&lab).display());
        let mut vm = Vm::start(&lab, &format!("before-{kill}"), &[&tap(&lab, &active), &leg, both], "both")?;
        let ready = vm.wait_until_ready(&lab)?;
        ensure!(ready.is_whole() && ready.records >= announced, "life {kill} found {ready} of {announced}");
        vm.wait_for_more_records(&lab, 20 + random.below(60) as usize)?;
        lab.cut_by(&active.control(), "demo", &[])?;
        wait_until_in_step(&lab, &active)?;
        vm.wait_for_more_records(&lab, 5)?;
        vm.kill();
        active.agent.take();
        announced = vm.life()?.last_number();
        standby.take_over(&lab)?;
        std::mem::swap(&mut active, &mut standby);
        let mut vm = Vm::start(&lab, &format!("after-{kill}"), &[&tap(&lab, &active)], "tap")?;
        let ready = vm.wait_until_ready(&lab)?;
        ensure!(ready.is_whole(), "the guest found damage on the other leg: {ready}");
        ensure!(ready.records >= announced, "the guest found {} of {announced} records", ready.records);
        vm.wait_for_more_records(&lab, 10)?;
        announced = vm.life()?.last_number();
        vm.kill();
        let last = lab.cut_by(&active.control(), "demo", &[])?;
        let last = last["point"].as_str().context("no id")?;
        let leg = fs::read(active.leg(&lab))?;
        ensure!(lab.restored("demo", "disk0", last)? == leg, "the point differs from the leg");
        println!("kill {kill}: {ready}");
        standby.start(&lab, "standing by")?;
        copy_disk(&active.leg(&lab), &standby.leg(&lab))?;
    }
    let site = lab.site_status("demo")?;
    ensure!(site["received_again_bytes"] == 0, "something was received twice");
    Ok(())
}

#[test]
fn a_host_alone_goes_on_and_says_so_and_the_standby_catches_up() -> anyhow::Result<()> {
    let mut lab = Lab::pair(VOLUME_BYTES, &extra())?;
    lab.start_site()?;
    let [mut active, mut standby] = hosts();
    active.start(&lab, "ready")?;
    lab.eventually("going on alone", |lab| Ok(active.status(lab)?["pair"]["state"] == "alone"))?;
    let shape = Shape { blocks: VOLUME_BYTES / 4096, blocks_per_write: 4, depth: 8, writes_per_flush: 50 };
    let workload = Workload::start(&lab.tap(), &["demo/disk0"], shape, 8);
    workload.wait_for(500);
    lab.cut_by(&active.control(), "demo", &[])?;
    standby.start(&lab, "standing by")?;
    wait_until_in_step(&lab, &active)?;
    // The link is lost: the standby's process stands still, and the VM goes on.
    standby.agent.take();
    workload.wait_for(workload.issued() + 1000);
    lab.eventually("going on alone", |lab| Ok(active.status(lab)?["pair"]["state"] == "alone"))?;
    lab.cut_by(&active.control(), "demo", &[])?;
    standby.start(&lab, "standing by")?;
    wait_until_in_step(&lab, &active)?;
    let figures = active.status(&lab)?;
    let bound = figures["marks"]["mark_wait_bound_seconds"].as_f64().context("no bound")?;
    let longest = figures["marks"]["mark_wait_max_seconds"].as_f64().context("no figure")?;
    ensure!(longest <= bound + 1.0, "a write waited {longest} s for its mark; the bound is {bound} s");
    drop(workload.end());
    Ok(())
}

#[test]
fn a_stale_standby_compares_everything_and_sends_only_what_differs() -> anyhow::Result<()> {
    let mut lab = Lab::pair(VOLUME_BYTES, &extra())?;
    lab.start_site()?;
    let [mut active, mut standby] = hosts();
    standby.start(&lab, "standing by")?;
    active.start(&lab, "ready")?;
    wait_until_in_step(&lab, &active)?;
    let mut disk = run_disk(&lab, &active, Some(&standby))?;
    let shape = Shape { blocks: 512, blocks_per_write: 4, depth: 8, writes_per_flush: 50 };
    let workload = Workload::start(&lab.path("vm.sock"), &["disk0"], shape, 9);
    workload.wait_for(500);
    lab.cut_by(&active.control(), "demo", &[])?;
    // The standby is away while the VM goes on.
    standby.agent.take();
    workload.wait_for(workload.issued() + 2000);
    workload.pause();
    lab.cut_by(&active.control(), "demo", &[])?;
    disk.kill();
    active.agent.take();
    standby.start(&lab, "standing by")?;
    let before = lab.site_status("demo")?["received_bytes"].as_u64().context("no figure")?;
    standby.take_over(&lab)?;
    let last = lab.cut_by(&standby.control(), "demo", &[])?;
    let last = last["point"].as_str().context("no id")?;
    ensure!(
        lab.restored("demo", "disk0", last)? == fs::read(standby.leg(&lab))?,
        "the point differs from the leg"
    );
    let site = lab.site_status("demo")?;
    let sent = site["received_bytes"].as_u64().context("no figure")? - before;
    let compared = site["compared_bytes"].as_u64().context("no figure")?;
    ensure!(compared >= VOLUME_BYTES, "only {compared} bytes were compared");
    ensure!(sent < 64 << 10, "{sent} bytes were sent although both sides were equal");
    println!("compared {compared} bytes, sent {sent}");
    workload.resume();
    disk = run_disk(&lab, &standby, None)?;
    drop(workload.end());
    drop(disk);
    Ok(())
}
