use std::sync::{Condvar, Mutex};

use super::*;

/// A disk in memory whose slow paths a test can hold back, and which records what is asked of it.
pub(crate) struct MemoryDisk {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    gate: Mutex<Gate>,
    gate_changed: Condvar,
}

#[derive(Default)]
struct Gate {
    /// `try_read` answers that it would wait.
    cold: bool,
    /// `read` and `flush` wait.
    closed: bool,
    /// Calls of `read` and `flush` that have come to the gate.
    arrived: usize,
    flushes: usize,
    failing: Option<Errno>,
    kept: Vec<Payload>,
}

impl MemoryDisk {
    pub(crate) fn new(size: usize, read_only: bool) -> Self {
        let bytes = Mutex::new(vec![0; size]);
        MemoryDisk { bytes, read_only, gate: Mutex::default(), gate_changed: Condvar::new() }
    }

    /// From now on no read can be answered without waiting.
    pub(crate) fn make_cold(&self) {
        self.gate.lock().expect("gate").cold = true;
    }

    /// Holds back reads that wait, and flushes, until [`open_gate`](Self::open_gate).
    pub(crate) fn close_gate(&self) {
        self.gate.lock().expect("gate").closed = true;
    }

    pub(crate) fn open_gate(&self) {
        self.gate.lock().expect("gate").closed = false;
        self.gate_changed.notify_all();
    }

    /// Waits until so many calls have come to the gate since the start.
    pub(crate) fn wait_for_arrivals(&self, count: usize) {
        let gate = self.gate.lock().expect("gate");
        drop(self.gate_changed.wait_while(gate, |gate| gate.arrived < count).expect("gate"));
    }

    pub(crate) fn flushes(&self) -> usize {
        self.gate.lock().expect("gate").flushes
    }

    /// From now on everything fails.
    pub(crate) fn fail_with(&self, errno: Errno) {
        self.gate.lock().expect("gate").failing = Some(errno);
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        self.bytes.lock().expect("bytes").clone()
    }

    /// The payloads of all writes.
    pub(crate) fn kept(&self) -> Vec<Payload> {
        self.gate.lock().expect("gate").kept.clone()
    }

    fn pass_gate(&self) {
        let mut gate = self.gate.lock().expect("gate");
        gate.arrived += 1;
        self.gate_changed.notify_all();
        drop(self.gate_changed.wait_while(gate, |gate| gate.closed).expect("gate"));
    }

    fn answer(&self) -> Result<(), Errno> {
        self.gate.lock().expect("gate").failing.map_or(Ok(()), Err)
    }
}

impl Export for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.bytes.lock().expect("bytes").len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn description(&self) -> String {
        "a disk in memory".to_owned()
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
        self.answer()?;
        if self.gate.lock().expect("gate").cold {
            return Ok(false);
        }
        buffer.copy_from_slice(&self.bytes.lock().expect("bytes")[offset as usize..][..buffer.len()]);
        Ok(true)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.pass_gate();
        self.answer()?;
        buffer.copy_from_slice(&self.bytes.lock().expect("bytes")[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, payload: Payload) -> Result<(), Errno> {
        self.answer()?;
        self.bytes.lock().expect("bytes")[offset as usize..][..payload.len()].copy_from_slice(&payload);
        self.gate.lock().expect("gate").kept.push(payload);
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        self.pass_gate();
        self.answer()?;
        self.gate.lock().expect("gate").flushes += 1;
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.write_zeroes(offset, length, ZeroMode::MayPunch)
    }

    fn write_zeroes(&self, offset: u64, length: u64, _mode: ZeroMode) -> Result<(), Errno> {
        self.answer()?;
        self.bytes.lock().expect("bytes")[offset as usize..][..length as usize].fill(0);
        Ok(())
    }

    fn block_status(&self, _offset: u64, length: u64, extents: &mut Vec<StatusExtent>) -> Result<(), Errno> {
        self.answer()?;
        extents.push(StatusExtent { length: length / 2, hole: false, zero: false });
        extents.push(StatusExtent { length: length - length / 2, hole: true, zero: true });
        Ok(())
    }

    fn reads_as_zero(&self, offset: u64, length: u64) -> bool {
        self.content()[offset as usize..][..length as usize].iter().all(|byte| *byte == 0)
    }
}

fn disk() -> Arc<dyn Export> {
    Arc::new(MemoryDisk::new(512, true))
}

#[test]
fn the_empty_name_is_the_only_export() {
    let exports = Exports::new();
    assert!(exports.get("").is_none());
    exports.add("a", disk()).expect("free name");
    assert!(exports.get("").is_some());
    exports.add("b", disk()).expect("free name");
    assert!(exports.get("").is_none(), "of two exports none is the default");
    exports.add("", disk()).expect("free name");
    assert!(exports.get("").is_some());
}

#[test]
fn exports_come_and_go() {
    let exports = Exports::new();
    exports.add("a", disk()).expect("free name");
    assert_eq!(exports.add("a", disk()), Err(ExportNameError::Taken { name: "a".to_owned() }));
    assert!(exports.remove("a").is_some());
    assert!(exports.remove("a").is_none());
    assert!(exports.get("a").is_none());
    let long = "x".repeat(4097);
    assert_eq!(exports.add(&long, disk()), Err(ExportNameError::TooLong { actual: 4097, limit: 4096 }));
}
