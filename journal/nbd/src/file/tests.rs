use std::fs;

use tempfile::TempDir;

use super::*;

const SIZE: usize = 4 << 20;

fn disk(directory: &TempDir, content: &[u8]) -> FileDisk {
    let path = directory.path().join("disk.raw");
    fs::write(&path, content).expect("image");
    FileDisk::open(&path, false).expect("disk")
}

fn check_refused(path: &Path, expected: &str, kind: io::ErrorKind) {
    let error = FileDisk::open(path, false).expect_err("must be refused");
    assert!(error.to_string().contains(expected), "{error}");
    assert!(error.to_string().contains(&path.display().to_string()), "{error} does not name the path");
    assert_eq!(error.kind(), kind);
}

#[test]
fn what_is_not_a_disk_is_refused() {
    let directory = TempDir::new().expect("directory");
    check_refused(&directory.path().join("missing"), "cannot be opened", io::ErrorKind::NotFound);
    check_refused(directory.path(), "cannot be opened", io::ErrorKind::IsADirectory);
    check_refused(Path::new("/dev/null"), "neither a regular file", io::ErrorKind::InvalidInput);
    let odd = directory.path().join("odd.raw");
    fs::write(&odd, [0; 1000]).expect("image");
    check_refused(&odd, "1000 bytes", io::ErrorKind::InvalidInput);
    let error = FileDisk::open(directory.path(), true).expect_err("a directory is no disk");
    assert!(matches!(error, OpenError::NotADisk { .. }), "{error}");
}

#[test]
fn what_is_written_is_read() {
    let directory = TempDir::new().expect("directory");
    let disk = disk(&directory, &vec![0; SIZE]);
    assert_eq!(disk.size_bytes(), SIZE as u64);
    disk.write(512, &[7; 1024]).expect("write");
    disk.flush().expect("flush");
    let mut buffer = [0; 2048];
    disk.read(0, &mut buffer).expect("read");
    assert_eq!(buffer, [[0; 512], [7; 512], [7; 512], [0; 512]].concat()[..]);
    // The page cache holds what was just written, or the system cannot tell.
    let mut buffer = [0; 512];
    if disk.try_read(512, &mut buffer).expect("read") {
        assert_eq!(buffer, [7; 512]);
    }
    assert_eq!(disk.read(SIZE as u64 - 512, &mut [0; 1024]), Err(Errno::Io), "beyond the end");
}

#[test]
fn zeroes_and_trimmed_ranges_read_as_zero() {
    let directory = TempDir::new().expect("directory");
    let disk = disk(&directory, &vec![1; SIZE]);
    disk.write_zeroes(0, 1 << 20, ZeroMode::MayPunch).expect("zeroes");
    disk.write_zeroes(1 << 20, 1 << 20, ZeroMode::Allocate).expect("zeroes");
    disk.write_out_zeroes(2 << 20, (1 << 20) - 512).expect("zeroes");
    disk.trim((3 << 20) - 512, 512).expect("trim");
    let content = fs::read(disk.path()).expect("image");
    assert!(content[..(3 << 20) - 512].iter().all(|byte| *byte == 0));
    assert!(content[3 << 20..].iter().all(|byte| *byte == 1), "bytes beyond were touched");
    assert_eq!(content.len(), SIZE);
}

#[test]
fn holes_are_found() {
    let directory = TempDir::new().expect("directory");
    let disk = disk(&directory, &[]);
    disk.file().set_len(SIZE as u64).expect("size");
    let disk = FileDisk::open(disk.path(), false).expect("disk");
    disk.write(1 << 20, &vec![1; 1 << 20]).expect("write");
    let mut extents = Vec::new();
    disk.block_status(0, SIZE as u64, &mut extents).expect("status");
    let data = StatusExtent { length: 1 << 20, hole: false, zero: false };
    let hole = StatusExtent { length: 1 << 20, hole: true, zero: true };
    assert_eq!(extents, [hole, data, StatusExtent { length: 2 << 20, ..hole }]);
    extents.clear();
    disk.block_status((1 << 20) - 512, 1024, &mut extents).expect("status");
    assert_eq!(extents, [StatusExtent { length: 512, ..hole }, StatusExtent { length: 512, ..data }]);
    assert!(disk.reads_as_zero(0, 1 << 20) && disk.reads_as_zero(2 << 20, 2 << 20));
    assert!(!disk.reads_as_zero(0, (1 << 20) + 512) && !disk.reads_as_zero(1 << 20, 1 << 20));
}

#[test]
fn after_a_failed_flush_no_flush_succeeds() {
    let directory = TempDir::new().expect("directory");
    let disk = disk(&directory, &[0; 512]);
    disk.flush().expect("flush");
    disk.lost_writes.store(true, Ordering::Release);
    assert_eq!(disk.flush(), Err(Errno::Io));
    assert_eq!(disk.flush(), Err(Errno::Io));
}

#[test]
fn a_disk_that_is_opened_for_reading_cannot_be_written() {
    let directory = TempDir::new().expect("directory");
    let path = disk(&directory, &[5; 512]).path().to_owned();
    let disk = FileDisk::open(&path, true).expect("disk");
    assert!(disk.read_only());
    assert!(disk.write(0, &[0; 512]).is_err());
    disk.flush().expect("there is nothing to flush");
    assert_eq!(fs::read(&path).expect("image"), [5; 512]);
}
