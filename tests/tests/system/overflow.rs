//! The link is cut for long while the VM writes as fast as it can: memory and journal stay within their limits, the VM gets no error and
//! waits no longer than the bound, and afterwards one resync makes both sides equal.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use journal_nbd::{Client, Protocol, WriteFlags};
use tests::lab::{Daemon, GroupSpec, Lab};
use tests::scaled;

const MIB: u64 = 1 << 20;
const VOLUME_BYTES: u64 = 128 * MIB;
const WRITE_BYTES: u64 = 64 << 10;
const BUDGET_MIB: u64 = 64;

#[test]
fn a_link_that_is_cut_under_full_load_costs_one_resync_and_no_error() -> anyhow::Result<()> {
    let volumes = vec![("disk0".to_owned(), VOLUME_BYTES)];
    let extra = format!(
        "cut_interval = \"200ms\"\nmemory_budget = \"{BUDGET_MIB}MiB\"\njournal_limit = \"64MiB\"\nclear_interval = \"500ms\""
    );
    let mut lab = Lab::new(&[GroupSpec { name: "demo".to_owned(), volumes, extra }])?;
    lab.start_site()?;
    lab.start_source()?;
    lab.cut("demo", &[])?;
    lab.kill_site();
    let mut client = Client::connect_unix(&lab.tap(), "demo/disk0", Protocol::Structured)?;
    let total = scaled(512, 8192) * MIB;
    let mut noise = vec![0; (WRITE_BYTES + 4096) as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let (mut worst, begun) = (Duration::ZERO, Instant::now());
    for number in 0..total / WRITE_BYTES {
        // Another piece of the noise each time, so that nothing compresses or repeats.
        let shift = (number % 4096) as usize;
        let at = number * 7919 % (VOLUME_BYTES / WRITE_BYTES) * WRITE_BYTES;
        let write = Instant::now();
        client.write(at, &noise[shift..shift + WRITE_BYTES as usize], WriteFlags::default())?;
        worst = worst.max(write.elapsed());
    }
    let seconds = begun.elapsed().as_secs_f64();
    client.flush()?;
    client.disconnect()?;
    let status = lab.source_status("demo")?;
    let counters = &status["counters"];
    let lost = counters["lost_cuts"].as_u64().context("no lost_cuts")?;
    let dropped = counters["dropped_bytes"].as_u64().context("no dropped_bytes")?;
    ensure!(lost + dropped > 0, "nothing overflowed: {counters}");
    ensure!(
        counters["journal_bytes"].as_u64() <= Some(64 * MIB),
        "the journal is beyond its limit: {counters}"
    );
    let bound = status["marks"]["mark_wait_bound_seconds"].as_f64().context("no bound")?;
    let marked = status["marks"]["mark_wait_max_seconds"].as_f64().context("no figure")?;
    ensure!(marked <= bound, "a write waited {marked} s for its mark; the bound is {bound} s");
    lab.start_site()?;
    let cut = lab.cut("demo", &[])?;
    let point = cut["point"].as_str().context("no point")?;
    ensure!(
        lab.restored("demo", "disk0", point)? == fs::read(lab.leg("demo", "disk0"))?,
        "the point differs from the leg"
    );
    // That it is within the settings is checked when the agent ends.
    let peak = lab.source.as_ref().and_then(Daemon::peak_memory_mib).context("the agent runs")?;
    println!(
        "{} MiB at {:.0} MiB/s without a site: worst write {:.1} ms, waits for marks {:.1} ms at most; {} MiB of payload and {lost} cuts lost to granularity; peak memory {peak} MiB",
        total / MIB,
        (total / MIB) as f64 / seconds,
        worst.as_secs_f64() * 1e3,
        marked * 1e3,
        dropped / MIB
    );
    Ok(())
}

#[test]
fn a_resync_goes_on_where_it_was_when_either_side_is_killed() -> anyhow::Result<()> {
    let volumes = vec![("disk0".to_owned(), VOLUME_BYTES)];
    let extra = "cut_interval = \"50ms\"\nclear_interval = \"100ms\"\nresync_rate = \"32MiB\"".to_owned();
    let mut lab = Lab::new(&[GroupSpec { name: "demo".to_owned(), volumes, extra }])?;
    let mut bytes = vec![0; VOLUME_BYTES as usize];
    blake3::Hasher::new().update(b"resync").finalize_xof().fill(&mut bytes);
    fs::write(lab.leg("demo", "disk0"), &bytes)?;
    lab.start_site()?;
    lab.start_source()?;
    let left = |lab: &Lab| -> anyhow::Result<u64> {
        lab.source_status("demo")?["counters"]["dirty_bytes"].as_u64().context("no dirty_bytes")
    };
    lab.eventually("a part of the resync", |lab| Ok(left(lab)? < VOLUME_BYTES * 3 / 4))?;
    let detail = lab.source_status("demo")?["detail"].as_str().context("no detail")?.to_owned();
    ensure!(detail.contains("degraded: resync"), "status says '{detail}'");
    // What is confirmed is not marked any more, and not looked at again.
    lab.eventually("cleared marks", |lab| {
        Ok(lab.source_status("demo")?["marks"]["after_crash_bytes"].as_u64() < Some(VOLUME_BYTES * 3 / 4))
    })?;
    lab.kill_source();
    lab.start_source()?;
    ensure!(left(&lab)? < VOLUME_BYTES * 3 / 4, "the resync began anew");
    lab.kill_site();
    lab.start_site()?;
    let cut = lab.cut("demo", &[])?;
    let point = cut["point"].as_str().context("no point")?;
    ensure!(lab.restored("demo", "disk0", point)? == bytes, "the point differs from the leg");
    // Compared again because somebody asks: nothing travels.
    let before = lab.site_status("demo")?["received_bytes"].as_u64().context("no figure")?;
    let control = lab.path("source.sock").display().to_string();
    let answer = lab.json(&["resync", "demo", "--wait", "--json", "--control", &control])?;
    ensure!(answer["point"].is_string(), "no point behind the resync: {answer}");
    let sent = lab.site_status("demo")?["received_bytes"].as_u64().context("no figure")? - before;
    ensure!(sent < 64 << 10, "{sent} bytes travelled although both sides were equal");
    Ok(())
}
