use super::*;

fn parse(text: &str) -> LinkProfile {
    LinkProfile::parse(text, "test.toml").unwrap_or_else(|error| panic!("{error}"))
}

/// The error of a profile with these lines behind version and name.
fn error_of(lines: &str) -> String {
    let text = format!("version = 1\nname = \"x\"\n{lines}");
    LinkProfile::parse(&text, "test.toml").expect_err("is refused").to_string()
}

#[test]
fn every_built_in_profile_is_read_and_printed_back() {
    for name in BUILT_IN {
        let profile = LinkProfile::built_in(name).expect("is valid");
        assert_eq!(profile.name, name);
        assert_eq!(parse(&profile.to_toml()), profile, "{}", profile.to_toml());
    }
}

#[test]
fn a_direction_overrides_what_both_share() {
    let profile = parse(
        "version = 1\nname = \"x\"\n[both]\nrate = \"1.5gbit\"\ndelay = \"10ms\"\nloss = \"0.1%\"\n[up]\nloss = \"2%\"\nqueue = \"64KiB\"\n[down]\nrate = \"unlimited\"\n",
    );
    assert_eq!(profile.up.rate, Some(Rate::mbit(1500)));
    assert_eq!(profile.up.loss, Share::percent(2.0));
    assert_eq!(profile.up.queue, Queue::Bytes(65_536));
    assert_eq!(profile.down.rate, None);
    assert_eq!(profile.down.delay, Duration::from_millis(10));
    assert_eq!(profile.queue_bytes(Way::Down), None);
}

#[test]
fn the_default_queue_is_one_bandwidth_delay_product() {
    let profile = LinkProfile::symmetric("x", Rate::mbit(200), Duration::from_millis(50));
    assert_eq!(profile.queue_bytes(Way::Up), Some(2_500_000));
    let short = LinkProfile::symmetric("x", Rate::mbit(1), Duration::from_millis(1));
    assert_eq!(short.queue_bytes(Way::Up), Some(15_000));
}

#[test]
fn errors_name_the_field_and_what_is_allowed() {
    for (lines, wanted) in [
        ("[up]\nspeed = \"1mbit\"", ["speed", "expected one of"]),
        ("[both]\nrate = \"fast\"", ["rate = \"fast\"", "200mbit"]),
        ("[both]\nloss = \"120%\"", ["loss = \"120%\"", "0% to 100%"]),
        ("[both]\nloss = 0.1", ["loss = 0.1", "expected a string"]),
        ("[both]\ndelay = \"5\"", ["delay = \"5\"", "75ms"]),
        ("[both]\nqueue = \"12\"", ["queue = \"12\"", "256KiB"]),
        ("[down]\nmtu = 100", ["down.mtu", "576 to 65535"]),
        (
            "[up]\nburst_loss = { share = \"1%\", mean_packets = 0.5 }",
            ["up.burst_loss.mean_packets", "1 packet"],
        ),
        ("[[at]]\ntime = \"1s\"\nlink = \"off\"", ["link = \"off\"", "`up`, `down`, `hold`"]),
        ("[[at]]\ntime = \"1s\"", ["at[0].link", "nothing changes"]),
        (
            "[[at]]\ntime = \"2s\"\nlink = \"up\"\n[[at]]\ntime = \"1s\"\nlink = \"up\"",
            ["at[1].time", "order of time"],
        ),
    ] {
        let error = error_of(lines);
        assert!(wanted.iter().all(|part| error.contains(part)), "{lines}\n{error}");
    }
}

#[test]
fn another_version_is_refused_before_its_keys_are_read() {
    let error = LinkProfile::parse("version = 2\nnew_key = 1", "test.toml").expect_err("is refused");
    assert!(matches!(error, ProfileError::Version { version: 2, .. }), "{error}");
}

#[test]
fn an_unknown_name_lists_the_built_in_ones() {
    let error = LinkProfile::find("lunar").expect_err("is refused").to_string();
    assert!(error.contains("lunar") && error.contains("transoceanic"), "{error}");
}
