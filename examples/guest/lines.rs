//! What the guest says on its serial console, and how the host reads it.
//!
//! A console carries the kernel's messages too, and it ends in the middle of a line when its VM is killed. So a line counts
//! only if it is exactly what the guest would have printed.

use std::collections::HashMap;
use std::fmt;

/// First word of the line that says that the guest's workload cannot run; the reason follows.
pub const FAILED: &str = "GUEST-FAILED";

const READY: &str = "GUEST-READY";
const RECORD: &str = "RECORD";

/// `RECORD n unix_ms checksum`: this record is on stable storage, as far as the guest can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLine {
    /// Number of the record.
    pub number: u64,
    /// The guest's wall clock when the record was written, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Checksum of the record.
    pub checksum: u64,
}

impl fmt::Display for RecordLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{RECORD} {} {} {:016x}", self.number, self.unix_ms, self.checksum)
    }
}

impl RecordLine {
    /// Reads such a line, or returns nothing if it is another one.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix(RECORD)?.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let unix_ms = words.next()?.parse().ok()?;
        let checksum = u64::from_str_radix(words.next()?, 16).ok()?;
        let parsed = RecordLine { number, unix_ms, checksum };
        (parsed.to_string() == line).then_some(parsed)
    }
}

/// `GUEST-READY key=value …`: the guest has mounted its file system and checked all that earlier lives left there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyLine {
    /// Number of this boot of the disk, from 1.
    pub boot: u64,
    /// The highest number of a whole record.
    pub records: u64,
    /// Damaged records before the last whole one.
    pub torn: u64,
    /// Numbers missing between whole records.
    pub holes: u64,
    /// Wall clock of the last whole record, in milliseconds since 1970; 0 if there is none.
    pub last_ms: u64,
    /// Bytes after the last whole record, which were cut off: a record that was being written at the crash.
    pub tail: u64,
    /// Pages of the database file that were checked.
    pub pages: u64,
    /// Pages that are damaged, or older or newer than the records say.
    pub pages_bad: u64,
    /// Whether the file system's journal had to be replayed: 1 after a crash, 0 after a clean end.
    pub replayed: u64,
    /// Errors that the file system has recorded in its superblock.
    pub fs_errors: u64,
    /// Time since the kernel started, in milliseconds.
    pub uptime_ms: u64,
}

impl fmt::Display for ReadyLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{READY} boot={} records={} torn={} ", self.boot, self.records, self.torn)?;
        write!(f, "holes={} last_ms={} tail={} ", self.holes, self.last_ms, self.tail)?;
        write!(f, "pages={} pages_bad={} ", self.pages, self.pages_bad)?;
        write!(f, "replayed={} fs_errors={} ", self.replayed, self.fs_errors)?;
        write!(f, "uptime_ms={}", self.uptime_ms)
    }
}

impl ReadyLine {
    /// Reads such a line, or returns nothing if it is another one.
    pub fn parse(line: &str) -> Option<Self> {
        let words = line.strip_prefix(READY)?.split_whitespace();
        let pairs: HashMap<&str, u64> = words
            .map(|word| word.split_once('=').and_then(|(key, value)| Some((key, value.parse().ok()?))))
            .collect::<Option<_>>()?;
        let field = |key| pairs.get(key).copied();
        let parsed = ReadyLine {
            boot: field("boot")?,
            records: field("records")?,
            torn: field("torn")?,
            holes: field("holes")?,
            last_ms: field("last_ms")?,
            tail: field("tail")?,
            pages: field("pages")?,
            pages_bad: field("pages_bad")?,
            replayed: field("replayed")?,
            fs_errors: field("fs_errors")?,
            uptime_ms: field("uptime_ms")?,
        };
        (parsed.to_string() == line).then_some(parsed)
    }

    /// Says whether everything that was found is whole.
    pub fn is_whole(&self) -> bool {
        self.torn == 0 && self.holes == 0 && self.pages_bad == 0 && self.fs_errors == 0
    }
}

#[cfg(test)]
#[path = "lines/tests.rs"]
mod tests;
