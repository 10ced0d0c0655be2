//! Measuring the path to a recovery site beside its groups.

use anyhow::{Context, ensure};
use tests::lab::Lab;

const MIB: u64 = 1 << 20;

#[test]
fn a_path_is_measured_while_the_agent_ships_over_it() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[4 * MIB])?;
    let settings = lab.path("source.toml").display().to_string();
    let measure = ["link-test", "far", "--config", &settings, "--bytes", "8MiB", "--json"];
    // Nobody is there yet.
    let said = lab.fails(4, &measure)?;
    ensure!(said.contains("UDP"), "it does not say what may be between: {said}");
    lab.start_site()?;
    lab.start_source()?;
    let before = lab.cut("demo", &[])?;
    let measured = lab.json(&measure)?;
    ensure!(measured["arrived_bytes"] == 8 * MIB, "not everything arrived: {measured}");
    ensure!(measured["rate_up_bytes"].as_u64().is_some_and(|rate| rate > 0), "no rate: {measured}");
    ensure!(measured["survives_new_port"] == true, "another port is not taken: {measured}");
    ensure!(measured["recommended"]["journal_limit"].is_u64(), "nothing is recommended: {measured}");
    // The agent's connection is the one that it was, and the site has nothing more.
    let after = lab.cut("demo", &[])?;
    ensure!(before["confirmed"] == true && after["confirmed"] == true, "not confirmed");
    let log = lab.source.as_ref().context("the agent runs")?.log().join("\n");
    ensure!(!log.contains("no link to the site"), "the agent was disconnected:\n{log}");
    let received = lab.site_status("demo")?["received_bytes"].as_u64().context("no count")?;
    ensure!(received < 8 * MIB, "{received} bytes were taken in");
    Ok(())
}
