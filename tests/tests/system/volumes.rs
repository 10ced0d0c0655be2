//! Volumes and groups come and go while VMs write: points go on, and no VM waits for long.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use journal_nbd::{Client, Protocol, WriteFlags};
use tests::lab::{GroupSpec, Lab};

use crate::restart::agent_id;

const MIB: u64 = 1 << 20;
/// A crash, an upgrade or a reload of the agent is a pause of at most this.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A VM that writes all the time, and connects again when it has to, as QEMU does.
struct Vm {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    longest_us: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Vm {
    fn start(lab: &Lab, export: &'static str) -> Vm {
        let (stop, writes, longest_us) = (Arc::default(), Arc::default(), Arc::default());
        let tap = lab.tap();
        let (told, counted, longest) = (Arc::clone(&stop), Arc::clone(&writes), Arc::clone(&longest_us));
        let run = move || {
            let (told, counted, longest): (Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>) =
                (told, counted, longest);
            let mut answered = Instant::now();
            while !told.load(Ordering::Relaxed) {
                let Ok(mut client) = Client::connect_unix(&tap, export, Protocol::Structured) else {
                    continue;
                };
                while !told.load(Ordering::Relaxed) {
                    let number = counted.load(Ordering::Relaxed);
                    let bytes = [number as u8 | 1; 4096];
                    if client.write(number % 256 * 4096, &bytes, WriteFlags::default()).is_err() {
                        break;
                    }
                    longest.fetch_max(answered.elapsed().as_micros() as u64, Ordering::Relaxed);
                    answered = Instant::now();
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        Vm { stop, writes, longest_us, thread: Some(thread::spawn(run)) }
    }

    fn wait_for_more_writes(&self, lab: &Lab) -> anyhow::Result<()> {
        let wanted = self.writes.load(Ordering::Relaxed) + 100;
        lab.eventually("further writes", |_| Ok(self.writes.load(Ordering::Relaxed) >= wanted))
    }

    fn longest_pause(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the VM did not panic");
        }
    }
}

fn reload(lab: &Lab) -> anyhow::Result<serde_json::Value> {
    lab.json(&["source", "reload", "--json", "--control", &lab.path("source.sock").display().to_string()])
}

/// Names of the volumes of a point.
fn volumes(point: &serde_json::Value) -> Vec<&str> {
    point["volumes"].as_array().into_iter().flatten().filter_map(|volume| volume["name"].as_str()).collect()
}

#[test]
fn a_volume_is_added_and_removed_while_vms_write_and_points_go_on() -> anyhow::Result<()> {
    let extra = "cut_interval = \"50ms\"\nclear_interval = \"100ms\"\nresync_rate = \"8MiB\"".to_owned();
    let volumes_before = vec![("disk0".to_owned(), 8 * MIB)];
    let mut lab = Lab::new(&[GroupSpec { name: "demo".to_owned(), volumes: volumes_before, extra }])?;
    lab.start_site()?;
    lab.start_source()?;
    let vm = Vm::start(&lab, "demo/disk0");
    lab.cut("demo", &[])?;
    let settings = fs::read_to_string(lab.path("source.toml"))?;
    let late = "[[group.volume]]\nname = \"late\"\nleg = \"demo-late.raw\"\n";
    // Settings that cannot be taken in change nothing.
    let refused = |text: &str, says: &str| -> anyhow::Result<()> {
        fs::write(lab.path("source.toml"), text)?;
        let control = lab.path("source.sock").display().to_string();
        let said = lab.fails(2, &["source", "reload", "--control", &control])?;
        ensure!(said.contains(says), "{said}");
        Ok(())
    };
    refused("version = 1", "is not valid")?;
    refused(&format!("{settings}{late}"), "demo-late.raw")?;
    refused(&settings.replace("\"journal\"", "\"elsewhere\""), "journal in the settings has changed")?;
    let away = settings.replace("name = \"disk0\"", "name = \"other\"");
    refused(&away, "a VM uses demo/disk0")?;
    // A volume with bytes of its own comes in.
    let mut bytes = vec![0; 16 * MIB as usize];
    blake3::Hasher::new().update(b"late").finalize_xof().fill(&mut bytes);
    fs::write(lab.leg("demo", "late"), &bytes)?;
    fs::write(lab.path("source.toml"), format!("{settings}{late}"))?;
    let answer = reload(&lab)?;
    ensure!(answer["added"] == serde_json::json!(["demo/late"]), "{answer}");
    vm.wait_for_more_writes(&lab)?;
    let cut = lab.cut("demo", &[])?;
    ensure!(cut["is_point"] == true, "no point while the volume joins: {cut}");
    let status = lab.source_status("demo")?;
    ensure!(status["state"] == "protected" && status["volumes"][1]["joining"] == true, "{status}");
    let without = lab.points("demo")?.last().context("no point")?.clone();
    ensure!(volumes(&without) == ["disk0"], "{without}");
    // A second VM uses it while it still travels, and it joins the points.
    let second = Vm::start(&lab, "demo/late");
    let joined = |lab: &Lab| Ok(lab.points("demo")?.last().is_some_and(|point| volumes(point).len() == 2));
    lab.eventually("a point with both volumes", joined)?;
    drop(second);
    let last = lab.cut("demo", &[])?;
    let point = last["point"].as_str().context("no id")?;
    ensure!(lab.restored("demo", "late", point)? == fs::read(lab.leg("demo", "late"))?, "late differs");
    // A volume that nobody uses goes; the points that hold it stay.
    fs::write(lab.path("source.toml"), &settings)?;
    ensure!(reload(&lab)?["removed"] == serde_json::json!(["demo/late"]));
    vm.wait_for_more_writes(&lab)?;
    let cut = lab.cut("demo", &[])?;
    ensure!(cut["is_point"] == true, "no point behind the removal: {cut}");
    ensure!(volumes(lab.points("demo")?.last().context("no point")?) == ["disk0"], "it is still there");
    lab.restored("demo", "late", point)?;
    // The same by a signal, with a group that comes.
    let group = "[[group]]\nname = \"more\"\n[[group.volume]]\nname = \"disk0\"\nleg = \"more-disk0.raw\"\n";
    fs::write(lab.leg("more", "disk0"), vec![5; MIB as usize])?;
    fs::write(lab.path("source.toml"), format!("{settings}{group}"))?;
    tests::lab::hang_up(lab.source.as_ref().context("the agent runs")?.id())?;
    lab.eventually("the second group", |lab| Ok(lab.source_status("more").is_ok()))?;
    vm.wait_for_more_writes(&lab)?;
    let pause = vm.longest_pause();
    println!(
        "longest pause of the VM: {:.0} ms, {} writes",
        pause.as_secs_f64() * 1e3,
        vm.writes.load(Ordering::Relaxed)
    );
    ensure!(pause <= PAUSE_MAX, "the VM waited {pause:?}");
    drop(vm);
    let point = lab.cut("demo", &[])?["point"].as_str().context("no id")?.to_owned();
    ensure!(lab.restored("demo", "disk0", &point)? == fs::read(lab.leg("demo", "disk0"))?, "disk0 differs");
    Ok(())
}

/// Behind the supervisor, a crash of the agent under load is a pause of at most a second and never an error.
#[test]
fn a_crash_of_the_agent_is_a_short_pause() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[64 * MIB])?;
    lab.start_site()?;
    crash_under_load(&lab)
}

/// The same while a standby has to be asked for every mark.
#[test]
fn a_crash_of_the_active_agent_of_a_pair_is_a_short_pause() -> anyhow::Result<()> {
    let mut lab = Lab::pair(64 * MIB, "")?;
    lab.start_site()?;
    let standby = lab.daemon("standby", &["source", "run", "--config"], "b-source.toml")?;
    standby.wait_for("standing by")?;
    crash_under_load(&lab)
}

fn crash_under_load(lab: &Lab) -> anyhow::Result<()> {
    let supervisor = lab.daemon("supervisor", &["source", "supervise", "--config"], "source.toml")?;
    supervisor.wait_for(" ready")?;
    let vm = Vm::start(lab, "demo/disk0");
    vm.wait_for_more_writes(lab)?;
    let starts = || supervisor.log().iter().filter(|line| line.contains("agent started")).count();
    for kill in 1..=5 {
        let started = starts();
        let log = supervisor.log();
        let agent = log.iter().rev().find_map(|line| agent_id(line)).context("no agent was started")?;
        tests::lab::kill(agent)?;
        lab.eventually("the next agent", |_| Ok(starts() > started))?;
        vm.wait_for_more_writes(lab)?;
        println!("kill {kill}: longest pause so far {:.0} ms", vm.longest_pause().as_secs_f64() * 1e3);
    }
    let pause = vm.longest_pause();
    ensure!(pause <= PAUSE_MAX, "the VM waited {pause:?}");
    Ok(())
}
