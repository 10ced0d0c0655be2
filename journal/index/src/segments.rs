//! Numbers for segments, so that an entry names its segment in four bytes. `INDEX.md` states the file.

mod file;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

pub(crate) use self::file::SegmentsError;
use self::file::{GROUP_BYTES_MAX, Line, Log};
use crate::error::IndexError;

/// Dead records that the file may have before it is looked at whether most are.
const DEAD_MIN: u64 = 1024;

/// What the index keeps of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRecord {
    /// Name of the segment's group, at most 63 bytes.
    pub group: String,
    /// Generation of the segment.
    pub generation: u64,
    /// The segment's place in its group's chain.
    pub sequence: u64,
    /// Hash of the segment.
    pub hash: [u8; 32],
}

/// As [`SegmentRecord`], with one name for all segments of a group.
#[derive(Debug)]
struct Known {
    group: Arc<str>,
    generation: u64,
    sequence: u64,
    hash: [u8; 32],
}

impl Known {
    fn record(&self) -> SegmentRecord {
        let (generation, sequence, hash) = (self.generation, self.sequence, self.hash);
        SegmentRecord { group: self.group.to_string(), generation, sequence, hash }
    }
}

/// A set of segment numbers, dense from the lowest on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    /// Words that were left out in front.
    skipped: usize,
    words: Vec<u64>,
}

impl Live {
    pub(crate) fn contains(&self, number: u32) -> bool {
        let word = (number as usize / 64).checked_sub(self.skipped).and_then(|place| self.words.get(place));
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn of(numbers: impl Iterator<Item = u32> + Clone) -> Live {
        let skipped = numbers.clone().min().unwrap_or(0) as usize / 64;
        let mut live = Live { skipped, words: Vec::new() };
        numbers.for_each(|number| live.insert(number));
        live
    }

    /// Numbers are given out upwards: none is below the first.
    fn insert(&mut self, number: u32) {
        let place = number as usize / 64 - self.skipped;
        if place >= self.words.len() {
            self.words.resize(place + 1, 0);
        }
        self.words[place] |= 1 << (number % 64);
    }
}

/// The segments that entries may name.
#[derive(Debug)]
pub(crate) struct Segments {
    log: Log,
    next: u32,
    known: HashMap<u32, Known>,
    /// Numbers by the first bytes of hashes.
    numbers: HashMap<u64, u32>,
    groups: HashMap<String, Arc<str>>,
    live: Arc<Live>,
    dead_records: u64,
}

impl Segments {
    /// Reads the file of a folder.
    pub(crate) fn open(folder: &Path) -> Result<Segments, SegmentsError> {
        let (log, next, lines) = Log::open(folder)?;
        let mut segments = Segments::new(log, next);
        for line in lines {
            segments.replay(line);
        }
        segments.renew_live();
        Ok(segments)
    }

    /// Begins a file without segments, in place of one that may be there.
    pub(crate) fn create(folder: &Path, next: u32) -> Result<Segments, IndexError> {
        Ok(Segments::new(Log::create(folder, next, &[])?, next))
    }

    fn new(log: Log, next: u32) -> Segments {
        let (known, numbers, groups) = (HashMap::new(), HashMap::new(), HashMap::new());
        Segments { log, next, known, numbers, groups, live: Arc::default(), dead_records: 0 }
    }

    /// Gives no number below `next` out.
    pub(crate) fn skip_to(&mut self, next: u32) {
        self.next = self.next.max(next);
    }

    pub(crate) fn count(&self) -> usize {
        self.known.len()
    }

    /// Numbers that are known, for a merge.
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Writes a record and answers its number.
    pub(crate) fn add(&mut self, record: &SegmentRecord) -> Result<u32, IndexError> {
        if record.group.len() > GROUP_BYTES_MAX {
            return Err(IndexError::Invalid { what: "the group's name", rule: "it has at most 63 bytes" });
        }
        let number = self.next;
        let next = number.checked_add(1).ok_or(IndexError::NumbersExhausted)?;
        self.log.append(&[Line::Known(number, record.clone())])?;
        self.next = next;
        self.learn(number, record);
        Arc::make_mut(&mut self.live).insert(number);
        Ok(number)
    }

    pub(crate) fn get(&self, number: u32) -> Option<SegmentRecord> {
        self.known.get(&number).map(Known::record)
    }

    pub(crate) fn find(&self, hash: &[u8; 32]) -> Option<u32> {
        let number = self.numbers.get(&prefix(hash))?;
        self.known.get(number).filter(|known| known.hash == *hash).map(|_| *number)
    }

    /// Forgets the segments that match and answers how many did.
    pub(crate) fn forget(
        &mut self,
        matches: impl Fn(u32, &SegmentRecord) -> bool,
    ) -> Result<usize, IndexError> {
        let matching = self.known.iter().filter(|(number, known)| matches(**number, &known.record()));
        let numbers: Vec<u32> = matching.map(|(number, _)| *number).collect();
        if numbers.is_empty() {
            return Ok(0);
        }
        // In memory first: they are gone even if the file cannot be written.
        numbers.iter().for_each(|number| self.unlearn(*number));
        self.renew_live();
        if self.dead_records + numbers.len() as u64 > DEAD_MIN.max(self.known.len() as u64) {
            self.compact()?;
        } else {
            self.log.append(&numbers.iter().map(|number| Line::Forgotten(*number)).collect::<Vec<_>>())?;
            self.dead_records += numbers.len() as u64;
        }
        Ok(numbers.len())
    }

    /// Bytes of memory, roughly: hash maps are between half and fully taken.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let known = self.known.capacity() * size_of::<(u32, Known, u8)>();
        let numbers = self.numbers.capacity() * size_of::<(u64, u32, u8)>();
        (known + numbers + self.live.words.len() * 8) as u64
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.log.file_bytes()
    }

    fn compact(&mut self) -> Result<(), IndexError> {
        let mut lines: Vec<Line> =
            self.known.iter().map(|(number, known)| Line::Known(*number, known.record())).collect();
        lines.sort_unstable_by_key(Line::number);
        self.log = Log::create(self.log.folder(), self.next, &lines)?;
        self.dead_records = 0;
        Ok(())
    }

    fn replay(&mut self, line: Line) {
        self.next = self.next.max(line.number().saturating_add(1));
        match line {
            Line::Known(number, record) => self.learn(number, &record),
            Line::Forgotten(number) => {
                self.unlearn(number);
                self.dead_records += 2;
            }
        }
    }

    fn learn(&mut self, number: u32, record: &SegmentRecord) {
        let group = self.groups.entry(record.group.clone()).or_insert_with(|| record.group.as_str().into());
        let (generation, sequence, hash) = (record.generation, record.sequence, record.hash);
        self.known.insert(number, Known { group: group.clone(), generation, sequence, hash });
        self.numbers.insert(prefix(&hash), number);
    }

    fn unlearn(&mut self, number: u32) {
        let Some(known) = self.known.remove(&number) else { return };
        let prefix = prefix(&known.hash);
        if self.numbers.get(&prefix) == Some(&number) {
            self.numbers.remove(&prefix);
        }
    }

    fn renew_live(&mut self) {
        self.live = Arc::new(Live::of(self.known.keys().copied()));
    }
}

fn prefix(hash: &[u8; 32]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| hash[i]))
}

#[cfg(test)]
mod tests;
