//! The server against the NBD clients of the field: libnbd's tools, QEMU's and fio.
//!
//! A tool that is missing fails its test: install `libnbd-bin`, `qemu-utils` and `fio`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use journal_nbd::{Exports, FileDisk, Listener, Server, ServerOptions};
use tempfile::TempDir;

const DISK_BYTES: usize = 32 << 20;

/// A raw image that is served as `disk` on a unix socket.
struct Served {
    directory: TempDir,
    _server: Server,
}

impl Served {
    fn new(content: &[u8]) -> Self {
        Served::start(content, false)
    }

    fn read_only(content: &[u8]) -> Self {
        Served::start(content, true)
    }

    fn start(content: &[u8], read_only: bool) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        fs::write(directory.path().join("disk.raw"), content).expect("image");
        let disk = FileDisk::open(&directory.path().join("disk.raw"), read_only).expect("disk");
        let exports = Arc::new(Exports::new());
        exports.add("disk", Arc::new(disk)).expect("name");
        let listener = Listener::unix(&directory.path().join("nbd.sock")).expect("listener");
        let server = Server::start(vec![listener], exports, ServerOptions::default()).expect("server");
        Served { directory, _server: server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.path("nbd.sock").display())
    }

    fn content(&self) -> Vec<u8> {
        fs::read(self.path("disk.raw")).expect("image")
    }
}

/// Bytes without a pattern that a compressor or a mix-up of blocks could hide in.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..length / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| {
        panic!("{program} cannot be run ({error}): install libnbd-bin, qemu-utils and fio")
    })
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn run_well(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
    text(&output)
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

fn qemu_io(served: &Served, commands: &[&str]) -> String {
    let uri = served.uri();
    let mut arguments = vec!["-f", "raw", "-d", "unmap"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push(&uri);
    let output = run_well("qemu-io", &arguments);
    assert!(!output.contains("failed") && !output.contains("error"), "{output}");
    output
}

#[test]
fn nbdinfo_shows_the_export() {
    let served = Served::new(&vec![0; DISK_BYTES]);
    let output = run_well("nbdinfo", &[&served.uri()]);
    for expected in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export-size: 33554432",
        "base:allocation",
        "disk.raw",
        "is_read_only: false",
        "can_multi_conn: true",
        "can_fast_zero: true",
        "can_trim: true",
        "can_df: true",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(output.contains(expected), "{expected:?} is missing in {output}");
    }
}

#[test]
fn nbdinfo_lists_exports_and_sees_holes() {
    let served = Served::read_only(&[&vec![0; 1 << 20][..], &noise(1 << 20)].concat());
    let socket = format!("nbd+unix:///?socket={}", served.path("nbd.sock").display());
    let list = run_well("nbdinfo", &["--list", &socket]);
    assert!(list.contains("export=\"disk\"") && list.contains("is_read_only: true"), "{list}");
    let map = run_well("nbdinfo", &["--map", &served.uri()]);
    assert!(map.contains("data"), "{map}");
}

#[test]
fn nbdcopy_copies_in_and_out() {
    let content = noise(DISK_BYTES);
    let served = Served::new(&vec![0; DISK_BYTES]);
    let (source, target) = (served.path("source.raw"), served.path("target.raw"));
    fs::write(&source, &content).expect("source");
    run_well("nbdcopy", &["--flush", "--connections=4", &display(&source), &served.uri()]);
    assert!(served.content() == content, "the disk differs from what was copied in");
    run_well("nbdcopy", &["--connections=4", &served.uri(), &display(&target)]);
    assert!(fs::read(&target).expect("target") == content, "what was copied out differs from the disk");
}

#[test]
fn qemu_img_converts_and_compares() {
    let mut content = noise(DISK_BYTES);
    content[4 << 20..12 << 20].fill(0);
    let served = Served::new(&noise(DISK_BYTES));
    let source = display(&served.path("source.raw"));
    fs::write(&source, &content).expect("source");
    run_well("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &served.uri()]);
    assert!(served.content() == content, "the disk differs from what was converted");
    run_well("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &served.uri()]);
    let copy = display(&served.path("copy.qcow2"));
    run_well("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &served.uri(), &copy]);
    run_well("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &source, &copy]);
    fs::write(&source, noise(DISK_BYTES)).expect("source");
    let output = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &served.uri()]);
    assert_eq!(output.status.code(), Some(1), "a difference must be seen: {}", text(&output));
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_back() {
    let served = Served::new(&noise(DISK_BYTES));
    qemu_io(&served, &["write -P 0xa5 512 512", "write -P 0x5a 1M 3M", "write -f -P 0x77 8M 4k", "flush"]);
    let content = served.content();
    assert!(content[512..1024].iter().all(|byte| *byte == 0xa5), "one sector");
    assert!(content[1 << 20..4 << 20].iter().all(|byte| *byte == 0x5a), "a large write");
    assert!(content[8 << 20..(8 << 20) + 4096].iter().all(|byte| *byte == 0x77), "a write with FUA");
    qemu_io(&served, &["write -z 1M 1M", "write -z -u 2M 1M", "discard 16M 1M", "flush"]);
    qemu_io(&served, &["read -P 0 1M 2M", "read -P 0x5a 3M 1M", "read -P 0xa5 512 512", "read -P 0 16M 1M"]);
    assert!(served.content()[1 << 20..3 << 20].iter().all(|byte| *byte == 0), "zeroed");
    qemu_io(
        &served,
        &["aio_write -P 1 20M 64k", "aio_write -P 2 21M 64k", "aio_write -P 3 22M 64k", "aio_flush"],
    );
    qemu_io(&served, &["read -P 1 20M 64k", "read -P 2 21M 64k", "read -P 3 22M 64k"]);
}

#[test]
fn a_read_only_export_refuses_writes_of_qemu() {
    let served = Served::read_only(&noise(DISK_BYTES));
    let output = run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &served.uri()]);
    assert!(!output.status.success(), "{}", text(&output));
    assert!(served.content() == noise(DISK_BYTES), "nothing may have been written");
}

fn fio(served: &Served, name: &str, options: &[&str]) {
    let (uri, name) = (format!("--uri={}", served.uri()), format!("--name={name}"));
    let directory = format!("--aux-path={}", served.directory.path().display());
    let mut arguments = vec!["--ioengine=nbd", "--thread", "--minimal", &uri, &name, &directory];
    arguments.extend(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
    arguments.extend(options);
    run_well("fio", &arguments);
}

#[test]
fn fio_verifies_random_small_writes() {
    let served = Served::new(&vec![0; DISK_BYTES]);
    fio(
        &served,
        "small",
        &["--rw=randwrite", "--bsrange=512-16k", "--blockalign=512", "--iodepth=16", "--size=16m"],
    );
}

#[test]
fn fio_verifies_large_writes_with_flushes() {
    let served = Served::new(&vec![0; DISK_BYTES]);
    fio(&served, "large", &["--rw=write", "--bs=1m", "--iodepth=4", "--size=32m", "--fsync=8"]);
}

#[test]
fn fio_verifies_a_mix_of_reads_and_writes() {
    let served = Served::new(&vec![0; DISK_BYTES]);
    let sizes = "--bssplit=4k/60:64k/30:512k/10";
    fio(&served, "mixed", &["--rw=randrw", sizes, "--iodepth=32", "--size=32m", "--fsync=32"]);
}
