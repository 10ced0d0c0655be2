use std::fmt::Debug;

use journal_format::Generation;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::testing::{REFUSAL_KINDS, group, peer};

fn position() -> impl Strategy<Value = Position> {
    any::<(u64, u64, u64, [u8; 32])>().prop_map(|(generation, sequence, epoch, hash)| Position {
        generation: Generation(generation),
        sequence: Sequence(sequence),
        epoch: Epoch(epoch),
        hash: Hash(hash),
    })
}

fn name() -> impl Strategy<Value = GroupName> {
    "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?".prop_map(|name| group(&name))
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp)
}

fn hello() -> impl Strategy<Value = SourceMessage> {
    (any::<String>(), name(), proptest::option::of(position()), any::<u64>()).prop_map(
        |(software, group, head, oldest)| {
            SourceMessage::Hello(Hello {
                software,
                group,
                generation: Generation(1),
                head,
                oldest: Sequence(oldest),
            })
        },
    )
}

fn heartbeat() -> impl Strategy<Value = SourceMessage> {
    let cut = (any::<u64>(), time()).prop_map(|(epoch, time)| NewestCut { epoch: Epoch(epoch), time });
    (time(), proptest::option::of(cut), any::<u64>(), any::<u64>(), any::<String>()).prop_map(
        |(now, newest_cut, backlog_bytes, backlog_segments, state)| {
            SourceMessage::Heartbeat(Heartbeat { now, newest_cut, backlog_bytes, backlog_segments, state })
        },
    )
}

fn refusal() -> impl Strategy<Value = Refusal> {
    let kind = proptest::sample::select(&REFUSAL_KINDS[..]);
    (kind, any::<Option<u64>>(), any::<String>(), any::<String>()).prop_map(
        |(kind, sequence, reason, hint)| Refusal { kind, sequence: sequence.map(Sequence), reason, hint },
    )
}

fn source_message() -> impl Strategy<Value = SourceMessage> {
    prop_oneof![hello(), heartbeat(), Just(SourceMessage::Goodbye)]
}

fn site_message() -> impl Strategy<Value = SiteMessage> {
    let partial = (any::<u64>(), any::<[u8; 32]>(), prop::collection::vec(any::<(u64, u64)>(), 0..4))
        .prop_map(|(sequence, hash, have)| Partial { sequence: Sequence(sequence), hash, have });
    let partials = prop::collection::vec(partial, 0..4);
    let welcome = (any::<String>(), proptest::option::of(position()), partials)
        .prop_map(|(software, head, partials)| SiteMessage::Welcome { software, head, partials });
    let pong = (time(), time()).prop_map(|(heartbeat, now)| SiteMessage::Pong { heartbeat, now });
    prop_oneof![refusal().prop_map(SiteMessage::Refused), welcome, pong, Just(SiteMessage::Goodbye)]
}

fn piece_header() -> impl Strategy<Value = PieceHeader> {
    let numbers = any::<(u64, u64, u64)>();
    (name(), position(), any::<[u8; 32]>(), numbers).prop_map(
        |(group, position, parent, (size_bytes, offset, length))| {
            let segment = SegmentDescriptor { position, parent: Hash(parent), size_bytes };
            PieceHeader { group, segment, offset, length }
        },
    )
}

fn receipt() -> impl Strategy<Value = Receipt> {
    (name(), position(), time(), any::<[[u8; 32]; 2]>()).prop_map(
        |(group, position, time, [first, second])| Receipt {
            group,
            position,
            time,
            signature: Signature::from((first, second)),
        },
    )
}

/// A message comes back as it went; nothing shorter or longer is taken for one.
fn check_exact<T>(message: &T) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let frame = encode(message);
    let (prefix, body) = frame.split_at(4);
    prop_assert_eq!(parse_length(prefix.try_into().unwrap()), Ok(body.len()));
    let decoded = decode::<T>("message", body);
    prop_assert_eq!(decoded.as_ref(), Ok(message));
    let refused = WireError::Decode { what: "message" };
    for length in 0..body.len() {
        let shorter = decode::<T>("message", &body[..length]);
        prop_assert_eq!(shorter.as_ref(), Err(&refused), "cut to {}", length);
    }
    for trailing in [&[0][..], body] {
        let longer = decode::<T>("message", &[body, trailing].concat());
        prop_assert_eq!(longer.as_ref(), Err(&refused));
    }
    Ok(())
}

