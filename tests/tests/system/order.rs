//! Write order by independent oracles: stamps (O2), and QEMU's own log of the writes (O1).

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use tests::lab::{Lab, wait_for_socket};
use tests::scaled;
use tests::stamps::CutWindow;
use tests::workload::{Shape, Workload};

use super::tools::run;

const VOLUME_BYTES: u64 = 8 << 20;

/// Every listed point is served by `export`, read back with nbdcopy, and judged by the stamps in it.
#[test]
fn exported_points_are_consistent_cuts_at_queue_depth_16() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[VOLUME_BYTES, VOLUME_BYTES])?;
    lab.start_site()?;
    lab.start_source()?;
    let shape = Shape { blocks: VOLUME_BYTES / 4096, blocks_per_write: 8, depth: 16, writes_per_flush: 50 };
    let workload = Workload::start(&lab.tap(), &["demo/disk0", "demo/disk1"], shape, 7);
    let mut windows = Vec::new();
    let mut writes = 0;
    for _ in 0..scaled(8, 60) {
        writes += 1500;
        workload.wait_for(writes);
        let asked = workload.now();
        let cut = lab.cut("demo", &[])?;
        let answered = Some(workload.now());
        windows
            .push((cut["point"].as_str().context("no point id")?.to_owned(), CutWindow { asked, answered }));
    }
    let history = workload.end();
    lab.cut("demo", &[])?;
    let points = lab.points("demo")?;
    ensure!(points.len() > windows.len(), "points by interval are missing: {}", points.len());
    for point in &points {
        let id = point["id"].as_str().context("no id")?;
        let window =
            windows.iter().find(|(cut, _)| cut == id).map_or(CutWindow::default(), |(_, window)| *window);
        let images = exported(&lab, id, &["disk0", "disk1"])?;
        let verdict = history.check(&images, window);
        ensure!(verdict.is_ok(), "point {id}: {}", verdict.unwrap_err());
    }
    println!("{} writes, {} points, all consistent", history.writes.len(), points.len());
    Ok(())
}

/// Reads volumes of a point through `thirdsite export` with nbdcopy.
fn exported(lab: &Lab, point: &str, volumes: &[&str]) -> anyhow::Result<Vec<Vec<u8>>> {
    let (socket, store) = (lab.path("export.sock"), lab.store().display().to_string());
    let listen = format!("unix:{}", socket.display());
    let args = ["export", "demo", "--point", point, "--store", &store, "--listen", &listen];
    let mut server = lab.spawn("export", &args)?;
    wait_for_socket(&socket)?;
    let images = volumes.iter().map(|volume| {
        let copy = lab.path("copy.raw");
        let uri = format!("nbd+unix:///{volume}?socket={}", socket.display());
        run(Command::new("nbdcopy").arg(uri).arg(&copy))?;
        let bytes = fs::read(&copy)?;
        fs::remove_file(&copy)?;
        Ok(bytes)
    });
    let images = images.collect::<anyhow::Result<_>>()?;
    server.stop()?;
    Ok(images)
}

/// `blklogwrites` in front of the tap records what the client wrote. For each point there is a place k in the log with
/// image(point) == replay(log, 0..k), and k is not before the last write that was acknowledged before the cut was asked for.
#[test]
fn every_point_is_a_prefix_of_the_log_that_qemu_wrote() -> anyhow::Result<()> {
    let mut lab = Lab::demo(&[VOLUME_BYTES])?;
    lab.start_site()?;
    lab.start_source()?;
    lab.cut("demo", &[])?;
    let log = lab.path("writes.log");
    fs::File::create(&log)?.set_len(256 << 20)?;
    let image = serde_json::json!({
        "driver": "blklogwrites", "log-super-update-interval": 1,
        "file": {"driver": "nbd", "export": "demo/disk0",
                 "server": {"type": "unix", "path": lab.tap()}},
        "log": {"driver": "file", "filename": log},
    });
    let mut qemu_io = QemuIo::open(&format!("json:{image}"))?;
    let mut random = tests::workload::Random::new(11);
    let mut cuts = Vec::new();
    for round in 0..scaled(10, 100) {
        for number in 0..40 {
            let block = random.below(VOLUME_BYTES / 4096 - 16);
            let length = 512 * (1 + random.below(32));
            let value = 1 + (round * 40 + number) % 255;
            qemu_io.run(&match random.below(8) {
                0 => format!("write -z {}k {length}", block * 4),
                1 => "flush".to_owned(),
                _ => format!("write -P {value} {}k {length}", block * 4),
            })?;
        }
        let least = read_log(&log)?.len();
        let cut = lab.cut("demo", &[])?;
        cuts.push((cut["point"].as_str().context("no id")?.to_owned(), least));
    }
    qemu_io.close()?;
    let entries = read_log(&log)?;
    for point in lab.points("demo")? {
        let id = point["id"].as_str().context("no id")?;
        let bytes = lab.restored("demo", "disk0", id)?;
        let least = cuts.iter().find(|(cut, _)| cut == id).map_or(0, |(_, entries)| *entries);
        let place = matching_prefix(&entries, &bytes, least);
        ensure!(place.is_some(), "point {id} is no prefix of the log at or behind entry {least}");
    }
    Ok(())
}

