use journal_format::{Epoch, Generation, Hash};

use super::*;

const START: Timestamp = Timestamp(0);
const LATER: Timestamp = Timestamp(31_000_000_000);

fn at(sequence: u64) -> Position {
    Position {
        generation: Generation(1),
        sequence: Sequence(sequence),
        epoch: Epoch(sequence),
        hash: Hash([sequence as u8; 32]),
    }
}

#[test]
fn the_journal_keeps_what_any_target_lacks() {
    let mut standings = Standings::new(2, START);
    assert_eq!(standings.heard(0, Some(at(9)), true, START), Heard::OnChain);
    assert_eq!(standings.floor(), None, "the other one may have less");
    assert_eq!(standings.heard(1, None, true, START), Heard::OnChain);
    assert_eq!(standings.floor(), None);
    standings.received(1, at(4));
    assert_eq!((standings.floor(), standings.everywhere()), (Some(at(4)), Sequence(4)));
    standings.received(1, at(12));
    assert_eq!((standings.floor(), standings.everywhere()), (Some(at(9)), Sequence(9)));
}

#[test]
fn a_full_journal_leaves_the_slowest_behind_and_never_the_last() {
    let mut standings = Standings::new(2, START);
    standings.heard(0, Some(at(9)), true, START);
    assert_eq!(standings.give_up_slowest(), Some(1), "it was never heard");
    assert_eq!(standings.floor(), Some(at(9)));
    assert_eq!(standings.everywhere(), Sequence(0), "it is not known to have anything");
    assert_eq!(standings.give_up_slowest(), None);
    assert!(standings.lost_place(1).is_some());
    let Heard::LostPlace(reason) = standings.heard(1, Some(at(3)), false, LATER) else {
        panic!("it is behind")
    };
    assert!(reason.contains("nearly full"), "{reason}");
    assert_eq!(standings.heard(1, Some(at(9)), true, LATER), Heard::OnChain, "somebody brought it the rest");
    assert_eq!(standings.give_up_slowest(), None, "both have the same");
}

#[test]
fn a_new_journal_goes_on_from_the_head_that_is_furthest() {
    let mut standings = Standings::new(3, START);
    assert_eq!(standings.heard(0, Some(at(5)), false, START), Heard::Wait);
    assert_eq!(standings.heard(1, Some(at(8)), false, START), Heard::Wait, "the third may be further");
    assert_eq!(standings.heard(2, None, false, START), Heard::Wait, "the second is");
    assert_eq!(standings.heard(1, Some(at(8)), false, START), Heard::Rebase);
    standings.rebased(1, Some(at(8)));
    assert!(matches!(standings.heard(0, Some(at(5)), false, START), Heard::LostPlace(_)));
    assert_eq!(standings.floor(), None, "the third has not been asked again");
}

#[test]
fn a_target_that_cannot_be_reached_is_not_waited_for_for_ever() {
    let mut standings = Standings::new(2, START);
    assert_eq!(standings.heard(0, Some(at(5)), false, START), Heard::Wait);
    assert_eq!(standings.heard(0, Some(at(5)), false, LATER), Heard::Rebase);
    let mut standings = Standings::new(2, START);
    standings.heard(1, Some(at(8)), false, START);
    assert_eq!(standings.heard(0, Some(at(5)), false, LATER), Heard::Wait, "the other one leads");
    standings.disconnected(1);
    assert_eq!(standings.heard(0, Some(at(5)), false, LATER), Heard::Rebase);
}

#[test]
fn a_target_alone_decides_where_the_chain_goes_on() {
    let mut standings = Standings::new(1, START);
    assert_eq!(standings.heard(0, Some(at(5)), false, START), Heard::Rebase);
    standings.rebased(0, Some(at(5)));
    assert_eq!(standings.floor(), Some(at(5)));
    assert!(standings.refused(0, "damaged"), "the journal makes it anew");
    assert_eq!(standings.give_up_slowest(), None);
}

#[test]
fn what_others_took_is_not_made_anew_for_one_that_refuses_it() {
    let mut standings = Standings::new(2, START);
    standings.heard(0, Some(at(5)), true, START);
    standings.heard(1, Some(at(5)), true, START);
    assert!(!standings.refused(1, "damaged"));
    standings.received(1, at(6));
    for _ in 0..REFUSALS_MAX {
        assert_eq!(standings.lost_place(1), None, "a receipt came in between");
        assert!(!standings.refused(1, "damaged"));
    }
    assert!(standings.lost_place(1).unwrap().contains("damaged"));
    standings.received(0, at(9));
    assert_eq!((standings.floor(), standings.everywhere()), (Some(at(9)), Sequence(6)));
}