/// Whatever a peer sends is refused or is a message that means the same when it is sent on.
fn check_untrusted<T>(bytes: &[u8]) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    if let Ok(message) = decode::<T>("message", bytes) {
        prop_assert_eq!(decode::<T>("message", &encode(&message)[4..]), Ok(message));
    }
    Ok(())
}

proptest! {
    #[test]
    fn source_messages_are_exact(message in source_message()) {
        check_exact(&message)?;
    }

    #[test]
    fn site_messages_are_exact(message in site_message()) {
        check_exact(&message)?;
    }

    #[test]
    fn segment_headers_are_exact(header in piece_header()) {
        check_exact(&header)?;
    }

    #[test]
    fn receipts_are_exact(receipt in receipt()) {
        check_exact(&receipt)?;
    }

    #[test]
    fn arbitrary_bytes_are_never_trusted(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check_untrusted::<SourceMessage>(&bytes)?;
        check_untrusted::<SiteMessage>(&bytes)?;
        check_untrusted::<PieceHeader>(&bytes)?;
        check_untrusted::<Receipt>(&bytes)?;
    }

    #[test]
    fn messages_with_one_damaged_byte_do_no_harm(
        message in source_message(),
        at in any::<proptest::sample::Index>(),
        flip in 1_u8..,
    ) {
        let mut body = encode(&message)[4..].to_vec();
        let at = at.index(body.len());
        body[at] ^= flip;
        check_untrusted::<SourceMessage>(&body)?;
    }
}

fn check_bytes<T>(message: &T, bytes: &[u8])
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let prefix = (bytes.len() as u32).to_le_bytes();
    assert_eq!(encode(message), [&prefix, bytes].concat());
    assert_eq!(decode::<T>("message", bytes).as_ref(), Ok(message));
}

fn some_position() -> Position {
    Position { generation: Generation(1), sequence: Sequence(2), epoch: Epoch(300), hash: Hash([0xab; 32]) }
}

/// The same as it is on the wire: numbers of variable length, the hash as text.
fn some_position_bytes() -> Vec<u8> {
    [&[1, 2, 0xac, 2, 64][..], "ab".repeat(32).as_bytes()].concat()
}

#[test]
fn v1_source_messages_have_these_bytes() {
    let hello = Hello {
        software: "s".into(),
        group: group("a"),
        generation: Generation(1),
        head: None,
        oldest: Sequence(1),
    };
    check_bytes(&SourceMessage::Hello(hello.clone()), &[0, 1, b's', 1, b'a', 1, 0, 1]);
    let head = Some(some_position());
    let bytes = [&[0, 1, b's', 1, b'a', 1, 1], &some_position_bytes()[..], &[1]].concat();
    check_bytes(&SourceMessage::Hello(Hello { head, ..hello }), &bytes);
    let heartbeat = Heartbeat {
        now: Timestamp(-1),
        newest_cut: Some(NewestCut { epoch: Epoch(7), time: Timestamp(8) }),
        backlog_bytes: 300,
        backlog_segments: 11,
        state: "é".into(),
    };
    check_bytes(
        &SourceMessage::Heartbeat(heartbeat),
        &[1, 1, 1, 7, 16, 0xac, 2, 11, 2, "é".as_bytes()[0], "é".as_bytes()[1]],
    );
    check_bytes(&SourceMessage::Goodbye, &[2]);
}

#[test]
fn v1_site_messages_have_these_bytes() {
    let refusal = Refusal::new(RefusalKind::Version, "old", "");
    check_bytes(&SiteMessage::Refused(refusal.clone()), &[0, 1, 0, 3, b'o', b'l', b'd', 0]);
    check_bytes(
        &SiteMessage::Refused(refusal.of_segment(Sequence(7))),
        &[0, 1, 1, 7, 3, b'o', b'l', b'd', 0],
    );
    let partial = Partial { sequence: Sequence(9), hash: [7; 32], have: vec![(0, 300), (512, 1)] };
    let welcome = |partials| SiteMessage::Welcome { software: "s".into(), head: None, partials };
    check_bytes(&welcome(Vec::new()), &[1, 1, b's', 0, 0]);
    let bytes = [&[1, 1, b's', 0, 1, 9], &[7; 32][..], &[2, 0, 0xac, 2, 0x80, 4, 1]].concat();
    check_bytes(&welcome(vec![partial]), &bytes);
    check_bytes(&SiteMessage::Pong { heartbeat: Timestamp(1), now: Timestamp(-2) }, &[2, 2, 3]);
    check_bytes(&SiteMessage::Goodbye, &[3]);
}

