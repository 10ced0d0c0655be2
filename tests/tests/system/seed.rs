//! A first copy that goes to the recovery site on a disk.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, ensure};
use journal_nbd::{Client, Protocol, WriteFlags};
use serde_json::Value;
use tests::lab::{GroupSpec, Lab, SmallDisk, wait_for_socket};
use tests::workload::Random;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..bytes / 8).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect()
}

/// Writes noise over a part of a leg, past everybody.
fn scribble(lab: &Lab, seed: u64, at: u64, bytes: u64) -> anyhow::Result<()> {
    let leg = fs::OpenOptions::new().write(true).open(lab.leg("demo", "disk0"))?;
    Ok(leg.write_all_at(&noise(seed, bytes), at)?)
}

/// A laboratory with a leg of noise in front of a hole.
fn lab(noise_mib: u64, hole_mib: u64) -> anyhow::Result<Lab> {
    let lab = Lab::demo(&[(noise_mib + hole_mib) * MIB])?;
    scribble(&lab, 1, 0, noise_mib * MIB)?;
    Ok(lab)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn export_args<'a>(config: &'a str, folder: &'a str) -> [&'a str; 7] {
    ["seed", "export", "--config", config, "demo", folder, "--json"]
}

fn export(lab: &Lab, folder: &str) -> anyhow::Result<Value> {
    lab.json(&export_args(&text(&lab.path("source.toml")), &text(&lab.path(folder))))
}

fn import_args<'a>(config: &'a str, folder: &'a str) -> [&'a str; 6] {
    ["seed", "import", "--config", config, folder, "--json"]
}

fn import(lab: &Lab, folder: &str) -> anyhow::Result<Value> {
    lab.json(&import_args(&text(&lab.path("site.toml")), &text(&lab.path(folder))))
}

/// An import that has to fail with this code; answers what it says.
fn import_fails(lab: &Lab, code: i32, folder: &str) -> anyhow::Result<String> {
    let said = lab.fails(code, &import_args(&text(&lab.path("site.toml")), &text(&lab.path(folder))))?;
    ensure!(said.contains("hint: "), "no hint: {said}");
    Ok(said)
}

fn number(value: &Value, key: &str) -> anyhow::Result<u64> {
    value[key].as_u64().with_context(|| format!("no {key} in {value}"))
}

fn segments(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut names =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    names.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    names.sort();
    Ok(names)
}

/// Cuts, and compares the point with the leg, to which nobody writes.
fn check_point(lab: &Lab) -> anyhow::Result<()> {
    let cut = lab.cut("demo", &[])?;
    let bytes = lab.restored("demo", "disk0", cut["point"].as_str().context("no point")?)?;
    ensure!(bytes == fs::read(lab.leg("demo", "disk0"))?, "the point differs from the leg");
    Ok(())
}

/// Rewrites some blocks through the tap again and again; answers how many writes that were.
fn rewrite_until(tap: &Path, ended: &AtomicBool, begun: &AtomicU64) -> anyhow::Result<u64> {
    wait_for_socket(tap)?;
    let mut client = Client::connect_unix(tap, "demo/disk0", Protocol::Structured)?;
    let mut random = Random::new(9);
    let mut writes = 0;
    while !ended.load(Ordering::Relaxed) {
        let at = random.below(128) * 97 * BLOCK;
        client.write(at, &noise(100 + writes, BLOCK), WriteFlags::default())?;
        writes += 1;
        begun.store(writes, Ordering::Relaxed);
    }
    client.disconnect()?;
    Ok(writes)
}

