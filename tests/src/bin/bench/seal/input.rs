//! What the guest writes.

use std::borrow::Cow;

/// Bytes of a page of the database.
const PAGE: usize = 8192;

/// Known content comes again in runs of so many bytes.
const RUN: usize = 64 << 10;

/// What is written, and how it is sealed.
pub(super) struct Input {
    pub(super) name: &'static str,
    pub(super) level: i32,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Zero,
    Known,
    Text,
    Random,
    Database,
}

pub(super) const INPUTS: [Input; 7] = [
    Input { name: "zero", level: 3, kind: Kind::Zero },
    Input { name: "duplicate", level: 3, kind: Kind::Known },
    Input { name: "compressible-3", level: 3, kind: Kind::Text },
    Input { name: "compressible-1", level: 1, kind: Kind::Text },
    Input { name: "compressible--1", level: -1, kind: Kind::Text },
    Input { name: "incompressible", level: 3, kind: Kind::Random },
    Input { name: "database", level: 3, kind: Kind::Database },
];

/// What is written.
pub(super) struct Content {
    kind: Kind,
    pub(super) data: Vec<u8>,
    /// What is written, sealed and received before.
    pub(super) before: Option<Vec<u8>>,
}

impl Input {
    pub(super) fn content(&self, bytes: usize) -> Content {
        let mut random = Random(0x7468_6972_6473_6974);
        let (data, before) = match self.kind {
            Kind::Zero => (vec![0; bytes], None),
            Kind::Text => (text(bytes, &mut random), None),
            Kind::Random => (noise(bytes, &mut random), None),
            Kind::Known => {
                let before = noise(bytes, &mut random);
                // In another order, so that what was there before is not similar.
                (before.rchunks(RUN).flatten().copied().collect(), Some(before))
            }
            Kind::Database => {
                let before = pages(bytes, &mut random);
                (changed(&before, &mut random), Some(before))
            }
        };
        Content { kind: self.kind, data, before }
    }
}

impl Content {
    /// What has to be hashed.
    pub(super) fn hashed(&self) -> impl Iterator<Item = &[u8]> {
        let bases = self.before.as_deref().filter(|_| self.kind == Kind::Database);
        std::iter::once(&self.data[..]).chain(bases)
    }

    /// What has to be compressed.
    pub(super) fn compressed(&self) -> Cow<'_, [u8]> {
        match (self.kind, &self.before) {
            (Kind::Zero | Kind::Known, _) => Cow::Borrowed(&[]),
            (Kind::Database, Some(before)) => {
                self.data.iter().zip(before).map(|(new, old)| new ^ old).collect()
            }
            _ => Cow::Borrowed(&self.data),
        }
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

fn noise(bytes: usize, random: &mut Random) -> Vec<u8> {
    (0..bytes / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Words, of which few are frequent, with numbers between them: half as large at level 3.
fn text(bytes: usize, random: &mut Random) -> Vec<u8> {
    let word = |random: &mut Random| -> Vec<u8> {
        let length = 3 + random.below(8);
        (0..length).map(|_| b'a' + random.below(26) as u8).collect()
    };
    let words: Vec<Vec<u8>> = (0..1 << 14).map(|_| word(random)).collect();
    let mut text = Vec::with_capacity(bytes + 32);
    while text.len() < bytes {
        let rank = random.below(1 << 14);
        // The square makes small ranks frequent.
        text.extend_from_slice(&words[(rank * rank) >> 14]);
        text.push(b' ');
        if random.below(4) == 0 {
            text.extend_from_slice(random.next().to_string().as_bytes());
        }
    }
    text.truncate(bytes);
    text
}

/// Pages with a head, rows and free space.
fn pages(bytes: usize, random: &mut Random) -> Vec<u8> {
    let words = text(1 << 20, random);
    let mut pages = Vec::with_capacity(bytes + PAGE);
    while pages.len() < bytes {
        let end = pages.len() + PAGE;
        pages.extend_from_slice(&random.next().to_le_bytes());
        pages.extend_from_slice(&[0, 4, 0, 0, 24, 0, 64, 31, 0, 32, 4, 32, 0, 0, 0, 0]);
        while pages.len() + 256 < end {
            let number = (pages.len() as u64).to_le_bytes();
            pages.extend_from_slice(&number);
            pages.extend_from_slice(&(random.next() >> 40).to_le_bytes());
            let from = random.below(words.len() - 128);
            pages.extend_from_slice(&words[from..from + 40 + random.below(80)]);
        }
        pages.resize(end, 0);
    }
    pages.truncate(bytes);
    pages
}

/// The log's position in the head, two values and the check at the end of each page are new.
fn changed(pages: &[u8], random: &mut Random) -> Vec<u8> {
    let mut pages = pages.to_vec();
    for page in pages.chunks_exact_mut(PAGE) {
        for place in [0, 24 + random.below(7900), 24 + random.below(7900), PAGE - 8] {
            page[place..place + 8].copy_from_slice(&random.next().to_le_bytes());
        }
    }
    pages
}
