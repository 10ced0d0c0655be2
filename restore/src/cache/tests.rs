use super::*;

fn put(cache: &Cache<u32, ()>, key: u32, bytes: u64) {
    cache.put(key, &Arc::new(()), bytes);
}

#[test]
fn the_least_recently_used_goes_first() {
    let cache = Cache::new(3000);
    (0..3).for_each(|number| put(&cache, number, 1000));
    assert!(cache.get(&0).is_some());
    put(&cache, 3, 1000);
    let kept: Vec<bool> = (0..4).map(|number| cache.get(&number).is_some()).collect();
    assert_eq!(kept, [true, false, true, true]);
    assert_eq!(cache.state().bytes, 3000);
}

#[test]
fn memory_is_counted_once_for_what_is_put_twice() {
    let cache = Cache::new(2500);
    put(&cache, 1, 1000);
    put(&cache, 1, 1000);
    assert_eq!(cache.state().bytes, 1000);
    put(&cache, 2, 9000);
    assert!(cache.get(&2).is_none() && cache.get(&1).is_some(), "a frame over the limit is not kept");
}
