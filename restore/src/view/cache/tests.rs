use super::*;

fn frame(size: usize) -> Arc<Vec<u8>> {
    Arc::new(vec![0; size])
}

#[test]
fn the_least_recently_used_frame_goes_first() {
    let cache = FrameCache::new(3000);
    (0..3).for_each(|number| cache.put(number, &frame(1000)));
    assert!(cache.get(0).is_some());
    cache.put(3, &frame(1000));
    let kept: Vec<bool> = (0..4).map(|number| cache.get(number).is_some()).collect();
    assert_eq!(kept, [true, false, true, true]);
    assert_eq!(cache.state().bytes, 3000);
}

#[test]
fn memory_is_counted_once_for_a_frame_that_is_put_twice() {
    let cache = FrameCache::new(2500);
    cache.put(1, &frame(1000));
    cache.put(1, &frame(1000));
    assert_eq!(cache.state().bytes, 1000);
    cache.put(2, &frame(9000));
    assert!(cache.get(2).is_none() && cache.get(1).is_some(), "a frame over the limit is not kept");
}
