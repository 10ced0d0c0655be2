//! What is in the image besides Debian's packages: a database, log segments and incompressible data, all from a seed.

use tests::workload::Random;

/// Bytes of one page of the database.
pub(super) const PAGE_BYTES: usize = 8192;

/// Bytes before the rows of a page.
const PAGE_HEADER_BYTES: usize = 24;

const WORDS: usize = 1024;

/// Writes like a program that has a vocabulary.
pub(super) struct Author {
    random: Random,
    words: Vec<String>,
    /// Counts rows and lines; time goes on with it.
    number: u64,
}

impl Author {
    pub(super) fn new(seed: u64) -> Author {
        // The vocabulary is the same for every seed, as it would be for the next release of a program.
        let mut letters = Random::new(1);
        let words = (0..WORDS).map(|_| word(&mut letters)).collect();
        Author { random: Random::new(seed), words, number: 0 }
    }

    /// Incompressible bytes.
    pub(super) fn noise(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.random.below(u64::MAX).to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// Pages full of rows, with a header that begins with a log position, as databases have.
    pub(super) fn pages(&mut self, count: usize) -> Vec<u8> {
        (0..count).flat_map(|_| self.page()).collect()
    }

    fn page(&mut self) -> Vec<u8> {
        let mut page = Vec::with_capacity(PAGE_BYTES + 512);
        self.number += 1;
        page.extend((self.number << 13).to_le_bytes());
        page.extend((self.random.below(1 << 16) as u16).to_le_bytes());
        page.resize(PAGE_HEADER_BYTES, 0);
        // Rows that were deleted or moved leave room behind.
        let free = self.random.below(PAGE_BYTES as u64 / 4) as usize;
        while page.len() < PAGE_BYTES - free {
            self.row(&mut page);
        }
        page.resize(PAGE_BYTES, 0);
        page
    }

    fn row(&mut self, page: &mut Vec<u8>) {
        self.number += 1;
        page.extend(self.number.to_le_bytes());
        page.extend((1_767_225_600_000_000 + self.number * 1_000_000).to_le_bytes());
        page.extend([1, 0, self.random.below(4) as u8, 0, 0, 0, 0, 0]);
        let (customer, amount) = (self.random.below(20_000), self.random.below(100_000));
        let state = ["new", "paid", "packed", "delivered"][self.random.below(4) as usize];
        let text = self.sentence(5, 12);
        page.extend(
            format!(
                "{{\"customer\":{customer},\"state\":\"{state}\",\"amount\":{amount},\"note\":\"{text}\"}}"
            )
            .as_bytes(),
        );
        page.resize(page.len().next_multiple_of(8), 0);
    }

    /// Changes a few bytes of a page: its log position and a value in one of its rows.
    pub(super) fn touch(&mut self, page: &mut [u8]) {
        self.number += 1;
        page[..8].copy_from_slice(&(self.number << 13).to_le_bytes());
        let place = PAGE_HEADER_BYTES as u64 + self.random.below((PAGE_BYTES - PAGE_HEADER_BYTES - 6) as u64);
        let value = self.random.below(u64::MAX).to_le_bytes();
        page[place as usize..place as usize + 6].copy_from_slice(&value[..6]);
    }

    /// Lines of a log.
    pub(super) fn log(&mut self, length: usize) -> Vec<u8> {
        let mut lines = String::with_capacity(length + 256);
        while lines.len() < length {
            self.number += 1;
            let (seconds, micros) = (self.number / 97, self.number * 10_309 % 1_000_000);
            let (unit, process) = (self.random.below(24) as usize, 600 + self.random.below(40));
            let text = self.sentence(4, 10);
            let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
            lines += &format!(
                "2026-01-01T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00 host {}[{process}]: {text} id={:012x}\n",
                self.words[unit],
                self.random.below(1 << 48)
            );
        }
        lines.truncate(length);
        lines.into_bytes()
    }

    /// `count` different numbers below `bound`, in order.
    pub(super) fn choose(&mut self, count: usize, bound: u64) -> Vec<u64> {
        let mut chosen = std::collections::BTreeSet::new();
        while chosen.len() < count.min(bound as usize) {
            chosen.insert(self.random.below(bound));
        }
        chosen.into_iter().collect()
    }

    fn sentence(&mut self, least: u64, most: u64) -> String {
        let count = least + self.random.below(most - least + 1);
        let words: Vec<&str> = (0..count)
            .map(|_| {
                // Some words are far more common than others.
                let common = 1 + self.random.below(WORDS as u64);
                let bound = 1 + self.random.below(common);
                self.words[self.random.below(bound) as usize].as_str()
            })
            .collect();
        words.join(" ")
    }
}

fn word(random: &mut Random) -> String {
    const CONSONANTS: &[u8] = b"bcdfghklmnprstvw";
    const VOWELS: &[u8] = b"aeiou";
    let mut word = String::new();
    for _ in 0..1 + random.below(4) {
        word.push(char::from(CONSONANTS[random.below(CONSONANTS.len() as u64) as usize]));
        word.push(char::from(VOWELS[random.below(VOWELS.len() as u64) as usize]));
    }
    word
}
