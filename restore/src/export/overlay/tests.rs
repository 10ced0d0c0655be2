use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{CHUNK_SECTORS, SectorSet};

const SECTORS: u64 = 3 * CHUNK_SECTORS;

proptest! {
    #[test]
    fn a_sector_set_is_a_set(inserted in vec((0..SECTORS, 1..200u64), 0..20), from in 0..SECTORS, length in 1..CHUNK_SECTORS) {
        let mut set = SectorSet::new(SECTORS);
        let mut model = BTreeSet::new();
        for (start, length) in inserted {
            let end = (start + length).min(SECTORS);
            set.insert(start, end);
            model.extend(start..end);
        }
        let end = (from + length).min(SECTORS);
        let mut at = from;
        while at < end {
            let (next, inside) = set.run(at, end);
            prop_assert!(next > at && next <= end);
            prop_assert!((at..next).all(|sector| model.contains(&sector) == inside));
            prop_assert!(next == end || model.contains(&next) != inside, "the run at {at} is too short");
            at = next;
        }
    }
}
