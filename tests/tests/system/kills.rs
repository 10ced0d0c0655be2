//! The kill matrix: SIGKILL of the agent at each of its labelled steps and at random moments, under load. Afterwards every point equals
//! the model, the last one equals the leg, and what travelled is in proportion to what was written.

use std::fs;
use std::io::{Seek, SeekFrom, Write};

use anyhow::{Context, ensure};
use journal::faults::STEPS;
use tests::lab::{GroupSpec, Lab};
use tests::scaled;
use tests::stamps::{CutWindow, History};
use tests::workload::{Random, Shape, Workload};

/// Part of the volume that is written to.
const BUSY_BYTES: u64 = 8 << 20;
/// The rest holds bytes that do not compress: a full copy would be seen on the wire.
const VOLUME_BYTES: u64 = 64 << 20;
/// What a crash may cost on the wire besides twice what was written: definitions, empty segments, index.
const BYTES_PER_KILL: u64 = 256 << 10;
/// Steps that a run under load does not pass: the site's timeline changes only when its store is lost.
const RARE: [&str; 1] = ["rebase.dropped"];

struct Matrix {
    lab: Lab,
    workload: Workload,
    received_before: u64,
}

impl Matrix {
    fn start(seed: u64) -> anyhow::Result<Matrix> {
        let volumes = vec![("disk0".to_owned(), VOLUME_BYTES)];
        // All points are looked at in the full run, which is long.
        let cut_ms = scaled(50, 250);
        let extra = format!("cut_interval = \"{cut_ms}ms\"\nclear_interval = \"100ms\"");
        let mut lab = Lab::new(&[GroupSpec { name: "demo".to_owned(), volumes, extra }])?;
        fill(&lab, seed)?;
        lab.start_site()?;
        lab.start_source()?;
        lab.cut("demo", &[])?;
        let received_before = received(&lab)?;
        let shape = Shape { blocks: BUSY_BYTES / 4096, blocks_per_write: 4, depth: 8, writes_per_flush: 50 };
        let workload = Workload::start(&lab.tap(), &["demo/disk0"], shape, seed);
        Ok(Matrix { lab, workload, received_before })
    }

    /// Checks everything that was promised; answers writes, points, and bytes written and received.
    fn verify(self, kills: u64) -> anyhow::Result<(usize, usize, u64, u64)> {
        let Matrix { lab, workload, received_before } = self;
        let history = workload.end();
        let last = lab.cut("demo", &[])?;
        let last = last["point"].as_str().context("no id")?;
        let leg = fs::read(lab.leg("demo", "disk0"))?;
        ensure!(lab.restored("demo", "disk0", last)? == leg, "the last point differs from the leg");
        let points = lab.points_to_check("demo")?;
        for point in &points {
            check(&lab, &history, point)?;
        }
        let written: u64 = history.writes.iter().map(|write| write.blocks * 4096).sum();
        let received = received(&lab)? - received_before;
        let bound = 2 * written + kills * BYTES_PER_KILL;
        ensure!(received <= bound, "{received} bytes travelled for {written} written and {kills} kills");
        Ok((history.writes.len(), points.len(), written, received))
    }
}

fn check(lab: &Lab, history: &History, id: &str) -> anyhow::Result<()> {
    let mut image = lab.restored("demo", "disk0", id)?;
    image.truncate(BUSY_BYTES as usize);
    let verdict = history.check(&[image], CutWindow::default());
    ensure!(verdict.is_ok(), "point {id}: {}", verdict.unwrap_err());
    Ok(())
}

fn fill(lab: &Lab, seed: u64) -> anyhow::Result<()> {
    let mut leg = fs::File::options().write(true).open(lab.leg("demo", "disk0"))?;
    leg.seek(SeekFrom::Start(BUSY_BYTES))?;
    let mut bytes = vec![0; (VOLUME_BYTES - BUSY_BYTES) as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    leg.write_all(&bytes)?;
    Ok(())
}

fn received(lab: &Lab) -> anyhow::Result<u64> {
    lab.site_status("demo")?["received_bytes"].as_u64().context("no received_bytes")
}

#[test]
fn every_point_is_right_after_kills_at_every_labelled_step() -> anyhow::Result<()> {
    let mut matrix = Matrix::start(1)?;
    let mut random = Random::new(1);
    let mut kills = 0;
    for _ in 0..scaled(1, 3) {
        for step in STEPS.into_iter().filter(|step| !RARE.contains(step)) {
            matrix.lab.kill_source();
            let times = if step.starts_with("open") { 1 } else { 1 + random.below(3) };
            matrix.lab.run_source_until(step, times)?;
            kills += 2;
            println!("killed at {step}:{times}");
        }
        matrix.lab.start_source()?;
        matrix.lab.cut("demo", &[])?;
    }
    let (writes, points, written, received) = matrix.verify(kills)?;
    println!(
        "{kills} kills, {writes} writes, {points} points checked, {written} bytes written, {received} received"
    );
    Ok(())
}

#[test]
fn every_point_is_right_after_kills_at_random_moments() -> anyhow::Result<()> {
    let mut matrix = Matrix::start(2)?;
    let mut random = Random::new(2);
    let kills = scaled(40, 220);
    for kill in 0..kills {
        let writes = random.below(400) as usize;
        matrix.workload.wait_for(matrix.workload.issued() + writes);
        matrix.lab.kill_source();
        matrix.lab.start_source()?;
        // Kills that follow each other hit the resync of the one before; others hit an agent that makes points.
        if kill % 3 == 2 {
            matrix.lab.cut("demo", &[])?;
        }
    }
    let (writes, points, written, received) = matrix.verify(kills)?;
    println!(
        "{kills} kills, {writes} writes, {points} points checked, {written} bytes written, {received} received"
    );
    Ok(())
}
