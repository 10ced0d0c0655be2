//! Random histories with crashes of the agent: every listed point is what the model says.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, ensure};
use tests::lab::Lab;
use tests::scaled;
use tests::stamps::CutWindow;
use tests::workload::{Random, Shape, Workload};

const VOLUME_BYTES: u64 = 4 << 20;

/// What is known of a point besides its stamps.
struct Expected {
    window: CutWindow,
    /// The legs at the cut, if nothing was in flight then.
    images: Option<Vec<Vec<u8>>>,
}

#[test]
fn every_point_equals_the_model_after_kills_of_the_agent() -> anyhow::Result<()> {
    for seed in 0..scaled(2, 20) {
        println!("seed {seed}");
        one_history(seed, scaled(12, 60))?;
    }
    Ok(())
}

fn one_history(seed: u64, steps: u64) -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[VOLUME_BYTES, VOLUME_BYTES])?;
    lab.start_site()?;
    lab.start_source()?;
    let mut random = Random::new(seed);
    let shape = Shape { blocks: VOLUME_BYTES / 4096, blocks_per_write: 6, depth: 16, writes_per_flush: 40 };
    let workload = Workload::start(&lab.tap(), &["demo/disk0", "demo/disk1"], shape, seed);
    let (mut expected, mut kills) = (HashMap::new(), 0);
    for _ in 0..steps {
        workload.wait_for(workload.issued() + 200 + random.below(800) as usize);
        match random.below(3) {
            0 => {
                lab.kill_source();
                lab.start_source()?;
                kills += 1;
            }
            1 => {
                let (id, window) = cut(&lab, &workload)?;
                expected.insert(id, Expected { window, images: None });
            }
            _ => {
                workload.pause();
                let (id, window) = cut(&lab, &workload)?;
                let images = legs(&lab)?;
                expected.insert(id, Expected { window, images: Some(images) });
                workload.resume();
            }
        }
    }
    let history = workload.end();
    let (last, _) = {
        let cut = lab.cut("demo", &[])?;
        (cut["point"].as_str().context("no id")?.to_owned(), ())
    };
    let window = CutWindow { asked: u64::MAX, answered: None };
    expected.insert(last, Expected { window, images: Some(legs(&lab)?) });
    let points = lab.points("demo")?;
    for point in &points {
        let id = point["id"].as_str().context("no id")?;
        let images = vec![lab.restored("demo", "disk0", id)?, lab.restored("demo", "disk1", id)?];
        let known = expected.remove(id);
        let window = known.as_ref().map_or(CutWindow::default(), |known| known.window);
        let verdict = history.check(&images, window);
        ensure!(verdict.is_ok(), "seed {seed}, point {id}: {}", verdict.unwrap_err());
        let model = known.and_then(|known| known.images);
        ensure!(model.is_none_or(|model| model == images), "seed {seed}: point {id} differs from the model");
    }
    ensure!(expected.is_empty(), "seed {seed}: confirmed points are not listed: {:?}", expected.keys());
    println!("seed {seed}: {} writes, {kills} kills, {} points", history.writes.len(), points.len());
    Ok(())
}

fn cut(lab: &Lab, workload: &Workload) -> anyhow::Result<(String, CutWindow)> {
    let asked = workload.now();
    let cut = lab.cut("demo", &[])?;
    ensure!(cut["is_point"] == true && cut["confirmed"] == true, "the cut is no confirmed point: {cut}");
    let window = CutWindow { asked, answered: Some(workload.now()) };
    Ok((cut["point"].as_str().context("no id")?.to_owned(), window))
}

fn legs(lab: &Lab) -> anyhow::Result<Vec<Vec<u8>>> {
    let leg = |name: &str| Ok(fs::read(lab.leg("demo", name))?);
    ["disk0", "disk1"].into_iter().map(leg).collect()
}
