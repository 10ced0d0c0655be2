//! Points as NBD exports, for this crate's own client and for the tools that people have.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use journal_nbd::{Client, Listener, Protocol, Server, ServerOptions, WriteFlags, ZeroMode};
use restore::{Access, Selector, Store, exports_of};

use crate::history::{History, filled, open};

fn serve(folder: &Path, history: &History, access: Access<'_>) -> Server {
    let store = Store::open(&folder.join("store")).unwrap();
    let view = open(&store, &history.group, &Selector::Latest);
    let exports = Arc::new(exports_of(&view, access).unwrap());
    let listener = Listener::unix(&folder.join("nbd.sock")).unwrap();
    Server::start(vec![listener], exports, ServerOptions::default()).unwrap()
}

fn filled_folder(history: &History) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    filled(&folder.path().join("store"), history);
    folder
}

#[test]
fn nbdcopy_and_qemu_img_read_what_the_model_says() {
    let history = History::with_points(60, 10);
    let folder = filled_folder(&history);
    let _server = serve(folder.path(), &history, Access::ReadOnly);
    for (name, bytes) in &history.volumes {
        let copy = folder.path().join("copy.raw");
        let uri = format!("nbd+unix:///{name}?socket={}", folder.path().join("nbd.sock").display());
        let status = Command::new("nbdcopy").args([&uri]).arg(&copy).status().expect("nbdcopy is missing");
        assert!(status.success());
        assert!(fs::read(&copy).unwrap() == *bytes, "volume {name}");
        let compared =
            Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw", &uri]).arg(&copy).status();
        assert!(compared.expect("qemu-img is missing").success());
    }
}

#[test]
fn holes_are_told_and_nothing_can_be_written() {
    let history = History::with_points(61, 2);
    let folder = filled_folder(&history);
    let _server = serve(folder.path(), &history, Access::ReadOnly);
    for (name, bytes) in &history.volumes {
        let mut client =
            Client::connect_unix(&folder.path().join("nbd.sock"), name.as_str(), Protocol::Structured)
                .unwrap();
        assert!(client.write(0, &[1; 512], WriteFlags::default()).is_err());
        assert!(client.write_zeroes(0, 512, ZeroMode::MayPunch, WriteFlags::default()).is_err());
        let extents = client.block_status(0, bytes.len() as u32).unwrap();
        assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), bytes.len() as u64);
        let mut at = 0;
        for extent in extents {
            let range = &bytes[at..at + extent.length as usize];
            assert!(!extent.zero || range.iter().all(|&byte| byte == 0), "data at {at} is called zero");
            at += extent.length as usize;
        }
    }
}

/// Random writes, trims and zeroes through an overlay, against a model; the point is the same afterwards.
#[test]
fn an_overlay_takes_writes_and_leaves_the_point_alone() {
    for seed in 0..4 {
        let mut history = History::with_points(70 + seed, 6);
        let folder = filled_folder(&history);
        let server = serve(folder.path(), &history, Access::Overlay(folder.path()));
        let (name, mut model) = history.volumes[0].clone();
        let socket = folder.path().join("nbd.sock");
        let mut client = Client::connect_unix(&socket, name.as_str(), Protocol::Structured).unwrap();
        for _ in 0..200 {
            let sectors = model.len() / 512;
            let start = history.random.below(sectors);
            let end = start + 1 + history.random.below((sectors - start).min(200));
            let (from, to) = (start * 512, end.min(sectors) * 512);
            match history.random.below(4) {
                0 => {
                    client
                        .write_zeroes(
                            from as u64,
                            (to - from) as u32,
                            ZeroMode::MayPunch,
                            WriteFlags::default(),
                        )
                        .unwrap();
                    model[from..to].fill(0);
                }
                1 => {
                    let fill = history.random.below(256) as u8;
                    client.write(from as u64, &vec![fill; to - from], WriteFlags::default()).unwrap();
                    model[from..to].fill(fill);
                }
                2 => client.flush().unwrap(),
                _ => {
                    let read = client.read(from as u64, (to - from) as u32).unwrap();
                    assert!(read == model[from..to], "bytes {from} to {to}");
                }
            }
        }
        let all = client.read(0, model.len() as u32).unwrap();
        assert!(all == model);
        let extents = client.block_status(0, model.len() as u32).unwrap();
        let mut at = 0;
        for extent in extents {
            assert!(!extent.zero || model[at..at + extent.length as usize].iter().all(|&byte| byte == 0));
            at += extent.length as usize;
        }
        client.disconnect().unwrap();
        server.shutdown();
        history.assert_points(&Store::open(&folder.path().join("store")).unwrap());
        let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(
            !left.into_iter().any(|name| name.to_string_lossy().contains("overlay")),
            "an overlay was left"
        );
    }
}

/// Only what is damaged cannot be read.
#[test]
fn a_damaged_frame_is_a_read_error() {
    let history = History::with_points(80, 1);
    let folder = filled_folder(&history);
    let path = crate::history::segment_path(&folder.path().join("store"), &history.segments[0]);
    let _server = serve(folder.path(), &history, Access::ReadOnly);
    let mut bytes = fs::read(&path).unwrap();
    // Frames begin behind the header.
    bytes[journal_format::segment::HEADER_BYTES + 40] ^= 1;
    fs::write(&path, bytes).unwrap();
    let socket = folder.path().join("nbd.sock");
    let mut failures = 0;
    for (name, bytes) in &history.volumes {
        let mut client = Client::connect_unix(&socket, name.as_str(), Protocol::Structured).unwrap();
        for (number, expected) in bytes.chunks(4096).enumerate() {
            match client.read(number as u64 * 4096, expected.len() as u32) {
                Ok(read) => assert!(read == expected),
                Err(_) => failures += 1,
            }
        }
    }
    assert!(failures > 0);
}
