use proptest::prelude::*;

use super::*;

fn ranges(list: &[Range<u64>]) -> Ranges {
    let mut ranges = Ranges::default();
    list.iter().for_each(|range| ranges.insert(range.clone()));
    ranges
}

#[test]
fn ranges_that_touch_become_one() {
    let set = ranges(&[0..10, 20..30, 10..20]);
    assert!(set.iter().eq(std::iter::once(0..30)));
    assert_eq!((set.bytes(), set.len()), (30, 1));
}

#[test]
fn what_is_missing_comes_in_pieces() {
    let set = ranges(&[0..100, 150..160, 300..400]);
    assert_eq!(set.missing(450, 100, 0), [100..150, 160..260, 260..300, 400..450]);
    assert_eq!(Ranges::default().missing(250, 100, 0), [0..100, 100..200, 200..250]);
    assert_eq!(ranges(&[0..250; 1]).missing(250, 100, 0), []);
}

#[test]
fn a_short_range_between_gaps_is_sent_again() {
    let set = ranges(&[0..100, 150..160, 300..400]);
    assert_eq!(set.missing(450, 1000, 20), [100..300, 400..450]);
}

proptest! {
    #[test]
    fn a_set_holds_what_was_inserted(list in prop::collection::vec((0u64..200, 0u64..40), 0..30), least in 0u64..10) {
        let mut here = vec![false; 256];
        let mut set = Ranges::default();
        for (start, length) in list {
            set.insert(start..start + length);
            here[start as usize..(start + length) as usize].fill(true);
        }
        prop_assert_eq!(set.bytes(), here.iter().filter(|here| **here).count() as u64);
        let mut missing = vec![false; 256];
        for piece in set.missing(256, 16, least) {
            prop_assert!(piece.end - piece.start <= 16 && !piece.is_empty());
            for byte in piece {
                prop_assert!(!missing[byte as usize], "nothing is sent twice");
                missing[byte as usize] = true;
            }
        }
        for (here, missing) in here.iter().zip(&missing) {
            prop_assert!(*here || *missing);
            prop_assert!(least > 0 || !(*here && *missing));
        }
    }
}