#[test]
fn a_first_copy_that_was_carried_is_not_sent() -> anyhow::Result<()> {
    let mut lab = lab(256, 16)?;
    lab.start_source()?;
    let (ended, begun) = (AtomicBool::new(false), AtomicU64::new(0));
    let tap = lab.tap();
    let exported = std::thread::scope(|scope| {
        let writer = scope.spawn(|| rewrite_until(&tap, &ended, &begun));
        lab.eventually("a write", |_| Ok(begun.load(Ordering::Relaxed) > 0))?;
        let exported = export(&lab, "seed");
        ended.store(true, Ordering::Relaxed);
        writer.join().expect("the writer does not panic")?;
        exported
    })?;
    ensure!(number(&exported, "size_bytes")? == 272 * MIB);
    ensure!(number(&exported, "read_bytes")? == 256 * MIB, "the hole was read: {exported}");
    let imported = import(&lab, "seed")?;
    ensure!(imported["taken_segments"] == exported["segments"], "{exported} {imported}");

    let before = number(&lab.source_status("demo")?["counters"], "backlog_bytes")?;
    // Their blocks have to be hashed again, so that learning takes a while: what the first sync compared before would be sent.
    fs::remove_dir_all(lab.store().join("groups/demo-seed/blocks"))?;
    lab.start_site()?;
    lab.eventually("the connection", |lab| Ok(lab.source_status("demo")?["connected"] == true))?;
    check_point(&lab)?;
    let received = number(&lab.site_status("demo")?, "received_bytes")?;
    let allowed = 256 * MIB / 100 + before + 128 * BLOCK;
    println!("received {received} bytes, of which {before} waited in the journal; allowed are {allowed}");
    ensure!(received < allowed, "{received} bytes were sent, {before} waited");
    seed_is_named(&lab)?;
    lab.kill_site();
    damage_of_the_seed_is_told_of_the_points(&lab)
}

