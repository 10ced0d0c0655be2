//! Several targets: all get the same, none holds up the others, and what one has is never given up for another.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::Value;
use tests::lab::{GroupSpec, Lab};

const MIB: u64 = 1 << 20;
const VOLUME_BYTES: u64 = 32 * MIB;

fn lab() -> anyhow::Result<Lab> {
    let volumes = vec![("disk0".to_owned(), VOLUME_BYTES)];
    let extra = "cut_interval = \"100ms\"\nmemory_budget = \"64MiB\"\njournal_limit = \"64MiB\"".to_owned();
    let lab = Lab::new(&[GroupSpec { name: "demo".to_owned(), volumes, extra }])?;
    lab.add_site("second")?;
    Ok(lab)
}

fn target(lab: &Lab, number: usize) -> anyhow::Result<Value> {
    Ok(lab.source_status("demo")?["targets"][number].clone())
}

fn check(lab: &Lab, store: &str, cut: &Value) -> anyhow::Result<()> {
    let point = cut["point"].as_str().context("no point")?;
    let bytes = lab.restored_from(store, "demo", "disk0", point)?;
    ensure!(bytes == fs::read(lab.leg("demo", "disk0"))?, "the point in {store} differs from the leg");
    Ok(())
}

#[test]
fn two_sites_get_the_same_and_one_that_was_away_catches_up() -> anyhow::Result<()> {
    let mut lab = lab()?;
    lab.start_site()?;
    let second = lab.start_site_of("second-site.toml")?;
    lab.start_source()?;
    lab.write_noise(1, 8)?;
    let cut = lab.cut("demo", &[])?;
    (0..2).try_for_each(|number| lab.wait_until_confirmed("demo", number, &cut))?;
    check(&lab, "store", &cut)?;
    check(&lab, "second-store", &cut)?;
    drop(second);
    lab.write_noise(2, 4)?;
    let cut = lab.cut("demo", &[])?;
    check(&lab, "store", &cut)?;
    // The other way round.
    lab.kill_site();
    let _second = lab.start_site_of("second-site.toml")?;
    lab.wait_until_confirmed("demo", 1, &cut)?;
    check(&lab, "second-store", &cut)?;
    lab.write_noise(3, 4)?;
    let cut = lab.cut("demo", &[])?;
    lab.start_site()?;
    lab.wait_until_confirmed("demo", 0, &cut)?;
    check(&lab, "store", &cut)?;
    let names = |store: &str| -> anyhow::Result<Vec<_>> {
        let folder = lab.path(store).join("groups/demo/segments");
        let mut names: Vec<_> =
            fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<anyhow::Result<_>>()?;
        names.sort();
        Ok(names)
    };
    ensure!(names("store")? == names("second-store")?, "the chains differ");
    let status = lab.source_status("demo")?;
    lab.eventually("an empty journal", |lab| {
        Ok(lab.source_status("demo")?["counters"]["backlog_segments"] == 0)
    })?;
    ensure!(status["counters"]["lost_cuts"] == 0, "granularity was lost: {status}");
    Ok(())
}

#[test]
fn a_target_that_is_away_for_too_long_is_left_behind_and_the_other_goes_on() -> anyhow::Result<()> {
    let mut lab = lab()?;
    lab.start_site()?;
    let second = lab.start_site_of("second-site.toml")?;
    lab.start_source()?;
    let cut = lab.cut("demo", &[])?;
    lab.wait_until_confirmed("demo", 1, &cut)?;
    drop(second);
    for round in 0..12 {
        lab.write_noise(10 + round, 12)?;
        let cut = lab.cut("demo", &[])?;
        ensure!(cut["confirmed"] == true, "not confirmed: {cut}");
    }
    let cut = lab.cut("demo", &[])?;
    check(&lab, "store", &cut)?;
    let status = lab.source_status("demo")?;
    ensure!(status["counters"]["lost_cuts"] == 0 && status["resync"].is_null(), "held up: {status}");
    let reason = status["targets"][1]["lost_place"].as_str().context("it did not lose its place")?;
    ensure!(reason.contains("nearly full"), "{reason}");
    let _second = lab.start_site_of("second-site.toml")?;
    lab.eventually("the refusal", |lab| {
        Ok(target(lab, 1)?["reason"].as_str().is_some_and(|reason| reason.contains("lost its place")))
    })?;
    // Its points are as they were.
    let listed = lab.json(&[
        "point",
        "list",
        "demo",
        "--json",
        "--store",
        &lab.path("second-store").display().to_string(),
    ])?;
    ensure!(listed["points"].as_array().is_some_and(|points| !points.is_empty()), "no points: {listed}");
    lab.write_noise(99, 4)?;
    let cut = lab.cut("demo", &[])?;
    check(&lab, "store", &cut)
}

#[test]
fn a_lost_journal_goes_on_behind_the_target_that_has_most() -> anyhow::Result<()> {
    let mut lab = lab()?;
    lab.start_site()?;
    let second = lab.start_site_of("second-site.toml")?;
    lab.start_source()?;
    let cut = lab.cut("demo", &[])?;
    lab.wait_until_confirmed("demo", 1, &cut)?;
    lab.kill_site();
    lab.write_noise(1, 4)?;
    let newest = lab.cut("demo", &[])?;
    lab.wait_until_confirmed("demo", 1, &newest)?;
    lab.kill_source();
    fs::remove_dir_all(lab.path("journal"))?;
    drop(second);
    // The one that has less comes first, and is not taken.
    lab.start_site()?;
    lab.start_source()?;
    lab.eventually("the question to the first", |lab| Ok(target(lab, 0)?["reason"].is_string()))?;
    let _second = lab.start_site_of("second-site.toml")?;
    let cut = lab.cut("demo", &[])?;
    lab.wait_until_confirmed("demo", 1, &cut)?;
    check(&lab, "second-store", &cut)?;
    // What it had is still there.
    let before = newest["point"].as_str().context("no point")?;
    lab.restored_from("second-store", "demo", "disk0", before)?;
    lab.eventually("the loss of the other one's place", |lab| Ok(target(lab, 0)?["lost_place"].is_string()))
}
