use proptest::prelude::*;

use super::*;

fn keys() -> GroupKeys {
    BucketKeys::new("site/vm").unwrap().group(&"db".parse().unwrap())
}

fn check(key: Path, expect: &str) {
    assert_eq!(key.as_ref(), expect);
}

#[test]
fn names_are_those_of_the_document() {
    let bucket = BucketKeys::new("site/vm").unwrap();
    check(bucket.store(), "site/vm/store.json");
    check(keys().claim(ClaimNumber(7)), "site/vm/groups/db/claims/c0000000007.json");
    let name = SegmentName { claim: ClaimNumber(8), sequence: Sequence(90) };
    check(keys().segment(name), "site/vm/groups/db/segments/c0000000008-s00000000000000000090.seg");
    check(keys().heartbeat(), "site/vm/groups/db/heartbeat.json");
    check(keys().checked(), "site/vm/groups/db/checked.json");
    check(BucketKeys::new("").unwrap().store(), "store.json");
}

#[test]
fn other_spellings_are_not_ours() {
    let folder = "site/vm/groups/db/segments";
    for name in [
        "c0000000008-s00000000000000000000.seg",
        "c0000000000-s00000000000000000001.seg",
        "c000000008-s00000000000000000001.seg",
        "c00000000008-s00000000000000000001.seg",
        "c+000000008-s00000000000000000001.seg",
        "c0000000008-s0000000000000000001.seg",
        "c0000000008-s99999999999999999999.seg",
        "c0000000008-s00000000000000000001.seg.tmp",
        "g0000000008-s00000000000000000001.seg",
        "c0000000008-s00000000000000000001.seg/x",
    ] {
        assert_eq!(keys().segment_name(&Path::from(format!("{folder}/{name}"))), None, "{name}");
    }
    let elsewhere = "site/vm/groups/other/segments/c0000000008-s00000000000000000001.seg";
    assert_eq!(keys().segment_name(&Path::from(elsewhere)), None);
    assert_eq!(keys().claim_number(&Path::from("site/vm/groups/db/claims/c1.json")), None);
    assert!(BucketKeys::new("site//vm").is_err());
}

proptest! {
    #[test]
    fn what_is_written_is_parsed(claim in 1..9_999_999_999u64, sequence in 1..=u64::MAX) {
        let name = SegmentName { claim: ClaimNumber(claim), sequence: Sequence(sequence) };
        prop_assert_eq!(keys().segment_name(&keys().segment(name)), Some(name));
        prop_assert_eq!(keys().claim_number(&keys().claim(name.claim)), Some(name.claim));
        let bucket = BucketKeys::new("p").unwrap();
        let group: GroupName = format!("g{claim}").parse().unwrap();
        prop_assert_eq!(bucket.group_of(&bucket.groups().join(group.as_str())), Some(group));
    }
}