fn damage_of_the_seed_is_told_of_the_points(lab: &Lab) -> anyhow::Result<()> {
    let store = text(&lab.store());
    lab.run(&["verify", "--store", &store])?;
    let segment = lab.store().join("groups/demo-seed/segments/g0000000001-s00000000000000000001.seg");
    let mut bytes = fs::read(&segment)?;
    bytes[10_000] ^= 1;
    fs::write(&segment, bytes)?;
    let output = lab.output(&["verify", "--store", &store, "--json"])?;
    ensure!(output.status.code() == Some(3), "{}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let groups = report["groups"].as_array().context("no groups")?;
    let demo = groups.iter().find(|group| group["group"] == "demo").context("no group demo")?;
    let touched = demo["touched_points"].as_array().context("no touched points")?.len();
    ensure!(
        touched > 0 && touched + number(demo, "whole_points")? as usize == lab.points("demo")?.len(),
        "{demo}"
    );
    Ok(())
}

/// Nobody takes the seed for a group that is protected.
fn seed_is_named(lab: &Lab) -> anyhow::Result<()> {
    let status = lab.site_status("demo-seed")?;
    ensure!(status["seed_of"] == "demo" && status["state"] == "seed", "{status}");
    ensure!(lab.site_status("demo")?["seed_of"].is_null());
    let store = text(&lab.store());
    let listed = lab.json(&["point", "list", "demo-seed", "--store", &store, "--json"])?;
    ensure!(listed["seed_of"] == "demo", "{listed}");
    ensure!(lab.run(&["point", "list", "demo-seed", "--store", &store])?.contains("seed of group 'demo'"));
    ensure!(lab.run(&["verify", "--store", &store])?.contains("seed of demo"));
    let output = text(&lab.path("out.raw"));
    let said = lab.fails(
        2,
        &["restore", "demo-seed", "--volume", "disk0", "--latest", "--store", &store, "--output", &output],
    )?;
    ensure!(said.contains("is the seed of group 'demo'"), "{said}");
    Ok(())
}

#[test]
fn a_second_export_adds_what_is_new() -> anyhow::Result<()> {
    let mut lab = lab(72, 0)?;
    let first = export(&lab, "seed")?;
    ensure!(number(&first, "segments")? == 2 && number(&first, "written_bytes")? < 74 * MIB, "{first}");
    ensure!(number(&import(&lab, "seed")?, "taken_segments")? == 2);
    ensure!(number(&export(&lab, "seed")?, "segments")? == 0, "something was written twice");

    scribble(&lab, 2, 10 * MIB, MIB)?;
    let second = export(&lab, "seed")?;
    ensure!(
        number(&second, "segments")? == 1 && number(&second, "written_bytes")? < MIB * 21 / 20,
        "{second}"
    );
    // Another disk: only the newest segment is needed to go on.
    let all = segments(&lab.path("seed"))?;
    all[..2].iter().try_for_each(fs::remove_file)?;
    scribble(&lab, 3, 20 * MIB, MIB)?;
    let third = export(&lab, "seed")?;
    ensure!(number(&third, "segments")? == 1 && number(&third, "written_bytes")? < MIB * 21 / 20, "{third}");
    ensure!(number(&import(&lab, "seed")?, "taken_segments")? == 2);
    ensure!(number(&import(&lab, "seed")?, "taken_segments")? == 0, "a segment was taken in twice");

    lab.start_site()?;
    lab.start_source()?;
    check_point(&lab)?;
    let received = number(&lab.site_status("demo")?, "received_bytes")?;
    ensure!(received < 72 * MIB / 50, "{received} bytes were sent");
    // What the index knows of the seed counts after a restart, too.
    lab.source.take().context("the agent runs")?.stop()?;
    scribble(&lab, 1, 0, MIB)?;
    scribble(&lab, 2, 30 * MIB, MIB)?;
    lab.start_source()?;
    check_point(&lab)?;
    let again = number(&lab.site_status("demo")?, "received_bytes")? - received;
    ensure!(again < MIB / 10, "{again} bytes were sent for blocks of the seed");
    Ok(())
}

#[test]
fn a_seed_that_comes_while_the_agent_runs_is_noticed() -> anyhow::Result<()> {
    let mut lab = lab(4, 0)?;
    lab.start_site()?;
    lab.start_source()?;
    check_point(&lab)?;
    lab.kill_site();
    scribble(&lab, 7, 0, MIB)?;
    export(&lab, "seed")?;
    import(&lab, "seed")?;
    lab.start_site()?;
    lab.source.as_ref().context("the agent runs")?.wait_for("segments=1 seed=true")
}

#[test]
fn an_export_that_was_killed_goes_on() -> anyhow::Result<()> {
    let lab = lab(256, 0)?;
    let (config, folder) = (text(&lab.path("source.toml")), lab.path("seed"));
    let mut killed = lab.spawn("export", &export_args(&config, &text(&folder)))?;
    lab.eventually("the first segment", |_| Ok(folder.join("00000000000000000001.seg").exists()))?;
    killed.kill();
    let kept = segments(&folder)?.len() as u64;
    let rest = export(&lab, "seed")?;
    ensure!(kept >= 1 && number(&rest, "segments")? + kept >= 4, "{kept} segments were kept: {rest}");
    let names = fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
    let names = names.collect::<std::io::Result<Vec<String>>>()?;
    ensure!(!names.iter().any(|name| name.ends_with(".tmp")), "left over: {names:?}");
    let bytes =
        segments(&folder)?.iter().map(|path| Ok(fs::metadata(path)?.len())).sum::<std::io::Result<u64>>()?;
    ensure!(bytes < 256 * MIB * 51 / 50, "blocks were written twice: {bytes}");
    ensure!(number(&import(&lab, "seed")?, "taken_segments")? == number(&rest, "segments")? + kept);
    Ok(())
}

#[test]
fn a_damaged_segment_is_refused_and_the_rest_stays() -> anyhow::Result<()> {
    let mut lab = lab(136, 0)?;
    export(&lab, "seed")?;
    let files = segments(&lab.path("seed"))?;
    ensure!(files.len() == 3, "{files:?}");
    let second = fs::read(&files[1])?;
    fs::remove_file(&files[1])?;
    ensure!(import_fails(&lab, 3, "seed")?.contains("is missing"));
    ensure!(!lab.store().join("groups").exists(), "something was taken of what is incomplete");
    let mut damaged = second.clone();
    damaged[second.len() / 2] ^= 1;
    fs::write(&files[1], &damaged)?;
    ensure!(import_fails(&lab, 3, "seed")?.contains("00002.seg"));
    let store = text(&lab.store());
    lab.run(&["verify", "--store", &store])?;
    fs::write(&files[1], &second[..second.len() - 7])?;
    ensure!(import_fails(&lab, 3, "seed")?.contains("00002.seg"));
    fs::write(&files[1], &second)?;
    let rest = import(&lab, "seed")?;
    ensure!(rest["taken_segments"] == 2 && rest["segments"] == 3, "{rest}");
    lab.run(&["verify", "--store", &store])?;

    scribble(&lab, 5, 0, MIB)?;
    export(&lab, "other")?;
    ensure!(import_fails(&lab, 7, "other")?.contains("another seed"));
    lab.start_site()?;
    ensure!(import_fails(&lab, 2, "seed")?.contains("stop the recovery site's daemon"));
    Ok(())
}

#[test]
fn disks_that_come_in_the_wrong_order() -> anyhow::Result<()> {
    let lab = lab(68, 0)?;
    export(&lab, "seed")?;
    let files = segments(&lab.path("seed"))?;
    let away = lab.path("away.seg");
    fs::rename(&files[0], &away)?;
    ensure!(import_fails(&lab, 2, "seed")?.contains("the store has it up to segment 0"));
    fs::rename(&away, &files[0])?;
    ensure!(number(&import(&lab, "seed")?, "taken_segments")? == 2);
    fs::create_dir(lab.path("empty"))?;
    ensure!(import_fails(&lab, 2, "empty")?.contains("seed.json"));
    Ok(())
}

#[test]
fn folders_groups_and_legs_that_cannot_be_exported() -> anyhow::Result<()> {
    let group = |name: &str| GroupSpec {
        name: name.to_owned(),
        volumes: vec![("disk0".to_owned(), 4 * MIB)],
        extra: String::new(),
    };
    let lab = Lab::new(&[group("demo"), group("other")])?;
    let config = text(&lab.path("source.toml"));
    let fails = |group: &str, folder: &Path, says: &str| -> anyhow::Result<()> {
        let said = lab.fails(2, &["seed", "export", "--config", &config, group, &text(folder)])?;
        ensure!(
            said.contains(says) && said.contains("hint: "),
            "it does not say '{says}' with a hint: {said}"
        );
        Ok(())
    };
    fails("third", &lab.path("seed"), "demo, other")?;
    fails("demo", lab.folder(), "not empty")?;
    export(&lab, "seed")?;
    fails("other", &lab.path("seed"), "seed of group 'demo'")?;
    fs::write(lab.path("seed/seed.json"), "{}")?;
    fails("demo", &lab.path("seed"), "seed.json")?;
    fs::remove_file(lab.leg("other", "disk0"))?;
    fails("other", &lab.path("new"), "other-disk0.raw")
}

#[test]
fn a_full_disk_under_the_seed() -> anyhow::Result<()> {
    let lab = lab(136, 0)?;
    let disk = SmallDisk::mount(&lab.path("seed"), 100 * MIB)?;
    let (config, folder) = (text(&lab.path("source.toml")), text(&lab.path("seed")));
    let said = lab.fails(5, &export_args(&config, &folder))?;
    ensure!(said.contains("hint: make room"), "{said}");
    ensure!(segments(&lab.path("seed"))?.len() == 1);
    disk.grow(200 * MIB)?;
    ensure!(number(&export(&lab, "seed")?, "segments")? == 2);
    ensure!(number(&import(&lab, "seed")?, "taken_segments")? == 3);
    Ok(())
}
