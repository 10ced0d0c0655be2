use super::*;

#[test]
fn names_accept_what_a_path_and_a_url_accept() {
    for text in ["a", "db-1", "0", &"x".repeat(63)] {
        assert_eq!(text.parse::<GroupName>().unwrap().as_str(), text);
    }
    for text in ["", "-a", "a-", "A", "a/b", "..", "a b", &"x".repeat(64), "ä"] {
        assert!(text.parse::<GroupName>().is_err(), "{text:?} was accepted");
    }
}

#[test]
fn printed_ids_are_read_back() {
    let position =
        Position { generation: Generation(3), sequence: Sequence(9), epoch: Epoch(12), hash: Hash::of(b"x") };
    assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
    let point = PointId { generation: Generation(1), epoch: Epoch(57) };
    assert_eq!(point.to_string(), "1-57");
    assert_eq!("1-57".parse::<PointId>().unwrap(), point);
    for text in ["", "1", "1-", "-1", "1-2-3", "a-b"] {
        assert!(text.parse::<PointId>().is_err(), "{text:?} was accepted");
    }
}

#[test]
fn point_ids_are_ordered_by_generation_then_epoch() {
    let id = |text: &str| text.parse::<PointId>().unwrap();
    assert!(id("1-900") < id("2-1"));
    assert!(id("2-1") < id("2-2"));
}
