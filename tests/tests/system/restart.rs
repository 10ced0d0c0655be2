//! Restarts: in order, by crash, of either side, with and without somebody who holds the sockets.

use std::fs;

use anyhow::{Context, ensure};
use journal_nbd::{Client, Protocol, WriteFlags};
use tests::lab::{Lab, wait_for_socket};

const MIB: u64 = 1 << 20;

fn client(lab: &Lab) -> anyhow::Result<Client> {
    wait_for_socket(&lab.tap())?;
    Ok(Client::connect_unix(&lab.tap(), "demo/disk0", Protocol::Structured)?)
}

/// Writes a mebibyte of `fill` at so many mebibytes.
fn write(lab: &Lab, at_mib: u64, fill: u8) -> anyhow::Result<()> {
    let mut client = client(lab)?;
    client.write(at_mib * MIB, &vec![fill; MIB as usize], WriteFlags::default())?;
    Ok(client.disconnect()?)
}

fn point_of(cut: &serde_json::Value) -> anyhow::Result<String> {
    Ok(cut["point"].as_str().context("no point")?.to_owned())
}

#[test]
fn an_orderly_restart_reads_nothing_again() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[16 * MIB])?;
    lab.start_site()?;
    lab.start_source()?;
    write(&lab, 1, 7)?;
    lab.cut("demo", &[])?;
    lab.source.take().context("the agent runs")?.stop()?;
    lab.start_source()?;
    let log = lab.source.as_ref().context("the agent runs")?.log().join("\n");
    ensure!(log.contains("dirty_bytes=0 "), "a resync began:\n{log}");
    write(&lab, 2, 8)?;
    let cut = lab.cut("demo", &[])?;
    let bytes = lab.restored("demo", "disk0", &point_of(&cut)?)?;
    ensure!(bytes == fs::read(lab.leg("demo", "disk0"))?, "the point differs from the leg");
    Ok(())
}

#[test]
fn a_leg_that_was_changed_meanwhile_is_read_again() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[16 * MIB])?;
    lab.start_site()?;
    lab.start_source()?;
    lab.cut("demo", &[])?;
    lab.source.take().context("the agent runs")?.stop()?;
    let leg = fs::OpenOptions::new().write(true).open(lab.leg("demo", "disk0"))?;
    std::os::unix::fs::FileExt::write_all_at(&leg, &[9; 4096], 5 * MIB)?;
    lab.start_source()?;
    let cut = lab.cut("demo", &[])?;
    let bytes = lab.restored("demo", "disk0", &point_of(&cut)?)?;
    ensure!(bytes[5 * MIB as usize] == 9, "what was written behind our back is missing");
    Ok(())
}

#[test]
fn the_site_may_be_away_and_come_back() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[16 * MIB])?;
    lab.start_source()?;
    write(&lab, 1, 1)?;
    lab.start_site()?;
    let first = point_of(&lab.cut("demo", &[])?)?;
    lab.kill_site();
    write(&lab, 1, 2)?;
    lab.start_site()?;
    let second = point_of(&lab.cut("demo", &[])?)?;
    let byte = |point: &str| Ok::<u8, anyhow::Error>(lab.restored("demo", "disk0", point)?[MIB as usize]);
    ensure!((byte(&first)?, byte(&second)?) == (1, 2), "a point has the wrong content");
    Ok(())
}

#[test]
fn a_site_whose_store_is_gone_is_filled_again() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[16 * MIB])?;
    lab.start_site()?;
    lab.start_source()?;
    write(&lab, 1, 1)?;
    for _ in 0..3 {
        write(&lab, 2, 2)?;
        lab.cut("demo", &[])?;
    }
    lab.kill_site();
    fs::remove_dir_all(lab.store())?;
    lab.start_site()?;
    let cut = lab.cut("demo", &[])?;
    let bytes = lab.restored("demo", "disk0", &point_of(&cut)?)?;
    ensure!(bytes == fs::read(lab.leg("demo", "disk0"))?, "the point differs from the leg");
    Ok(())
}

/// The supervisor holds the listening socket, so that a client finds it open while there is no agent.
#[test]
fn the_socket_outlives_a_crash_of_the_agent() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[16 * MIB])?;
    lab.start_site()?;
    let supervisor = lab.daemon("supervisor", &["source", "supervise", "--config"], "source.toml")?;
    supervisor.wait_for(" ready")?;
    let before = client(&lab)?;
    let agent = supervisor.log().iter().find_map(|line| agent_id(line)).context("no agent was started")?;
    tests::lab::kill(agent)?;
    // The connection is accepted by the system at once and served when the agent is back.
    let mut after = Client::connect_unix(&lab.tap(), "demo/disk0", Protocol::Structured)?;
    after.write(0, &[3; 512], WriteFlags::default())?;
    drop(before);
    let cut = lab.cut("demo", &[])?;
    ensure!(lab.restored("demo", "disk0", &point_of(&cut)?)?[0] == 3, "the write after the crash is missing");
    Ok(())
}

pub(crate) fn agent_id(line: &str) -> Option<u32> {
    line.split("pid=").nth(1)?.split(|byte: char| !byte.is_ascii_digit()).next()?.parse().ok()
}
