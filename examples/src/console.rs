//! What a guest's serial console, kept in a file, tells about one life of the guest.

use std::path::Path;
use std::{fs, io};

use crate::lines::{FAILED, ReadyLine, RecordLine};

const KERNEL_PANIC: &str = "Kernel panic";

/// One life of the guest, from power-on to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// What the guest found when it was up.
    pub ready: Option<ReadyLine>,
    /// The records that it announced, in its order.
    pub records: Vec<RecordLine>,
    /// Why it gave up, in its own or its kernel's words.
    pub failure: Option<String>,
}

impl Life {
    /// Reads a console's file; a file that is not there yet is a life that has not begun.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn read(console: &Path) -> io::Result<Life> {
        match fs::read(console) {
            Ok(bytes) => Ok(Life::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Life::default()),
            Err(error) => Err(error),
        }
    }

    /// Reads a console's text. A last line without its end was cut off by the guest's death and does not count.
    pub fn parse(text: &str) -> Life {
        let mut life = Life::default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            // The terminal driver ends lines with both characters.
            let line = line.trim_end_matches('\r');
            if let Some(record) = RecordLine::parse(line) {
                life.records.push(record);
            } else if let Some(ready) = ReadyLine::parse(line) {
                life.ready = Some(ready);
            } else if life.failure.is_none() && (line.starts_with(FAILED) || line.contains(KERNEL_PANIC)) {
                life.failure = Some(line.to_owned());
            }
        }
        life
    }

    /// Returns the highest number of a record that was announced, or 0.
    pub fn last_number(&self) -> u64 {
        self.records.last().map_or(0, |record| record.number)
    }

    /// Returns the longest time between two neighbouring records, in milliseconds, from record `from` on.
    pub fn longest_pause_ms(&self, from: u64) -> u64 {
        let late: Vec<u64> =
            self.records.iter().filter(|record| record.number >= from).map(|record| record.unix_ms).collect();
        late.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
