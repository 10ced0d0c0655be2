//! Bad input of every kind: a clear error with a hint, and nothing lost.

use std::fs;

use anyhow::{Context, ensure};
use tests::lab::{Daemon, Lab};

const MIB: u64 = 1 << 20;

fn protected() -> anyhow::Result<Lab> {
    let mut lab = Lab::demo(&[4 * MIB])?;
    lab.start_site()?;
    lab.start_source()?;
    lab.cut("demo", &[])?;
    Ok(lab)
}

/// A daemon that has to end by itself with this exit code, saying `text` and giving a hint.
fn ends(mut daemon: Daemon, code: i32, text: &str) -> anyhow::Result<()> {
    let actual = daemon.wait_for_end()?;
    let log = daemon.log().join("\n");
    ensure!(actual == code, "it ended with {actual} instead of {code}:\n{log}");
    ensure!(log.contains(text) && log.contains("hint: "), "it does not say '{text}' with a hint:\n{log}");
    Ok(())
}

fn source(lab: &Lab) -> anyhow::Result<Daemon> {
    lab.daemon("source", &["source", "run", "--config"], "source.toml")
}

fn edit(lab: &Lab, file: &str, from: &str, to: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(lab.path(file))?;
    ensure!(text.contains(from), "{file} has no '{from}'");
    Ok(fs::write(lab.path(file), text.replace(from, to))?)
}

#[test]
fn a_missing_leg() -> anyhow::Result<()> {
    let lab = Lab::demo(&[4 * MIB])?;
    fs::remove_file(lab.leg("demo", "disk0"))?;
    ends(source(&lab)?, 2, "demo-disk0.raw")
}

#[test]
fn a_leg_of_another_size() -> anyhow::Result<()> {
    let mut lab = protected()?;
    lab.source.take().context("the agent runs")?.stop()?;
    for size in [2 * MIB, 8 * MIB] {
        fs::OpenOptions::new().write(true).open(lab.leg("demo", "disk0"))?.set_len(size)?;
        ends(source(&lab)?, 2, "disk0")?;
    }
    let accepted =
        lab.daemon("source", &["source", "run", "--accept-resize", "demo/disk0", "--config"], "source.toml")?;
    accepted.wait_for(" ready")?;
    let cut = lab.cut("demo", &[])?;
    let bytes = lab.restored("demo", "disk0", cut["point"].as_str().context("no point")?)?;
    ensure!(bytes.len() as u64 == 8 * MIB, "the point has the old size");
    Ok(())
}

#[test]
fn two_agents_on_one_journal() -> anyhow::Result<()> {
    let lab = protected()?;
    ends(source(&lab)?, 2, "journal")
}

#[test]
fn two_sites_on_one_store() -> anyhow::Result<()> {
    let lab = protected()?;
    ends(lab.daemon("site", &["site", "run", "--config"], "site.toml")?, 2, "lock")
}

#[test]
fn a_port_in_use() -> anyhow::Result<()> {
    let lab = protected()?;
    edit(&lab, "site.toml", "store = \"store\"", "store = \"other\"")?;
    edit(&lab, "site.toml", "site.sock", "other.sock")?;
    ends(lab.daemon("site", &["site", "run", "--config"], "site.toml")?, 2, "in use")?;
    edit(&lab, "source.toml", "journal = \"journal\"", "journal = \"other-journal\"")?;
    ends(source(&lab)?, 2, "in use")
}

#[test]
fn a_foreign_source() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[4 * MIB])?;
    lab.start_site()?;
    fs::remove_dir_all(lab.path("source-id"))?;
    let folder = lab.path("source-id").display().to_string();
    lab.run(&["identity", "new", "--dir", &folder, "--name", "stranger"])?;
    lab.start_source()?;
    lab.eventually("the refusal", |lab| {
        Ok(lab.source_status("demo")?["detail"].to_string().contains("enrol"))
    })?;
    ensure!(lab.site_status("demo").is_err(), "the site took the stranger's group");
    Ok(())
}

#[test]
fn a_foreign_site() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[4 * MIB])?;
    fs::remove_dir_all(lab.path("site-id"))?;
    let folder = lab.path("site-id").display().to_string();
    lab.run(&["identity", "new", "--dir", &folder, "--name", "impostor"])?;
    lab.start_site()?;
    lab.start_source()?;
    lab.eventually("the refusal", |lab| {
        Ok(lab.source_status("demo")?["detail"].to_string().contains("fingerprint"))
    })
}

#[test]
fn a_point_a_group_and_a_store_that_do_not_exist() -> anyhow::Result<()> {
    let lab = protected()?;
    let store = lab.store().display().to_string();
    let output = lab.path("out.raw").display().to_string();
    let restore = |group: &str, volume: &str, point: &str, store: &str| {
        lab.fails(
            2,
            &["restore", group, "--volume", volume, "--point", point, "--store", store, "--output", &output],
        )
    };
    ensure!(restore("demo", "disk0", "9-9", &store)?.contains("9-9"));
    ensure!(restore("other", "disk0", "1-1", &store)?.contains("demo"), "the groups there are are not named");
    let latest = lab.points("demo")?.last().context("no point")?["id"].as_str().context("no id")?.to_owned();
    ensure!(
        restore("demo", "disk7", &latest, &store)?.contains("disk0"),
        "the volumes there are are not named"
    );
    ensure!(restore("demo", "disk0", &latest, "/nonexistent")?.contains("/nonexistent"));
    ensure!(restore("demo", "disk0", "soon", &store)?.contains("point id"));
    Ok(())
}

