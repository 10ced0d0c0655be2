//! The road through object storage: a real S3 server, which is killed; a distributed one of which a node is killed; a restore with nothing but the bucket and its key.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, ensure};
use serde_json::Value;
use tests::lab::{GroupSpec, Lab};
use tests::object_server::{ObjectCluster, ObjectServer};
use transport_bucket::{BucketSettings, CredentialsSource};

const MIB: u64 = 1 << 20;
const VOLUME_BYTES: u64 = 32 * MIB;

/// The keys of a bucket's table.
fn keys_of(settings: &BucketSettings) -> anyhow::Result<String> {
    let Some(CredentialsSource::File(keys)) = &settings.credentials else {
        anyhow::bail!("the server's settings have no file of keys")
    };
    let endpoint = settings.endpoint.as_ref().context("no endpoint")?;
    Ok(format!(
        "url = \"{}\"\nendpoint = \"{endpoint}\"\ncredentials = {{ file = \"{}\" }}\n\
         validate_interval = \"1s\"\nheartbeat_interval = \"1s\"\n",
        settings.url,
        keys.display()
    ))
}

fn lab() -> anyhow::Result<Lab> {
    let volumes = vec![("disk0".to_owned(), VOLUME_BYTES)];
    let extra = "cut_interval = \"200ms\"\nmemory_budget = \"64MiB\"\njournal_limit = \"64MiB\"".to_owned();
    Lab::new(&[GroupSpec { name: "demo".to_owned(), volumes, extra }])
}

/// The arguments that name the bucket to a command, and a cache that nobody has used.
struct Reader {
    url: String,
    config: String,
    cache: String,
}

impl Reader {
    fn new(lab: &Lab, settings: &BucketSettings, name: &str) -> anyhow::Result<Reader> {
        let config = lab.path(&format!("{name}.toml"));
        fs::write(&config, keys_of(settings)?)?;
        Ok(Reader {
            url: settings.url.clone(),
            config: config.display().to_string(),
            cache: lab.path(&format!("{name}-cache")).display().to_string(),
        })
    }

    fn args<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        let bucket = ["--store", &self.url, "--bucket-config", &self.config, "--cache", &self.cache];
        [command, &bucket].concat()
    }

    fn check(&self, lab: &Lab, point: &Value) -> anyhow::Result<()> {
        let point = point.as_str().context("no point")?;
        let output = lab.path("from-bucket.raw");
        let target = output.display().to_string();
        lab.run(&self.args(&[
            "restore",
            "demo",
            "--volume",
            "disk0",
            "--point",
            point,
            "--overwrite",
            "--output",
            &target,
        ]))?;
        ensure!(fs::read(&output)? == fs::read(lab.leg("demo", "disk0"))?, "the point differs from the leg");
        Ok(())
    }
}

#[test]
fn points_survive_their_site_in_a_bucket_whose_server_is_killed() -> anyhow::Result<()> {
    let mut server = ObjectServer::start()?;
    let settings = server.settings("dr/site-a");
    let mut lab = lab()?;
    lab.set_targets(&format!("[[target]]\nname = \"vault\"\n[target.bucket]\n{}", keys_of(&settings)?))?;
    lab.start_source()?;
    lab.write_noise(1, 12)?;
    let first = lab.cut("demo", &[])?;
    // The server goes while the VM writes on, and comes back.
    server.kill()?;
    lab.write_noise(2, 6)?;
    server.start_again()?;
    lab.write_noise(3, 6)?;
    lab.cut("demo", &[])?;
    // The agent goes while segments are under way, and comes back.
    lab.write_noise(4, 8)?;
    lab.kill_source();
    lab.start_source()?;
    lab.write_noise(5, 2)?;
    let last = lab.cut("demo", &[])?;
    let status = lab.source_status("demo")?;
    ensure!(status["state"] == "protected", "not protected: {status}");
    // The whole site is lost: what is left is the bucket, its key and this binary.
    lab.kill_source();
    let reader = Reader::new(&lab, &settings, "far")?;
    let listed = lab.json(&reader.args(&["point", "list", "demo", "--json"]))?;
    let points = listed["points"].as_array().context("no points")?;
    for cut in [&first, &last] {
        ensure!(points.iter().any(|point| point["id"] == cut["point"]), "{} is not listed", cut["point"]);
    }
    reader.check(&lab, &last["point"])?;
    let verified = lab.json(&reader.args(&["verify", "--json"]))?;
    ensure!(verified["whole"] == true, "damage: {verified}");
    // Again on a machine that has never seen it.
    Reader::new(&lab, &settings, "elsewhere")?.check(&lab, &last["point"])
}

