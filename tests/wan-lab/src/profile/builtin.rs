//! Profiles that come with the program.

/// Names of the built-in profiles, from the best link to the worst.
pub const BUILT_IN: [&str; 6] = ["metro", "continental", "transoceanic", "geostationary", "lte", "bad-day"];

pub(super) fn text(name: &str) -> Option<&'static str> {
    Some(match name {
        "metro" => include_str!("../../profiles/metro.toml"),
        "continental" => include_str!("../../profiles/continental.toml"),
        "transoceanic" => include_str!("../../profiles/transoceanic.toml"),
        "geostationary" => include_str!("../../profiles/geostationary.toml"),
        "lte" => include_str!("../../profiles/lte.toml"),
        "bad-day" => include_str!("../../profiles/bad-day.toml"),
        _ => return None,
    })
}
