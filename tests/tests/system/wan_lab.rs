//! `thirdsite wan-lab`: the transport over an emulated link, as an operator runs it.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::Value;
use tests::lab::Lab;

const BYTES: u64 = 6_000_000;

/// Ships a few segments over a link with an engine; answers the report and the picture.
fn ship(lab: &Lab, profile: &str, engine: &str) -> anyhow::Result<(Value, String)> {
    let picture = lab.path("run.svg").display().to_string();
    let output = lab.output(&[
        "wan-lab",
        "run",
        profile,
        "--engine",
        engine,
        "--bytes",
        "6MB",
        "--segment",
        "1MB",
        "--duration",
        "2min",
        "--svg",
        &picture,
        "--json",
    ])?;
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("no report: {said}"))?;
    // On a busy machine the emulator may be late, which it has to say; what arrived is the same then.
    let void = report["void"].as_str();
    ensure!(output.status.code() == Some(i32::from(void.is_some())), "{} {said}", output.status);
    ensure!(void.is_none_or(|reason| said.contains(reason)), "the reason is not told: {said}");
    Ok((report, fs::read_to_string(picture)?))
}

#[test]
fn segments_cross_a_link_in_namespaces_and_through_a_relay() -> anyhow::Result<()> {
    let lab = Lab::demo(&[1 << 20])?;
    let profile = lab.path("link.toml");
    fs::write(
        &profile,
        "version = 1\nname = \"short\"\n[both]\nrate = \"50mbit\"\ndelay = \"10ms\"\n[up]\nloss = \"0.1%\"\n",
    )?;
    for engine in ["namespaces", "relay"] {
        let (report, picture) = ship(&lab, &profile.display().to_string(), engine)?;
        ensure!(report["confirmed_bytes"] == BYTES, "{engine}: {report}");
        // 6 MB take 0.96 s at the link's rate.
        ensure!(report["seconds"].as_f64().is_some_and(|seconds| seconds > 0.96), "{engine}: {report}");
        ensure!(
            report["up"]["offered_bytes"].as_u64().is_some_and(|bytes| bytes > BYTES),
            "{engine}: {report}"
        );
        ensure!(picture.contains("Link 'short', engine"), "{engine}: {picture}");
    }
    Ok(())
}

#[test]
fn a_profile_is_printed_as_a_file_to_begin_with_and_mistakes_in_it_are_named() -> anyhow::Result<()> {
    let lab = Lab::demo(&[1 << 20])?;
    let text = lab.run(&["wan-lab", "profiles", "lte"])?;
    let profile = lab.path("own.toml");
    fs::write(&profile, text.replace("hold", "hidden"))?;
    let path = profile.display().to_string();
    for (profile, parts) in [
        ("lunar", ["'lunar'", "transoceanic", "hint: "]),
        (path.as_str(), ["own.toml", "`up`, `down`, `hold`", "hint: "]),
        ("/nowhere/link.toml", ["/nowhere/link.toml", "cannot be read", "hint: "]),
    ] {
        let said = lab.fails(2, &["wan-lab", "run", profile])?;
        ensure!(parts.iter().all(|part| said.contains(part)), "{profile}: {said}");
    }
    Ok(())
}