#[test]
fn nothing_is_lost_when_a_node_of_the_store_is_killed() -> anyhow::Result<()> {
    let mut cluster = ObjectCluster::start()?;
    let settings = cluster.settings("dr/site-a");
    let mut lab = lab()?;
    lab.set_targets(&format!("[[target]]\nname = \"vault\"\n[target.bucket]\n{}", keys_of(&settings)?))?;
    lab.start_source()?;
    lab.write_noise(1, 12)?;
    let before = lab.cut("demo", &[])?;
    let (stop, lab_of_writer) = (AtomicBool::new(false), &lab);
    let during = thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(lab_of_writer, &stop));
        // Whatever happens here, the writer ends.
        let killed = kill_fullest_node(&mut cluster, lab_of_writer);
        stop.store(true, Ordering::Release);
        let written = writer.join().map_err(|_| anyhow::anyhow!("the writer failed"))??;
        ensure!(written > 0, "nothing was written while the node was killed");
        killed
    })?;
    lab.write_noise(3, 4)?;
    let last = lab.cut("demo", &[])?;
    let expected = fs::read(lab.leg("demo", "disk0"))?;
    ensure!(lab.source_status("demo")?["state"] == "protected", "not protected");
    // The node stays dead, and so does the site.
    lab.kill_source();
    let reader = Reader::new(&lab, &settings, "far")?;
    let listed = lab.json(&reader.args(&["point", "list", "demo", "--json"]))?;
    let points = listed["points"].as_array().context("no points")?;
    for cut in [&before, &during, &last] {
        ensure!(points.iter().any(|point| point["id"] == cut["point"]), "{} is not listed", cut["point"]);
    }
    reader.check(&lab, &last["point"])?;
    ensure!(fs::read(lab.leg("demo", "disk0"))? == expected, "the leg has changed");
    // Everything, older points too.
    let verified = lab.json(&reader.args(&["verify", "--json"]))?;
    ensure!(verified["whole"] == true, "damage: {verified}");
    Ok(())
}

/// Kills the node that has the most while there is something on its way to the store, and answers a point that was confirmed afterwards.
fn kill_fullest_node(cluster: &mut ObjectCluster, lab: &Lab) -> anyhow::Result<Value> {
    lab.eventually("something on its way", |lab| {
        let status = lab.source_status("demo")?;
        Ok(status["head"] != status["acknowledged"])
    })?;
    let held = cluster.held_bytes()?;
    let fullest = (0..held.len()).max_by_key(|&number| held[number]).context("no nodes")?;
    ensure!(held[fullest] > MIB, "the nodes hold {held:?} bytes; killing one would show nothing");
    cluster.kill_volume_server(fullest)?;
    lab.cut("demo", &[])
}