#[test]
fn v1_refusal_kinds_have_these_numbers() {
    for (number, kind) in REFUSAL_KINDS.iter().enumerate() {
        check_bytes(kind, &[number as u8]);
    }
}

#[test]
fn v1_piece_header_has_these_bytes() {
    let segment = SegmentDescriptor { position: some_position(), parent: Hash::ZERO, size_bytes: 128 };
    let parent = [&[64][..], "0".repeat(64).as_bytes()].concat();
    let bytes = [&[1, b'a'][..], &some_position_bytes(), &parent, &[0x80, 1, 100, 28]].concat();
    check_bytes(&PieceHeader { group: group("a"), segment, offset: 100, length: 28 }, &bytes);
}

#[test]
fn v1_receipt_has_these_bytes() {
    let signature = Signature(std::array::from_fn(|index| index as u8));
    let receipt = Receipt { group: group("a"), position: some_position(), time: Timestamp(3), signature };
    let bytes = [&[1, b'a'][..], &some_position_bytes(), &[6], &signature.0].concat();
    check_bytes(&receipt, &bytes);
}

#[test]
fn preamble_tells_magic_and_version() {
    assert_eq!(&preamble(), b"TSQP\x01\0\0\0");
    assert_eq!(parse_preamble(preamble()), Ok(PROTOCOL_VERSION));
    // Another version is for the sessions to refuse, so that the peer is told.
    assert_eq!(parse_preamble(*b"TSQP\x02\x01\0\0"), Ok(0x102));
    for index in 0..4 {
        let mut bytes = preamble();
        bytes[index] ^= 0x20;
        assert_eq!(parse_preamble(bytes), Err(WireError::Magic), "byte {index}");
    }
}

#[test]
fn length_above_the_limit_is_refused_before_any_byte_is_read() {
    let limit = MESSAGE_BYTES_MAX as u32;
    assert_eq!(parse_length(limit.to_le_bytes()), Ok(MESSAGE_BYTES_MAX));
    for length in [limit + 1, u32::MAX] {
        let error = parse_length(length.to_le_bytes()).unwrap_err();
        assert_eq!(error, WireError::TooLarge { actual: length.into() });
        assert!(error.to_string().contains(&length.to_string()), "{error}");
    }
}

#[test]
fn text_that_claims_more_than_the_message_has_is_refused() {
    // A Hello whose software has this many bytes, if it is believed.
    for claimed in [&[2][..], &[0xff, 0xff, 0x03], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]]
    {
        let body = [&[0], claimed, b"x"].concat();
        assert!(decode::<SourceMessage>("message of a source", &body).is_err(), "{claimed:?}");
    }
}

#[test]
fn unknown_kinds_are_refused_by_name() {
    let error = decode::<SourceMessage>("message of a source", &[3]).unwrap_err();
    assert_eq!(error.to_string(), "the bytes are not a message of a source");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(decode::<SiteMessage>("message of a site", &[4]).is_err());
    assert!(decode::<RefusalKind>("kind", &[REFUSAL_KINDS.len() as u8]).is_err());
}

#[test]
fn names_that_could_be_paths_are_refused() {
    let segment = SegmentDescriptor { position: some_position(), parent: Hash::ZERO, size_bytes: 1 };
    let tail = &encode(&PieceHeader { group: group("abc"), segment, offset: 0, length: 1 })[4 + 4..];
    for name in ["abc", "a/b", "../", "A-B", "a\0b", "-ab"] {
        let body = [&[3], name.as_bytes(), tail].concat();
        assert_eq!(decode::<PieceHeader>("header", &body).is_ok(), name == "abc", "{name:?}");
    }
}

