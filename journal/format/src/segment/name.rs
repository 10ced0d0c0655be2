//! Names of segments' files in a journal and in the folder of a seed.

use crate::Sequence;

const DIGITS: usize = 20;

/// Name of a segment's file.
pub fn file_name(sequence: Sequence) -> String {
    format!("{:0DIGITS$}.seg", sequence.0)
}

/// The sequence in such a name; `None` for other names.
pub fn sequence_of(name: &str) -> Option<Sequence> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == DIGITS)?;
    digits.parse().ok().map(Sequence)
}