#[test]
fn a_damaged_segment_in_the_store() -> anyhow::Result<()> {
    let mut lab = protected()?;
    lab.kill_site();
    let folder = lab.store().join("groups/demo/segments");
    let store = lab.store().display().to_string();
    lab.run(&["verify", "--store", &store])?;
    let segment = fs::read_dir(folder)?.next().context("no segment")??.path();
    let mut bytes = fs::read(&segment)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes)?;
    let said = lab.fails(3, &["verify", "--store", &store])?;
    ensure!(said.contains("hint: "), "no hint: {said}");
    Ok(())
}

#[test]
fn a_full_disk_under_the_journal() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[24 * MIB])?;
    let mounted = tests::lab::SmallDisk::mount(&lab.path("journal"), 6 * MIB)?;
    lab.start_site()?;
    lab.start_source()?;
    lab.cut("demo", &[])?;
    lab.kill_site();
    let noise = |seed: u64| -> Vec<u8> {
        let mut random = tests::workload::Random::new(seed);
        (0..8 * MIB).map(|_| random.below(256) as u8).collect()
    };
    let mut client =
        journal_nbd::Client::connect_unix(&lab.tap(), "demo/disk0", journal_nbd::Protocol::Structured)?;
    for (place, seed) in [(0, 1), (8, 2)] {
        client.write(place * MIB, &noise(seed), journal_nbd::WriteFlags::default())?;
        client.flush()?;
    }
    lab.eventually("the loss", |lab| {
        Ok(lab.source_status("demo")?["counters"]["lost_cuts"].as_u64() > Some(0))
    })?;
    client.disconnect()?;
    mounted.grow(64 * MIB)?;
    lab.start_site()?;
    let cut = lab.cut("demo", &[])?;
    let bytes = lab.restored("demo", "disk0", cut["point"].as_str().context("no point")?)?;
    ensure!(bytes == fs::read(lab.leg("demo", "disk0"))?, "the point differs from the leg");
    Ok(())
}

#[test]
fn a_full_disk_under_the_store() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[24 * MIB])?;
    let mounted = tests::lab::SmallDisk::mount(&lab.store(), 4 * MIB)?;
    lab.start_site()?;
    lab.start_source()?;
    let first = lab.cut("demo", &[])?;
    let mut random = tests::workload::Random::new(5);
    let noise: Vec<u8> = (0..8 * MIB).map(|_| random.below(256) as u8).collect();
    let mut client =
        journal_nbd::Client::connect_unix(&lab.tap(), "demo/disk0", journal_nbd::Protocol::Structured)?;
    client.write(0, &noise, journal_nbd::WriteFlags::default())?;
    client.disconnect()?;
    lab.eventually("the refusal", |lab| Ok(lab.source_status("demo")?["state"] == "refused"))?;
    let old = lab.restored("demo", "disk0", first["point"].as_str().context("no point")?)?;
    ensure!(old.iter().all(|&byte| byte == 0), "the old point was harmed");
    mounted.grow(64 * MIB)?;
    let cut = lab.cut("demo", &[])?;
    let bytes = lab.restored("demo", "disk0", cut["point"].as_str().context("no point")?)?;
    ensure!(bytes == fs::read(lab.leg("demo", "disk0"))?, "the point differs from the leg");
    Ok(())
}

#[test]
fn settings_that_are_wrong() -> anyhow::Result<()> {
    let lab = Lab::demo(&[4 * MIB])?;
    edit(&lab, "source.toml", "version = 1", "version = 1\ncolour = \"red\"")?;
    ends(source(&lab)?, 2, "colour")?;
    edit(&lab, "site.toml", "version = 1", "version = 7")?;
    ends(lab.daemon("site", &["site", "run", "--config"], "site.toml")?, 2, "version 7")
}

#[test]
fn a_key_that_others_can_read() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::demo(&[4 * MIB])?;
    let key = lab.path("source-id/key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;
    ends(source(&lab)?, 2, "key.pem")
}

#[test]
fn no_daemon_to_ask() -> anyhow::Result<()> {
    let lab = Lab::demo(&[4 * MIB])?;
    let control = lab.path("source.sock").display().to_string();
    for args in [&["status", "--control", &control][..], &["cut", "demo", "--control", &control]] {
        ensure!(lab.fails(4, args)?.contains("hint: "), "no hint");
    }
    Ok(())
}

#[test]
fn no_qemu_to_boot_with() -> anyhow::Result<()> {
    let vm = "[[group.vm]]\nname = \"vm\"\nmachine = \"pc-q35-10.0\"\naccel = \"tcg\"\ncpu = \"qemu64\"\nmemory = \"64MiB\"\n\
              firmware = { kind = \"bios\" }\n[[group.vm.disk]]\nid = \"disk0\"\nvolume = \"disk0\"\n";
    let mut lab = Lab::demo(&[4 * MIB])?;
    let text = fs::read_to_string(lab.path("source.toml"))?;
    fs::write(lab.path("source.toml"), text + vm)?;
    lab.start_site()?;
    lab.start_source()?;
    lab.cut("demo", &[])?;
    let store = lab.store().display().to_string();
    let output = lab.output_with_path("/nonexistent", &["boot", "demo", "--latest", "--store", &store])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(4), "exit code {:?}: {said}", output.status.code());
    ensure!(said.contains("qemu") && said.contains("hint: "), "no hint: {said}");
    Ok(())
}
