use super::*;

#[test]
fn one_address_has_a_bounded_number_of_places() {
    let addresses = Arc::new(Addresses::default());
    let host = |text: &str| text.parse::<IpAddr>().unwrap();
    let mut places: Vec<_> = (0..8).map(|_| addresses.enter(host("10.0.0.1")).unwrap()).collect();
    assert!(addresses.enter(host("::ffff:10.0.0.1")).is_none());
    assert!(addresses.enter(host("10.0.0.2")).is_some());
    places.pop();
    assert!(addresses.enter(host("10.0.0.1")).is_some());
}

#[test]
fn a_network_of_ipv6_counts_as_one_address() {
    let addresses = Arc::new(Addresses::default());
    let places: Vec<_> =
        (0..9).map(|host| addresses.enter(format!("2001:db8::{host}").parse().unwrap())).collect();
    assert!(places[7].is_some() && places[8].is_none());
}
