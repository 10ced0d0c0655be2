//! PID 1 of the demonstration's guest: a real Linux with one job, writing records that can be checked afterwards.
//!
//! It runs twice in a boot. In the initial RAM disk it loads the disk's driver, mounts the root file system and moves
//! there. In the root file system it checks what earlier lives wrote, says so on the console (`GUEST-READY …`) and
//! goes on writing. Mounting and powering off is left to busybox, so that this program is `std` and safe Rust alone.

#[allow(dead_code, unreachable_pub, reason = "the host's half of the format, used by the demonstration")]
mod lines;
#[expect(unreachable_pub, reason = "the demonstration's library has this module too")]
mod pages;
#[expect(unreachable_pub, reason = "the demonstration's library has this module too")]
mod records;

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lines::{FAILED, ReadyLine, RecordLine};
use pages::{Expectation, PAGE_BYTES, PAGES};
use records::{RECORD_BYTES, Record, Scan};

type Outcome<T> = Result<T, Box<dyn Error>>;

const BUSYBOX: &str = "/bin/busybox";
const LOG: &str = "/data/records.log";
const DATABASE: &str = "/data/pages.db";
const BOOTS: &str = "/data/boots";
const INTERVAL_PARAMETER: &str = "guestd.interval_ms=";
const ROOT_PARAMETER: &str = "guestd.root=";
const INTERVAL_DEFAULT: Duration = Duration::from_millis(20);
const DISK_WAIT: Duration = Duration::from_secs(20);

/// Where the initial RAM disk leaves word for the second run, in a file system that is not the disk.
const REPLAYED_NOTE: &str = "/run/journal-replayed";

static POWER_OFF: AtomicBool = AtomicBool::new(false);

fn main() {
    let in_root = std::env::args().nth(1).as_deref() == Some("root");
    let Err(error) = (if in_root { work() } else { enter_root() }) else { return };
    println!("{FAILED} {error}");
    let _ = busybox(&["poweroff", "-f"]);
    // Only a machine without a working power switch comes here. PID 1 must not end: the kernel would panic.
    loop {
        thread::park();
    }
}

/// Loads the drivers, mounts the root file system and goes on there as PID 1.
fn enter_root() -> Outcome<()> {
    busybox(&["mount", "-t", "proc", "proc", "/proc"])?;
    busybox(&["mount", "-t", "devtmpfs", "dev", "/dev"])?;
    // The kernel boots quietly because every character costs time. What the file system says from here on is evidence.
    fs::write("/proc/sys/kernel/printk", "7")?;
    for module in fs::read_to_string("/modules/order")?.lines() {
        busybox(&["insmod", &format!("/modules/{module}")])?;
    }
    let disk = find_root()?;
    let replayed = journal_needs_replay(&disk)?;
    busybox(&["mount", "-t", "ext4", &disk, "/root"])?;
    for (kind, place) in [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev"), ("tmpfs", "run")] {
        busybox(&["mount", "-t", kind, kind, &format!("/root/{place}")])?;
    }
    fs::write(format!("/root{REPLAYED_NOTE}"), if replayed { "1" } else { "0" })?;
    let error = Command::new(BUSYBOX).args(["switch_root", "/root", "/sbin/guestd", "root"]).exec();
    Err(format!("cannot move to the root file system: {error}").into())
}

