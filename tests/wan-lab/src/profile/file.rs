//! The profile's TOML, as it stands in a file, and its way into a [`LinkProfile`].

use std::time::Duration;

use serde::Deserialize;

use super::units::{self, RateOrUnlimited, Share};
use super::{
    BurstLoss, Change, DirectionSettings, Directions, Jitter, LinkProfile, LinkState, MTU_DEFAULT,
    PROFILE_VERSION, ProfileError, Queue, Reorder,
};

/// An IPv4 host has to take packets of this length (RFC 791).
const MTU_MIN: u32 = 576;
const MTU_MAX: u32 = 65_535;
/// Longer than light needs to the Moon and back, many times.
const DELAY_MAX: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileFile {
    version: u32,
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    both: DirectionTable,
    #[serde(default)]
    up: DirectionTable,
    #[serde(default)]
    down: DirectionTable,
    #[serde(default, rename = "at")]
    script: Vec<ChangeTable>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DirectionTable {
    rate: Option<RateOrUnlimited>,
    #[serde(deserialize_with = "units::optional_duration")]
    delay: Option<Duration>,
    jitter: Option<Jitter>,
    loss: Option<Share>,
    burst_loss: Option<BurstLoss>,
    reorder: Option<Reorder>,
    duplicate: Option<Share>,
    queue: Option<Queue>,
    mtu: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeTable {
    #[serde(deserialize_with = "units::duration")]
    time: Duration,
    #[serde(default)]
    direction: Directions,
    link: Option<LinkState>,
    rate: Option<RateOrUnlimited>,
    #[serde(default, deserialize_with = "units::optional_duration")]
    delay: Option<Duration>,
    loss: Option<Share>,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

pub(super) fn parse(text: &str, origin: &str) -> Result<LinkProfile, ProfileError> {
    let parse_error = |source| ProfileError::Parse { origin: origin.to_owned(), source: Box::new(source) };
    // A newer file has keys that are not known here; its version is the thing to say.
    let VersionOnly { version } = toml::from_str(text).map_err(parse_error)?;
    if version != PROFILE_VERSION {
        return Err(ProfileError::Version { origin: origin.to_owned(), version });
    }
    let file: ProfileFile = toml::from_str(text).map_err(parse_error)?;
    debug_assert_eq!(file.version, PROFILE_VERSION);
    let profile = LinkProfile {
        name: file.name,
        description: file.description,
        up: file.up.over(&file.both),
        down: file.down.over(&file.both),
        script: file.script.into_iter().map(ChangeTable::into_change).collect(),
    };
    check(&profile).map_err(|(field, reason)| ProfileError::Value {
        origin: origin.to_owned(),
        field,
        reason,
    })?;
    Ok(profile)
}

impl DirectionTable {
    fn over(self, both: &DirectionTable) -> DirectionSettings {
        let both = both.clone();
        DirectionSettings {
            rate: self.rate.or(both.rate).and_then(|rate| rate.0),
            delay: self.delay.or(both.delay).unwrap_or_default(),
            jitter: self.jitter.or(both.jitter),
            loss: self.loss.or(both.loss).unwrap_or(Share::NONE),
            burst_loss: self.burst_loss.or(both.burst_loss),
            reorder: self.reorder.or(both.reorder),
            duplicate: self.duplicate.or(both.duplicate).unwrap_or(Share::NONE),
            queue: self.queue.or(both.queue).unwrap_or(Queue::BandwidthDelay),
            mtu: self.mtu.or(both.mtu).unwrap_or(MTU_DEFAULT),
        }
    }
}

impl ChangeTable {
    fn into_change(self) -> Change {
        Change {
            time: self.time,
            direction: self.direction,
            link: self.link,
            rate: self.rate.map(|rate| rate.0),
            delay: self.delay,
            loss: self.loss,
        }
    }
}

type Wrong = (String, String);

fn check(profile: &LinkProfile) -> Result<(), Wrong> {
    if profile.name.trim().is_empty() {
        return Err(("name".to_owned(), "is empty; give the link a name".to_owned()));
    }
    check_direction("up", &profile.up)?;
    check_direction("down", &profile.down)?;
    let mut before = Duration::ZERO;
    for (number, change) in profile.script.iter().enumerate() {
        let field = |name: &str| format!("at[{number}].{name}");
        if change.time < before {
            let reason = "lies before the change that stands above it; put them in order of time".to_owned();
            return Err((field("time"), reason));
        }
        before = change.time;
        if let Some(delay) = change.delay {
            check_delay(field("delay"), delay)?;
        }
        let Change { link: None, rate: None, delay: None, loss: None, .. } = change else { continue };
        return Err((field("link"), "nothing changes; give link, rate, delay or loss".to_owned()));
    }
    Ok(())
}

fn check_direction(name: &str, settings: &DirectionSettings) -> Result<(), Wrong> {
    let field = |key: &str| format!("{name}.{key}");
    check_delay(field("delay"), settings.delay)?;
    if let Some(jitter) = &settings.jitter {
        check_delay(field("jitter.amount"), jitter.amount)?;
    }
    if let Some(reorder) = &settings.reorder {
        check_delay(field("reorder.extra"), reorder.extra)?;
    }
    if !(MTU_MIN..=MTU_MAX).contains(&settings.mtu) {
        return Err((field("mtu"), format!("{} is outside of {MTU_MIN} to {MTU_MAX}", settings.mtu)));
    }
    if let Some(burst) = &settings.burst_loss {
        check_burst(&field("burst_loss"), burst)?;
    }
    match settings.queue {
        Queue::Bytes(0) | Queue::Time(Duration::ZERO) => {
            Err((field("queue"), "is empty; a link that keeps one packet has queue = \"1500B\"".to_owned()))
        }
        _ => Ok(()),
    }
}

fn check_delay(field: String, delay: Duration) -> Result<(), Wrong> {
    if delay > DELAY_MAX {
        let reason = format!("{} is more than a minute", humantime::format_duration(delay));
        return Err((field, reason));
    }
    Ok(())
}

fn check_burst(field: &str, burst: &BurstLoss) -> Result<(), Wrong> {
    if !(burst.mean_packets.is_finite() && burst.mean_packets >= 1.0) {
        let reason = format!("{} is not a length of 1 packet or more", burst.mean_packets);
        return Err((format!("{field}.mean_packets"), reason));
    }
    // The chain leaves the good state with probability share / (mean * (1 - share)), which must not exceed 1.
    if burst.share.get() > burst.mean_packets / (burst.mean_packets + 1.0) {
        let reason = format!(
            "{} cannot be lost in bursts of {} with a packet between them",
            burst.share, burst.mean_packets
        );
        return Err((format!("{field}.share"), reason));
    }
    Ok(())
}