#[test]
fn long_texts_are_cut_between_characters_and_fit_into_a_message() {
    assert_eq!(shortened("é".repeat(5000)).len(), TEXT_BYTES_MAX);
    assert_eq!(shortened(format!("a{}", "é".repeat(5000))).len(), TEXT_BYTES_MAX - 1);
    assert_eq!(shortened("a".repeat(TEXT_BYTES_MAX)).len(), TEXT_BYTES_MAX);
    let long = "é".repeat(MESSAGE_BYTES_MAX);
    let refusal = Refusal::new(RefusalKind::Full, long.clone(), long);
    check_exact(&SiteMessage::Refused(refusal)).unwrap();
}

#[test]
fn refusal_reads_as_a_sentence() {
    let refusal = Refusal::new(RefusalKind::Full, "the disk is full", "make room");
    assert_eq!(refusal.to_string(), "the disk is full; make room");
    assert_eq!(refusal.of_segment(Sequence(7)).to_string(), "segment 7: the disk is full; make room");
    assert_eq!(Refusal::new(RefusalKind::Full, "the disk is full", "").to_string(), "the disk is full");
}

#[test]
fn receipt_signature_covers_what_the_protocol_says() {
    let dir = TempDir::new().unwrap();
    let identity = Identity::create(&dir.path().join("site"), &peer("site")).unwrap();
    let receipt = Receipt::sign(&identity, group("mail"), some_position(), Timestamp(-5));
    let mut bytes = b"thirdsite receipt v1\0\x04mail".to_vec();
    for number in [1_u64, 2, 300] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend([0xab; 32]);
    bytes.extend((-5_i64).to_le_bytes());
    assert!(identity.public_key().verify(&bytes, &receipt.signature));
}

#[test]
fn altered_receipt_is_not_signed() {
    let dir = TempDir::new().unwrap();
    let create = |name: &str| Identity::create(&dir.path().join(name), &peer(name)).unwrap();
    let (site, other) = (create("site"), create("other"));
    let receipt = Receipt::sign(&site, group("mail"), some_position(), Timestamp(5));
    assert!(receipt.is_signed_by(&site.public_key()));
    assert!(!receipt.is_signed_by(&other.public_key()));

    let moved = |change: fn(&mut Position)| {
        let mut receipt = receipt.clone();
        change(&mut receipt.position);
        receipt
    };
    let mut signature = receipt.signature;
    signature.0[63] ^= 1;
    for altered in [
        Receipt { group: group("mai"), ..receipt.clone() },
        Receipt { time: Timestamp(6), ..receipt.clone() },
        Receipt { signature, ..receipt.clone() },
        moved(|position| position.generation = Generation(2)),
        moved(|position| position.sequence = Sequence(3)),
        moved(|position| position.epoch = Epoch(301)),
        moved(|position| position.hash = Hash::ZERO),
    ] {
        assert!(!altered.is_signed_by(&site.public_key()), "{altered:?}");
    }
}

#[test]
fn v1_calls_have_these_bytes() {
    let request = CallRequest::Compare {
        volume: "d".parse().unwrap(),
        offset: 65536,
        regions: vec![[7; 32]],
        size_bytes: 512,
    };
    let call = Call { group: group("a"), request };
    let bytes = [&[1, b'a', 0, 1, b'd', 0x80, 0x80, 4, 1][..], &[7; 32], &[0x80, 4]].concat();
    check_bytes(&call, &bytes);
    check_bytes(&CallAnswer::Pair(vec![9]), &[2, 1, 9]);
    let compared =
        CallAnswer::Compared { head: None, regions: vec![RegionAnswer::Equal, RegionAnswer::Blocks(vec![])] };
    check_bytes(&compared, &[1, 0, 2, 0, 1, 0]);
}

#[test]
fn the_largest_answer_fits_into_a_message() {
    let blocks = RegionAnswer::Blocks(vec![[1; 32]; 16]);
    let head = Some(some_position());
    let answer = CallAnswer::Compared { head, regions: vec![blocks; COMPARED_REGIONS_MAX] };
    assert!(encode(&answer).len() < MESSAGE_BYTES_MAX);
    let call = Call { group: group("a"), request: CallRequest::Pair(vec![0; PAIR_BYTES_MAX]) };
    assert!(encode(&call).len() < MESSAGE_BYTES_MAX);
}
