//! The tools that people have: they work against the tap.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};
use tests::lab::Lab;

const VOLUME_BYTES: u64 = 64 << 20;

/// Runs a tool, which has to be there and to succeed; answers its output.
pub(super) fn run(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("'{name}' is missing; .ci/setup installs it"))?;
    let printed = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed with {}:\n{printed}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn nbdinfo_nbdcopy_qemu_and_fio_work_against_the_tap() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[VOLUME_BYTES])?;
    lab.start_site()?;
    lab.start_source()?;
    let uri = format!("nbd+unix:///demo/disk0?socket={}", lab.tap().display());
    let info = run(Command::new("nbdinfo").arg(&uri))?;
    for line in [
        "export-size: 67108864",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "base:allocation",
    ] {
        ensure!(info.contains(line), "nbdinfo does not say '{line}':\n{info}");
    }
    let pattern = lab.path("pattern.raw");
    fs::write(&pattern, (0..VOLUME_BYTES).map(|at| (at / 4096 % 251) as u8).collect::<Vec<u8>>())?;
    run(Command::new("nbdcopy").arg(&pattern).arg(&uri))?;
    run(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&pattern).arg(&uri))?;
    let commands = [
        "write -P 17 1M 64k",
        "write -z 2M 1M",
        "discard 4M 1M",
        "flush",
        "read -P 17 1M 64k",
        "read -P 0 2M 1M",
        "read -P 0 4M 1M",
    ];
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    run(Command::new("qemu-io").args(["-f", "raw"]).args(commands).arg(&uri))?;
    run(Command::new("fio")
        .args(["--name=verify", "--ioengine=nbd", "--rw=randrw", "--bs=4k-64k", "--iodepth=16", "--size=32m"])
        .args(["--offset=16m", "--verify=crc32c", "--verify_fatal=1", "--randseed=3"])
        .arg(format!("--uri={uri}"))
        .current_dir(lab.folder()))?;
    let cut = lab.cut("demo", &[])?;
    let point = cut["point"].as_str().context("no point")?;
    let leg = fs::read(lab.leg("demo", "disk0"))?;
    ensure!(lab.restored("demo", "disk0", point)? == leg, "the point differs from the leg");
    Ok(())
}
