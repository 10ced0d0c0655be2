//! Values with units, as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use super::Queue;

/// Bits per second. At least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

const RATE_UNITS: [(&str, u64); 4] =
    [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];
/// Faster links would overflow nanosecond arithmetic nowhere, but no engine can carry them.
const RATE_MAX: u64 = 100_000_000_000;

impl Rate {
    /// A rate in bits per second; 0 is taken as 1.
    pub const fn bits_per_second(bits: u64) -> Rate {
        Rate(if bits == 0 { 1 } else { bits })
    }

    /// A rate in 10^6 bits per second.
    pub const fn mbit(mbit: u64) -> Rate {
        Rate::bits_per_second(mbit * 1_000_000)
    }

    /// Bits per second.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Bytes that pass within a time.
    pub fn bytes_in(self, time: Duration) -> u64 {
        let bytes = u128::from(self.0) * time.as_nanos() / 8_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a rate; write it like 200mbit, 1.5gbit or 64kbit (bits per second, up to 100gbit)"
            )
        };
        let lower = text.trim().to_ascii_lowercase();
        let units = RATE_UNITS.iter().find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, factor)));
        let (number, factor) = units.ok_or_else(wrong)?;
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let bits = (number * *factor as f64).round();
        if !(1.0..=RATE_MAX as f64).contains(&bits) {
            return Err(wrong());
        }
        Ok(Rate(bits as u64))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) =
            RATE_UNITS.iter().find(|(_, factor)| self.0.is_multiple_of(*factor)).unwrap_or(&("bit", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// A share of packets, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Share(f64);

impl Share {
    /// No packet.
    pub const NONE: Share = Share(0.0);

    /// A share, cut to between 0 and 1.
    pub fn new(share: f64) -> Share {
        Share(if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) })
    }

    /// A share given in per cent.
    pub fn percent(percent: f64) -> Share {
        Share::new(percent / 100.0)
    }

    /// From 0 to 1.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let percent = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        match percent {
            Some(percent) if (0.0..=100.0).contains(&percent) => Ok(Share(percent / 100.0)),
            _ => Err(format!("'{text}' is not a share; write it like 0.1% (0% to 100%)")),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Back from the fraction without the noise of binary fractions.
        write!(f, "{}%", (self.0 * 1e10).round() / 1e8)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(de::Error::custom)
    }
}

/// A rate, or `unlimited`.
#[derive(Clone, Copy, Debug)]
pub(super) struct RateOrUnlimited(pub(super) Option<Rate>);

impl<'de> Deserialize<'de> for RateOrUnlimited {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        if text == "unlimited" {
            return Ok(RateOrUnlimited(None));
        }
        let rate = text.parse().map_err(|error| de::Error::custom(format!("{error}, or \"unlimited\"")))?;
        Ok(RateOrUnlimited(Some(rate)))
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("'{text}' is not a duration ({error}); write it like 500us, 75ms or 10s"))
}

pub(super) fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(input)?).map_err(de::Error::custom)
}

pub(super) fn optional_duration<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    duration(input).map(Some)
}

impl<'de> Deserialize<'de> for Queue {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        if let Ok(time) = humantime::parse_duration(&text) {
            return Ok(Queue::Time(time));
        }
        let has_unit = text.ends_with('B');
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if has_unit => Ok(Queue::Bytes(size.as_u64())),
            _ => Err(de::Error::custom(format!(
                "'{text}' is neither a time such as 200ms nor a size such as 256KiB"
            ))),
        }
    }
}
