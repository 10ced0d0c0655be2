use super::*;

const LIMIT: u64 = 4 * BLOCK_BYTES;

/// A volume of blocks that each hold one byte value.
fn leg(offset: u64, buffer: &mut [u8]) -> bool {
    buffer.fill((offset / BLOCK_BYTES) as u8);
    true
}

fn payload(blocks: impl IntoIterator<Item = (u8, usize)>) -> Payload {
    let changed = |(fill, differing): (u8, usize)| {
        let mut block = vec![fill; BLOCK];
        block[..differing].fill(fill ^ 0xff);
        block
    };
    Payload::from_vec(blocks.into_iter().flat_map(changed).collect())
}

#[test]
fn differing_bytes_are_counted() {
    let (one, mut other) = (vec![7; BLOCK], vec![7; BLOCK]);
    assert_eq!(differing_bytes(&one, &other), 0);
    other[1000..1300].fill(9);
    assert_eq!(differing_bytes(&one, &other), 300);
    assert_eq!(differing_bytes(&one, &vec![8; BLOCK]), BLOCK);
}

#[test]
fn what_is_similar_is_kept_and_what_is_not_or_equal_is_not() {
    let (previous, budget) = (Previous::new(), PreviousBudget::new(LIMIT));
    previous.look(2 * BLOCK_BYTES, &payload([(2, 10), (3, 2000), (4, 1), (5, 0)]), &budget, leg);
    let kept = previous.take();
    let mut numbers: Vec<u64> = kept.keys().copied().collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 4]);
    assert_eq!(kept[&4][..], [4; BLOCK]);
    assert!(previous.take().is_empty());
}

#[test]
fn the_first_content_of_an_epoch_counts() {
    let (previous, budget) = (Previous::new(), PreviousBudget::new(LIMIT));
    previous.look(0, &payload([(0, 1)]), &budget, leg);
    let second = |_, buffer: &mut [u8]| {
        buffer.fill(1);
        true
    };
    previous.look(0, &payload([(1, 1)]), &budget, second);
    assert_eq!(previous.take()[&0][..], [0; BLOCK]);
}

#[test]
fn a_block_that_is_kept_is_not_read_again_in_its_epoch() {
    let (previous, budget) = (Previous::new(), PreviousBudget::new(LIMIT));
    let mut looks = 0;
    let mut write = || {
        previous.look(0, &payload([(0, 1), (1, 1)]), &budget, |offset, buffer| {
            looks += 1;
            leg(offset, buffer)
        });
        looks
    };
    assert_eq!((write(), write()), (2, 2));
    previous.take();
    assert_eq!(write(), 4);
}

#[test]
fn memory_is_bounded_and_given_back() {
    let (previous, budget) = (Previous::new(), PreviousBudget::new(LIMIT));
    let many = || payload((0..10).map(|number| (number, 1)));
    previous.look(0, &many(), &budget, leg);
    let kept = [previous.take()];
    assert_eq!(kept[0].len() as u64 * BLOCK_BYTES, LIMIT);
    previous.look(0, &many(), &budget, leg);
    assert!(previous.take().is_empty());
    budget.release(&kept);
    previous.look(0, &many(), &budget, leg);
    assert_eq!(previous.take().len(), 4);
}

#[test]
fn what_is_not_at_hand_is_not_waited_for_and_parts_of_blocks_are_left_out() {
    let (previous, budget) = (Previous::new(), PreviousBudget::new(LIMIT));
    previous.look(0, &payload([(0, 1)]), &budget, |_, _| false);
    previous.look(512, &payload([(0, 1)]), &budget, leg);
    assert!(previous.take().is_empty());
}

#[test]
fn looking_in_vain_becomes_rare_and_is_taken_up_again() {
    let (previous, budget) = (Previous::new(), PreviousBudget::new(LIMIT));
    let mut looks = 0;
    let mut write = |differing| {
        let before = looks;
        previous.look(0, &payload([(0, differing)]), &budget, |offset, buffer| {
            looks += 1;
            leg(offset, buffer)
        });
        looks - before
    };
    let early: u32 = (0..PATIENCE).map(|_| write(BLOCK)).sum();
    let late: u32 = (0..10 * RARE).map(|_| write(BLOCK)).sum();
    assert_eq!((early, late), (PATIENCE, 10));
    while write(1) == 0 {}
    previous.take();
    assert_eq!(write(1), 1);
}
