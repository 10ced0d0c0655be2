use journal_format::{Hash, Sequence};
use tempfile::TempDir;
use transport::Identity;

use super::*;

fn key() -> Path {
    Path::from("p/groups/db/x.json")
}

fn position() -> Position {
    Position { generation: Generation(1), sequence: Sequence(3), epoch: Epoch(5), hash: Hash([7; 32]) }
}

fn claim() -> Claim {
    Claim {
        group: "db".parse().unwrap(),
        number: ClaimNumber(2),
        kind: ClaimKind::Start,
        session: SessionId([0xab; 16]),
        generation: Generation(1),
        source: ClaimSource {
            name: "pair".parse().unwrap(),
            fingerprint: PublicKey::from_bytes([1; 32]).fingerprint(),
        },
        software: "thirdsite 0.1.0".into(),
        time: Timestamp(9),
        behind: Some(position()),
    }
}

fn refused(bytes: &[u8]) -> String {
    Claim::decode(&key(), bytes).unwrap_err().to_string()
}

#[test]
fn version_1_of_a_claim_is_read_and_written_byte_for_byte() {
    let expect = concat!(
        r#"{"format":"thirdsite-claim","version":1,"group":"db","number":2,"kind":"start","#,
        r#""session":"abababababababababababababababab","generation":1,"source":{"name":"pair","fingerprint":"FP"},"#,
        r#""software":"thirdsite 0.1.0","time":9,"behind":{"generation":1,"sequence":3,"epoch":5,"#,
        r#""hash":"0707070707070707070707070707070707070707070707070707070707070707"}}"#,
        "\n"
    )
    .replace("FP", &claim().source.fingerprint.to_string());
    assert_eq!(String::from_utf8(claim().encode()).unwrap(), expect);
    assert_eq!(Claim::decode(&key(), expect.as_bytes()).unwrap(), claim());
    assert_eq!(StoreMark {}.encode(), b"{\"format\":\"thirdsite-bucket\",\"version\":1}\n");
}

#[test]
fn what_is_not_a_claim_is_refused_with_the_objects_name() {
    let text = String::from_utf8(claim().encode()).unwrap();
    for (from, to, expect) in [
        ("thirdsite-claim", "thirdsite-tree", "its format is \"thirdsite-tree\""),
        ("\"version\":1", "\"version\":2", "is of version 2; this build reads version 1"),
        ("\"start\"", "\"fence\"", "a fence is behind nothing"),
        ("\"sequence\":3", "\"sequence\":0", "no position has this sequence"),
        ("\"behind\":{\"generation\":1", "\"behind\":{\"generation\":2", "a newer generation than its own"),
        ("\"db\"", "\"../db\"", "group name"),
        ("abab", "xbab", "32 hexadecimal digits"),
        ("thirdsite 0.1.0", &"x".repeat(5000), "a text is too long"),
        ("thirdsite 0.1.0", &"x".repeat(70_000), "the limit is 65536"),
    ] {
        let reason = refused(text.replace(from, to).as_bytes());
        assert!(reason.contains(expect) && reason.contains(key().as_ref()), "{reason}");
    }
    assert!(refused(b"{").contains("is not a claim"));
}

#[test]
fn fields_of_later_releases_are_ignored() {
    let text = String::from_utf8(claim().encode()).unwrap();
    let more = text.replace("\"time\":9", "\"time\":9,\"more\":{\"a\":[1]}");
    assert_eq!(Claim::decode(&key(), more.as_bytes()).unwrap(), claim());
}

#[test]
fn only_the_pinned_identity_checks() {
    let dir = TempDir::new().unwrap();
    let identity = |name: &str| Identity::create(&dir.path().join(name), &name.parse().unwrap()).unwrap();
    let (site, other) = (identity("site"), identity("other"));
    let group: GroupName = "db".parse().unwrap();
    let receipt = Receipt::sign(&site, group.clone(), position(), Timestamp(4));
    let checked = Checked::new(&receipt, &site.public_key());
    let checked = Checked::decode(&key(), &checked.encode()).unwrap();
    assert_eq!(checked.receipt(&key(), &group, site.fingerprint()).unwrap(), receipt);

    let refused = |checked: &Checked, pinned: &Identity| {
        let error = checked.receipt(&key(), &group, pinned.fingerprint()).unwrap_err();
        assert_eq!(error.kind(), journal_format::ErrorKind::Corrupt);
        error.to_string()
    };
    assert!(refused(&checked, &other).contains("another fingerprint"));
    let moved = Checked { position: Position { sequence: Sequence(4), ..position() }, ..checked.clone() };
    assert!(refused(&moved, &site).contains("signature is wrong"));
    let claimed =
        Checked::new(&Receipt::sign(&other, group.clone(), position(), Timestamp(4)), &site.public_key());
    assert!(refused(&claimed, &site).contains("signature is wrong"));
    let elsewhere = Checked { group: "web".parse().unwrap(), ..checked };
    assert!(refused(&elsewhere, &site).contains("another group"));
}
