use super::*;

const BLOCKS: u64 = 64;

/// A seeded history with up to 16 writes in flight on two volumes, and for each write the images right after it reached the disk.
struct Run {
    history: History,
    /// Numbers in the order in which the writes reached the disk.
    applied: Vec<u64>,
}

fn run(seed: u64, writes: u64) -> Run {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let (mut history, mut applied, mut flying, mut now) = (History::default(), Vec::new(), Vec::new(), 0);
    while (applied.len() as u64) < writes {
        now += 1;
        if flying.len() < 16 && next(2) == 0 {
            let block = next(BLOCKS);
            let blocks = 1 + next((BLOCKS - block).min(4));
            let volume = next(2) as usize;
            flying.push(history.writes.len());
            history.writes.push(Write { volume, block, blocks, issued: now, acknowledged: None });
        } else if !flying.is_empty() {
            let number = flying.swap_remove(next(flying.len() as u64) as usize);
            history.writes[number].acknowledged = Some(now);
            applied.push(number as u64);
        }
    }
    Run { history, applied }
}

fn apply(history: &History, numbers: &[u64]) -> Vec<Vec<u8>> {
    let mut images = vec![vec![0; BLOCKS as usize * BLOCK_BYTES]; 2];
    for &number in numbers {
        let write = &history.writes[number as usize];
        for block in write.block..write.block + write.blocks {
            let at = block as usize * BLOCK_BYTES;
            images[write.volume][at..at + BLOCK_BYTES].copy_from_slice(&stamp(number, write.volume, block));
        }
    }
    images
}

#[test]
fn every_prefix_of_the_order_on_disk_is_accepted() {
    for seed in 0..5 {
        let Run { history, applied } = run(seed, 100);
        for length in 0..=applied.len() {
            let images = apply(&history, &applied[..length]);
            assert_eq!(history.check(&images, CutWindow::default()), Ok(()), "seed {seed} length {length}");
        }
    }
}

#[test]
fn a_dropped_write_is_noticed_unless_nobody_could_tell() {
    let (mut noticed, mut mutants) = (0, 0);
    for seed in 0..20 {
        let Run { history, applied } = run(seed, 100);
        for dropped in (0..60).step_by(6) {
            let mut order = applied.clone();
            order.remove(dropped);
            let images = apply(&history, &order);
            // A write that later ones hide in full leaves no trace.
            if images != apply(&history, &applied) {
                mutants += 1;
                noticed += u32::from(history.check(&images, CutWindow::default()).is_err());
            }
        }
    }
    println!("{noticed} of {mutants} mutants noticed");
    assert!(mutants > 40 && noticed * 100 >= mutants * 95);
}

#[test]
fn torn_misplaced_and_foreign_blocks_are_noticed() {
    let Run { history, applied } = run(3, 50);
    let good = apply(&history, &applied);
    let first = &history.writes[applied[49] as usize];
    let (volume, at) = (first.volume, first.block as usize * BLOCK_BYTES);
    let damaged = |damage: &dyn Fn(&mut [u8])| {
        let mut images = good.clone();
        damage(&mut images[volume][at..at + BLOCK_BYTES]);
        history.check(&images, CutWindow::default()).unwrap_err().reason
    };
    assert!(damaged(&|block| block[2048..].fill(0)).contains("torn"));
    assert!(damaged(&|block| block.fill(9)).contains("nobody"));
    let elsewhere = stamp(applied[49], volume, BLOCKS + 1);
    assert!(damaged(&|block| block.copy_from_slice(&elsewhere)).contains("misplaced"));
}

#[test]
fn the_window_of_a_cut_binds_both_ways() {
    let Run { history, applied } = run(5, 80);
    let acknowledged = |number: u64| history.writes[number as usize].acknowledged.unwrap();
    let images = apply(&history, &applied[..40]);
    let late = CutWindow { asked: acknowledged(applied[79]) + 1, answered: None };
    assert!(history.check(&images, late).is_err(), "later acknowledged writes are missing");
    let early = CutWindow { asked: 0, answered: Some(0) };
    assert!(history.check(&images, early).is_err(), "writes issued after the answer are there");
}