/// An entry of a dm-log-writes log.
struct Entry {
    sector: u64,
    sectors: u64,
    data: Vec<u8>,
}

/// `qemu-io`, command by command.
struct QemuIo {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl QemuIo {
    const PROMPT: &str = "qemu-io> ";

    fn open(image: &str) -> anyhow::Result<QemuIo> {
        let mut child = Command::new("qemu-io")
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("qemu-io cannot be started; .ci/setup installs it")?;
        let input = child.stdin.take().context("qemu-io has no input")?;
        let output = child.stdout.take().context("qemu-io has no output")?;
        let mut qemu_io = QemuIo { child, input, output };
        qemu_io.wait_for_prompt()?;
        Ok(qemu_io)
    }

    /// Runs a command to its end.
    fn run(&mut self, command: &str) -> anyhow::Result<()> {
        self.input.write_all(format!("{command}\n").as_bytes())?;
        let printed = self.wait_for_prompt()?;
        ensure!(!printed.contains("failed"), "{command}: {printed}");
        Ok(())
    }

    fn wait_for_prompt(&mut self) -> anyhow::Result<String> {
        let (mut printed, mut buffer) = (String::new(), [0; 256]);
        while !printed.ends_with(Self::PROMPT) {
            let count = self.output.read(&mut buffer)?;
            ensure!(count > 0, "qemu-io ended: {printed}");
            printed += &String::from_utf8_lossy(&buffer[..count]);
        }
        Ok(printed)
    }

    fn close(mut self) -> anyhow::Result<()> {
        drop(self.input);
        ensure!(self.child.wait()?.success(), "qemu-io failed");
        Ok(())
    }
}

/// Reads a log: a super block with magic, version, number of entries and sector size, then entries of one sector each, with
/// their data behind them. Linux, Documentation/admin-guide/device-mapper/log-writes.rst.
fn read_log(path: &std::path::Path) -> anyhow::Result<Vec<Entry>> {
    let bytes = fs::read(path)?;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    if word(0) == 0 {
        return Ok(Vec::new());
    }
    ensure!(word(0) == 0x006a_7366_7773_6872, "the log has another magic number");
    let (count, sector_bytes) = (word(16), u32::from_le_bytes(bytes[24..28].try_into()?) as usize);
    let (mut entries, mut at) = (Vec::new(), sector_bytes);
    for _ in 0..count {
        let (sector, sectors, flags, length) = (word(at), word(at + 8), word(at + 16), word(at + 24));
        at += sector_bytes;
        let has_data = flags & 4 == 0;
        let size = if has_data { sectors as usize * sector_bytes } else { 0 };
        ensure!(length as usize <= sector_bytes, "an entry of the log has a strange header");
        let data = bytes[at..at + size].to_vec();
        at += size;
        entries.push(Entry {
            sector: sector * sector_bytes as u64,
            sectors: sectors * sector_bytes as u64,
            data,
        });
    }
    Ok(entries)
}

/// The first place k at or behind `least` with replay(log, 0..k) == image.
fn matching_prefix(entries: &[Entry], image: &[u8], least: usize) -> Option<usize> {
    let mut replayed = vec![0; image.len()];
    for (number, entry) in entries.iter().enumerate() {
        if number >= least && replayed == image {
            return Some(number);
        }
        let target = &mut replayed[entry.sector as usize..(entry.sector + entry.sectors) as usize];
        if entry.data.is_empty() { target.fill(0) } else { target.copy_from_slice(&entry.data) }
    }
    (replayed == image).then_some(entries.len())
}
