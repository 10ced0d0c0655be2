//! The main job on a real VM, in short: the demonstration with fewer seconds.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;
use tests::lab::binary;

#[test]
fn a_guest_boots_at_the_third_site_with_all_its_records() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's folder")?;
    let guest = root.join("target/guest");
    ensure!(
        guest.join("disk.raw").is_file(),
        "the guest's image is missing; run examples/guest/build target/guest"
    );
    let work = tempfile::Builder::new().prefix("demo-").tempdir()?;
    let mut command = Command::new(binary("main-job")?);
    command.arg("--thirdsite").arg(binary("thirdsite")?).arg("--guest").arg(&guest);
    command.arg("--dir").arg(work.path().join("job")).args(["--seconds", "6", "--agent-crash"]);
    let printed = super::tools::run(&mut command)?;
    println!("{printed}");
    let last: Value = serde_json::from_str(printed.lines().last().context("nothing was printed")?)?;
    ensure!(last["seconds_lost"].as_f64().context("no seconds_lost")? <= 2.0, "too much was lost: {last}");
    ensure!(last["records_after_boot"].as_u64() > Some(0), "no records after the boot: {last}");
    Ok(())
}