/// Waits for the disk that carries the root file system and returns its device.
fn find_root() -> Outcome<String> {
    let wanted = parameter(ROOT_PARAMETER)?.ok_or("the kernel's command line has no guestd.root=")?;
    let deadline = Instant::now() + DISK_WAIT;
    loop {
        let found = Command::new(BUSYBOX).args(["findfs", &wanted]).output()?;
        if found.status.success() {
            return Ok(String::from_utf8(found.stdout)?.trim().to_owned());
        }
        if Instant::now() > deadline {
            return Err(format!("no disk has {wanted} after {DISK_WAIT:?}").into());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Reads from the superblock whether ext4 will replay its journal: `s_feature_incompat` at offset 0x60 of the superblock,
/// flag `RECOVER` = 4 (Linux, Documentation/filesystems/ext4/super.rst).
fn journal_needs_replay(disk: &str) -> Outcome<bool> {
    let mut field = [0; 4];
    File::open(disk)?.read_exact_at(&mut field, 1024 + 0x60)?;
    Ok(u32::from_le_bytes(field) & 4 != 0)
}

/// Checks what earlier lives left, reports it and writes records until the power is switched off.
fn work() -> Outcome<()> {
    let boot = next_boot()?;
    let scan = open_log()?;
    let database = open_database()?;
    let pages_bad = count_bad_pages(&database, scan.records)?;
    let ready = ReadyLine {
        boot,
        records: scan.records,
        torn: scan.torn,
        holes: scan.holes,
        last_ms: scan.last_ms,
        tail: scan.tail_bytes,
        pages: PAGES,
        pages_bad,
        replayed: fs::read_to_string(REPLAYED_NOTE)?.parse()?,
        fs_errors: file_system_errors()?,
        uptime_ms: uptime_ms()?,
    };
    println!("{ready}");
    thread::spawn(listen);
    let last = write_records(database, boot, scan.records)?;
    println!("GUEST-POWEROFF records={last}");
    busybox(&["mount", "-o", "remount,ro", "/"])?;
    busybox(&["poweroff", "-f"])
}

/// Counts this boot, durably, before anything else is written.
fn next_boot() -> Outcome<u64> {
    let earlier: u64 =
        if Path::new(BOOTS).exists() { fs::read_to_string(BOOTS)?.trim().parse()? } else { 0 };
    let fresh = format!("{BOOTS}.new");
    let mut file = File::create(&fresh)?;
    writeln!(file, "{}", earlier + 1)?;
    file.sync_all()?;
    fs::rename(&fresh, BOOTS)?;
    File::open("/data")?.sync_all()?;
    Ok(earlier + 1)
}

/// Reads the whole log, and cuts off a record that was being written when the last life ended.
fn open_log() -> Outcome<Scan> {
    let log = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(LOG)?;
    let mut reader = io::BufReader::with_capacity(64 * RECORD_BYTES, &log);
    let mut scan = Scan::default();
    loop {
        let mut slot = Vec::with_capacity(RECORD_BYTES);
        reader.by_ref().take(RECORD_BYTES as u64).read_to_end(&mut slot)?;
        if slot.is_empty() {
            break;
        }
        scan.add(&slot);
    }
    if scan.tail_bytes > 0 {
        log.set_len(scan.valid_bytes)?;
    }
    log.sync_all()?;
    Ok(scan)
}

fn open_database() -> Outcome<File> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(DATABASE)?;
    file.set_len(PAGES * PAGE_BYTES as u64)?;
    file.sync_all()?;
    File::open("/data")?.sync_all()?;
    Ok(file)
}

fn count_bad_pages(database: &File, records: u64) -> Outcome<u64> {
    let expectation = Expectation::after(records);
    let mut bytes = vec![0; PAGE_BYTES];
    let mut bad = 0;
    for page in 0..PAGES {
        database.read_exact_at(&mut bytes, page * PAGE_BYTES as u64)?;
        let stamp = pages::stamp(page, &bytes);
        if !expectation.allows(page, stamp) {
            println!("PAGE-BAD page={page} found={stamp:?}");
            bad += 1;
        }
    }
    Ok(bad)
}

/// Writes one record after the other, each on stable storage before it is announced. Closes all files, so that the file
/// system can be made clean, and returns the last record's number.
fn write_records(database: File, boot: u64, last: u64) -> Outcome<u64> {
    let interval = interval()?;
    let mut log = OpenOptions::new().append(true).open(LOG)?;
    let mut number = last;
    let mut due = Instant::now();
    while !POWER_OFF.load(Ordering::Relaxed) {
        number += 1;
        for page in pages::pages_of(number) {
            database.write_all_at(&pages::encode(page, number), page * PAGE_BYTES as u64)?;
        }
        database.sync_data()?;
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        let record = Record { number, boot, unix_ms };
        log.write_all(&record.encode())?;
        log.sync_data()?;
        println!("{}", RecordLine { number, unix_ms, checksum: record.checksum() });
        // A late record does not make the next ones come faster: the rate is a limit.
        due = (due + interval).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(number)
}

/// Takes commands from the serial console.
fn listen() {
    for line in io::stdin().lock().lines() {
        match line.as_deref().map(str::trim) {
            Ok("poweroff") => POWER_OFF.store(true, Ordering::Relaxed),
            Ok("") => {}
            Ok(other) => println!("GUEST-UNKNOWN {other}: the only command is `poweroff`"),
            Err(_) => return,
        }
    }
}

fn interval() -> Outcome<Duration> {
    match parameter(INTERVAL_PARAMETER)? {
        Some(text) => Ok(Duration::from_millis(text.parse()?)),
        None => Ok(INTERVAL_DEFAULT),
    }
}

/// Returns the value of a parameter on the kernel's command line.
fn parameter(name: &str) -> Outcome<Option<String>> {
    let line = fs::read_to_string("/proc/cmdline")?;
    Ok(line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned))
}

/// Adds up the errors that ext4 has recorded for the file systems that are mounted.
fn file_system_errors() -> Outcome<u64> {
    let mut sum = 0;
    for entry in fs::read_dir("/sys/fs/ext4")? {
        let counter = entry?.path().join("errors_count");
        if counter.exists() {
            sum += fs::read_to_string(counter)?.trim().parse::<u64>()?;
        }
    }
    Ok(sum)
}

fn uptime_ms() -> Outcome<u64> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds: f64 = text.split_whitespace().next().unwrap_or_default().parse()?;
    Ok((seconds * 1000.0) as u64)
}

fn busybox(arguments: &[&str]) -> Outcome<()> {
    let status = Command::new(BUSYBOX).args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", arguments.join(" ")).into()) }
}
