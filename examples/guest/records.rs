//! The guest's log: numbered, checksummed records of one size, appended one after the other.
//!
//! A record is 200 bytes of text, so that a person can read the log as well: its number, the boot that wrote it, the
//! guest's wall clock, filler, and a checksum over everything before it. Record `n` lies at offset `(n - 1) * 200`.

/// Size of one record, in bytes.
pub const RECORD_BYTES: usize = 200;

/// Bytes of a record before the checksum and the newline.
const BODY_BYTES: usize = RECORD_BYTES - CHECKSUM_BYTES - 1;
const CHECKSUM_BYTES: usize = 16;

/// One record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Number of the record, from 1, without gaps.
    pub number: u64,
    /// Number of the boot that wrote it, from 1.
    pub boot: u64,
    /// The guest's wall clock when it was written, in milliseconds since 1970.
    pub unix_ms: u64,
}

impl Record {
    /// Returns the record's bytes, which end with its checksum and a newline.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut text = format!("n={:012} boot={:06} ms={:013} fill=", self.number, self.boot, self.unix_ms);
        let mut seed = self.number;
        while text.len() < BODY_BYTES {
            seed = mix(seed);
            text.push_str(&format!("{seed:016x}"));
        }
        text.truncate(BODY_BYTES);
        let sum = checksum(text.as_bytes());
        let mut bytes = [b'\n'; RECORD_BYTES];
        bytes[..BODY_BYTES].copy_from_slice(text.as_bytes());
        bytes[BODY_BYTES..RECORD_BYTES - 1].copy_from_slice(format!("{sum:016x}").as_bytes());
        bytes
    }

    /// Reads a record back, or returns nothing if the bytes are not exactly what [`Record::encode`] gives.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut fields = text.split(' ');
        let number = fields.next()?.strip_prefix("n=")?.parse().ok()?;
        let boot = fields.next()?.strip_prefix("boot=")?.parse().ok()?;
        let unix_ms = fields.next()?.strip_prefix("ms=")?.parse().ok()?;
        let record = Record { number, boot, unix_ms };
        (record.encode()[..] == *bytes).then_some(record)
    }

    /// Returns the checksum that the record ends with.
    pub fn checksum(&self) -> u64 {
        checksum(&self.encode()[..BODY_BYTES])
    }
}

/// What a reading of the whole log found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The highest number of a whole record.
    pub records: u64,
    /// Damaged records that have a whole one after them: they were synced once, so damage is a loss.
    pub torn: u64,
    /// Numbers that are missing between whole records.
    pub holes: u64,
    /// Wall clock of the last whole record, in milliseconds since 1970; 0 if there is none.
    pub last_ms: u64,
    /// Length of the log up to the end of the last whole record, in bytes.
    pub valid_bytes: u64,
    /// Bytes after that: a record whose write was under way at the crash.
    pub tail_bytes: u64,
}

impl Scan {
    /// Adds the next slot of the log: [`RECORD_BYTES`] bytes, fewer only at the end of the file.
    pub fn add(&mut self, slot: &[u8]) {
        let Some(record) = Record::decode(slot) else {
            self.tail_bytes += slot.len() as u64;
            return;
        };
        let damaged = self.tail_bytes.div_ceil(RECORD_BYTES as u64);
        let absent = record.number.saturating_sub(self.records + 1);
        self.torn += damaged;
        self.holes += absent.saturating_sub(damaged) + u64::from(record.number <= self.records);
        self.records = self.records.max(record.number);
        self.last_ms = record.unix_ms;
        self.valid_bytes += self.tail_bytes + slot.len() as u64;
        self.tail_bytes = 0;
    }
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): small, and the guest is built from `std` alone.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One step of splitmix64 (Steele, Lea, Flood 2014): turns any number into one that looks random.
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[path = "records/tests.rs"]
mod tests;