/// A VM that writes on: a mebibyte of noise every few milliseconds. Answers how many it wrote.
fn write_until(lab: &Lab, stop: &AtomicBool) -> anyhow::Result<u64> {
    let mut written = 0;
    while !stop.load(Ordering::Acquire) {
        lab.write_noise(100 + written, 1)?;
        written += 1;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(written)
}

#[test]
fn both_roads_at_once_and_what_one_lacks_comes_from_the_other() -> anyhow::Result<()> {
    let mut server = ObjectServer::start()?;
    let settings = server.settings("dr");
    let mut lab = lab()?;
    lab.add_target(&format!("[[target]]\nname = \"vault\"\n[target.bucket]\n{}", keys_of(&settings)?))?;
    lab.start_site()?;
    lab.start_source()?;
    lab.write_noise(1, 8)?;
    let cut = lab.cut("demo", &[])?;
    (0..2).try_for_each(|number| lab.wait_until_confirmed("demo", number, &cut))?;
    // One road fails, and then the other.
    server.kill()?;
    lab.write_noise(2, 8)?;
    let by_site = lab.cut("demo", &[])?;
    lab.kill_site();
    server.start_again()?;
    lab.write_noise(3, 8)?;
    let by_bucket = lab.cut("demo", &[])?;
    lab.kill_source();
    ensure!(by_site["confirmed"] == true && by_bucket["confirmed"] == true, "not confirmed");
    // What the site's disk has lost since is in the bucket.
    let segments = lab.store().join("groups/demo/segments");
    let mut names: Vec<_> =
        fs::read_dir(&segments)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    names.sort();
    fs::remove_file(names.get(1).context("too few segments")?)?;
    let reader = Reader::new(&lab, &settings, "far")?;
    let store = lab.store().display().to_string();
    let point = by_bucket["point"].as_str().context("no point")?;
    let output = lab.path("union.raw");
    let target = output.display().to_string();
    lab.run(&reader.args(&[
        "restore", "demo", "--volume", "disk0", "--point", point, "--output", &target, "--store", &store,
    ]))?;
    ensure!(fs::read(&output)? == fs::read(lab.leg("demo", "disk0"))?, "the point differs from the leg");
    Ok(())
}

#[test]
fn a_bucket_that_cannot_be_used_says_why_and_is_used_when_it_can_be() -> anyhow::Result<()> {
    let server = ObjectServer::start()?;
    let settings = server.settings("dr");
    let mut lab = lab()?;
    let table = |keys: &str| format!("[[target]]\nname = \"vault\"\n[target.bucket]\n{keys}");
    let good = keys_of(&settings)?;
    // A bucket that is not there, and a key that is wrong.
    let wrong_keys = lab.path("wrong-keys");
    fs::write(&wrong_keys, "access_key_id = \"AKIDFORTESTS\"\nsecret_access_key = \"another\"\n")?;
    fs::set_permissions(&wrong_keys, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let credentials = good.lines().find(|line| line.starts_with("credentials")).context("no credentials")?;
    let bad = [
        (good.replace("s3://the-bucket/", "s3://no-such-bucket/"), "bucket"),
        (
            good.replace(credentials, &format!("credentials = {{ file = \"{}\" }}", wrong_keys.display())),
            "secret",
        ),
    ];
    for (keys, word) in bad {
        lab.set_targets(&table(&keys))?;
        lab.start_source()?;
        lab.eventually("the reason", |lab| {
            let status = lab.source_status("demo")?;
            Ok(status["targets"][0]["reason"].as_str().is_some_and(|reason| reason.contains(word)))
        })?;
        let shown = lab.source.as_ref().context("the agent runs")?.log().join("\n");
        ensure!(!shown.contains("another"), "a secret is in the log:\n{shown}");
        lab.kill_source();
    }
    lab.set_targets(&table(&good))?;
    lab.start_source()?;
    lab.write_noise(1, 2)?;
    let cut = lab.cut("demo", &[])?;
    Reader::new(&lab, &settings, "far")?.check(&lab, &cut["point"])
}

#[test]
fn a_journal_waits_for_the_recovery_sites_word_if_it_shall() -> anyhow::Result<()> {
    let server = ObjectServer::start()?;
    let settings = server.settings("dr");
    let mut lab = lab()?;
    let shown =
        lab.json(&["identity", "show", "--json", "--dir", &lab.path("site-id").display().to_string()])?;
    let checker = shown["fingerprint"].as_str().context("no fingerprint")?;
    lab.set_targets(&format!(
        "[[target]]\nname = \"vault\"\nchecked_by = \"{checker}\"\n[target.bucket]\nreceipts = \"checked\"\n{}",
        keys_of(&settings)?
    ))?;
    lab.start_source()?;
    lab.write_noise(1, 4)?;
    let control = lab.path("source.sock").display().to_string();
    lab.wait_until_swept("demo")?;
    let sealed = lab.json(&["cut", "demo", "--json", "--control", &control])?;
    let reader = Reader::new(&lab, &settings, "far")?;
    let identity = lab.path("site-id").display().to_string();
    lab.eventually("the confirmation", |lab| {
        let acknowledged = lab.source_status("demo")?["confirmed_point"]["id"] == sealed["point"];
        if !acknowledged {
            lab.run(&reader.args(&["store", "check", "--identity", &identity, "--json"]))?;
        }
        Ok(acknowledged)
    })?;
    reader.check(&lab, &sealed["point"])
}
