use super::*;

/// Writes (offset, length, fill) in sectors; `under` puts a range below what is there.
fn apply(map: &mut ExtentMap, model: &mut [u8], offset: u64, length: u64, fill: u8, under: bool) {
    let source = match fill {
        0 => Source::Zero,
        _ => Source::Data { payload: Payload::from_vec(vec![fill; length as usize]), start: 0 },
    };
    let cells = &mut model[offset as usize..(offset + length) as usize];
    if under {
        map.fill_gaps(offset, length, &source);
        cells.iter_mut().filter(|cell| **cell == u8::MAX).for_each(|cell| *cell = fill);
    } else {
        map.insert(offset, length, source);
        cells.fill(fill);
    }
}

fn check(map: &ExtentMap, model: &[u8]) {
    let mut actual = vec![u8::MAX; model.len()];
    let (mut end, mut payload_bytes) = (0, 0);
    for range in map.ranges() {
        assert!(range.offset >= end, "ranges overlap");
        end = range.offset + range.length;
        let cells = &mut actual[range.offset as usize..end as usize];
        match range.data {
            None => cells.fill(0),
            Some(data) => {
                cells.copy_from_slice(data);
                payload_bytes += range.length;
            }
        }
    }
    assert_eq!(actual, model);
    assert_eq!(map.payload_bytes(), payload_bytes);
}

#[test]
fn random_ranges_equal_a_flat_model() {
    for seed in 0..200_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        let (mut map, mut model) = (ExtentMap::default(), vec![u8::MAX; 200]);
        for _ in 0..60 {
            let offset = next(199);
            let length = 1 + next((200 - offset).min(40));
            let (fill, under) = (next(5) as u8, next(4) == 0);
            apply(&mut map, &mut model, offset, length, fill, under);
            check(&map, &model);
        }
    }
}

#[test]
fn a_write_in_the_middle_of_another_splits_it() {
    let (mut map, mut model) = (ExtentMap::default(), vec![u8::MAX; 100]);
    apply(&mut map, &mut model, 10, 50, 1, false);
    apply(&mut map, &mut model, 20, 10, 2, false);
    check(&map, &model);
    assert_eq!(map.ranges().count(), 3);
}
