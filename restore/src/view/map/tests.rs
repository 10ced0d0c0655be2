use super::*;

fn data(sector: u64, sectors: u64, frame: u32) -> Extent {
    let content = ExtentContent::Frame { frame, offset: 0 };
    Extent { volume: 0, offset: sector * 512, length: sectors * 512, content }
}

fn zero(sector: u64, sectors: u64) -> Extent {
    Extent { content: ExtentContent::Zero, ..data(sector, sectors, 0) }
}

/// Extents newest first; the answer has start, sectors, frame and sector in the frame.
fn check(size_sectors: u64, extents: &[Extent], expected: &[(u64, u32, u32, u32)]) -> VolumeMap {
    let mut builder = MapBuilder::new(size_sectors * 512);
    let place = |content| match content {
        ExtentContent::Frame { frame, offset } => Some((frame, offset)),
        _ => None,
    };
    extents.iter().for_each(|extent| builder.add(extent, place));
    let map = builder.finish();
    let found: Vec<_> = map
        .pieces()
        .iter()
        .map(|piece| (piece.start, piece.sectors, piece.frame, piece.frame_sector))
        .collect();
    assert_eq!(found, expected);
    map
}

#[test]
fn newer_extents_hide_older_ones() {
    check(100, &[data(10, 5, 1), data(8, 10, 2)], &[(8, 2, 2, 0), (10, 5, 1, 0), (15, 3, 2, 7)]);
    check(100, &[data(10, 5, 1), data(10, 5, 2)], &[(10, 5, 1, 0)]);
    check(100, &[data(10, 5, 1), data(12, 5, 2)], &[(10, 5, 1, 0), (15, 2, 2, 3)]);
    check(100, &[data(10, 5, 1), data(8, 5, 2)], &[(8, 2, 2, 0), (10, 5, 1, 0)]);
    check(
        100,
        &[data(2, 1, 1), data(4, 1, 1), data(0, 6, 2)],
        &[(0, 2, 2, 0), (2, 1, 1, 0), (3, 1, 2, 3), (4, 1, 1, 0), (5, 1, 2, 5)],
    );
}

#[test]
fn zeroes_hide_older_data_and_take_no_piece() {
    check(100, &[zero(10, 5), data(8, 10, 2)], &[(8, 2, 2, 0), (15, 3, 2, 7)]);
    check(100, &[data(10, 5, 1), zero(0, 100)], &[(10, 5, 1, 0)]);
}

#[test]
fn what_lies_behind_the_end_is_cut_off() {
    check(12, &[data(10, 5, 1), data(12, 5, 2)], &[(10, 2, 1, 0)]);
}

#[test]
fn runs_are_told_without_reading() {
    let map = check(100, &[data(10, 5, 1), data(15, 5, 2)], &[(10, 5, 1, 0), (15, 5, 2, 0)]);
    let run = |offset: u64, length: u64| {
        let run = map.run(offset * 512, length * 512);
        (run.length / 512, run.zero)
    };
    assert_eq!(run(0, 100), (10, true));
    assert_eq!(run(0, 4), (4, true));
    assert_eq!(run(10, 90), (10, false));
    assert_eq!(run(12, 3), (3, false));
    assert_eq!(run(20, 80), (80, true));
}
