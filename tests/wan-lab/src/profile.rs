//! What a link is like: profiles in TOML, and the ones that are built in.

mod builtin;
mod error;
mod file;
mod print;
mod timeline;
mod units;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

pub use builtin::BUILT_IN;
pub use error::ProfileError;
pub use timeline::Outage;
pub use units::{Rate, Share};

/// Version of the profile's format.
pub const PROFILE_VERSION: u32 = 1;
/// Length of an IP packet that passes if a profile says nothing.
pub const MTU_DEFAULT: u32 = 1500;
/// A queue of one bandwidth-delay product holds at least this many packets of the MTU.
const QUEUE_PACKETS_MIN: u64 = 10;

/// A link, both ways, and what happens to it in the course of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkProfile {
    /// What it is called.
    pub name: String,
    /// What it stands for, in a line.
    pub description: String,
    /// From source to site.
    pub up: DirectionSettings,
    /// From site to source.
    pub down: DirectionSettings,
    /// Changes in the course of a run, in order of time.
    pub script: Vec<Change>,
}

impl LinkProfile {
    /// A link without limits, delay and faults, to be changed field by field.
    pub fn perfect(name: &str) -> LinkProfile {
        LinkProfile {
            name: name.to_owned(),
            description: String::new(),
            up: DirectionSettings::default(),
            down: DirectionSettings::default(),
            script: Vec::new(),
        }
    }

    /// A link with the same rate and one-way delay both ways, and a queue of one bandwidth-delay product.
    pub fn symmetric(name: &str, rate: Rate, delay: Duration) -> LinkProfile {
        let both = DirectionSettings { rate: Some(rate), delay, ..DirectionSettings::default() };
        LinkProfile { up: both.clone(), down: both, ..LinkProfile::perfect(name) }
    }

    /// One of [`BUILT_IN`].
    ///
    /// # Errors
    /// [`ProfileError::Unknown`], which lists the names.
    pub fn built_in(name: &str) -> Result<LinkProfile, ProfileError> {
        let text = builtin::text(name).ok_or_else(|| ProfileError::Unknown { name: name.to_owned() })?;
        LinkProfile::parse(text, name)
    }

    /// Reads a profile; `origin` is what errors call it, such as the path of its file.
    ///
    /// # Errors
    /// Text that is not a profile of this version, or values that make no link.
    pub fn parse(text: &str, origin: &str) -> Result<LinkProfile, ProfileError> {
        file::parse(text, origin)
    }

    /// Reads a profile's file.
    ///
    /// # Errors
    /// A file that cannot be read, and those of [`LinkProfile::parse`].
    pub fn read(path: &Path) -> Result<LinkProfile, ProfileError> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ProfileError::Read { path: origin.clone(), source })?;
        LinkProfile::parse(&text, &origin)
    }

    /// A built-in profile's name, or the path of a file ending in `.toml`.
    ///
    /// # Errors
    /// Those of [`LinkProfile::built_in`] and [`LinkProfile::read`].
    pub fn find(name_or_path: &str) -> Result<LinkProfile, ProfileError> {
        match Path::new(name_or_path) {
            path if path.extension().is_some_and(|extension| extension == "toml") => LinkProfile::read(path),
            _ => LinkProfile::built_in(name_or_path),
        }
    }

    /// Writes the profile as TOML that [`LinkProfile::parse`] reads back to an equal one.
    pub fn to_toml(&self) -> String {
        print::toml(self)
    }

    /// The settings of one direction.
    pub fn direction(&self, way: Way) -> &DirectionSettings {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }

    /// Sum of both one-way delays, without jitter.
    pub fn round_trip(&self) -> Duration {
        self.up.delay + self.down.delay
    }

    /// Bytes that the queue of a direction holds; `None` where there is no bottleneck.
    pub fn queue_bytes(&self, way: Way) -> Option<u64> {
        let settings = self.direction(way);
        let rate = settings.rate?;
        Some(match settings.queue {
            Queue::Bytes(bytes) => bytes,
            Queue::Time(time) => rate.bytes_in(time),
            Queue::BandwidthDelay => {
                rate.bytes_in(self.round_trip()).max(QUEUE_PACKETS_MIN * u64::from(settings.mtu))
            }
        })
    }
}

/// One of a link's two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// From source to site.
    Up,
    /// From site to source.
    Down,
}

impl Way {
    /// Both, up first.
    pub const BOTH: [Way; 2] = [Way::Up, Way::Down];

    /// `up` or `down`.
    pub fn name(self) -> &'static str {
        match self {
            Way::Up => "up",
            Way::Down => "down",
        }
    }
}

/// What one direction is like.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectionSettings {
    /// Rate of the bottleneck; `None` is unlimited.
    pub rate: Option<Rate>,
    /// Propagation, one way.
    pub delay: Duration,
    /// What is added to the delay.
    pub jitter: Option<Jitter>,
    /// Share of packets that is lost, each on its own.
    pub loss: Share,
    /// Losses in bursts, besides.
    pub burst_loss: Option<BurstLoss>,
    /// Packets that are overtaken.
    pub reorder: Option<Reorder>,
    /// Share of packets that comes twice.
    pub duplicate: Share,
    /// What waits before the bottleneck at most.
    pub queue: Queue,
    /// Longest IP packet that passes, in bytes.
    pub mtu: u32,
}

impl Default for DirectionSettings {
    fn default() -> Self {
        DirectionSettings {
            rate: None,
            delay: Duration::ZERO,
            jitter: None,
            loss: Share::NONE,
            burst_loss: None,
            reorder: None,
            duplicate: Share::NONE,
            queue: Queue::BandwidthDelay,
            mtu: MTU_DEFAULT,
        }
    }
}

/// Delay that varies from packet to packet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jitter {
    /// Mean of a uniform, standard deviation of a normal distribution.
    #[serde(deserialize_with = "units::duration")]
    pub amount: Duration,
    /// Its distribution.
    #[serde(default)]
    pub shape: JitterShape,
    /// A packet waits for those before it; otherwise they overtake each other.
    #[serde(default = "keeps_order")]
    pub keeps_order: bool,
}

fn keeps_order() -> bool {
    true
}

/// Distribution of jitter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JitterShape {
    /// Between nothing and twice the amount.
    #[default]
    Uniform,
    /// Absolute value of a normal distribution.
    Normal,
}

/// Losses in bursts: Gilbert-Elliott with a bad state that loses everything.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurstLoss {
    /// Share of packets that is lost in the long run.
    pub share: Share,
    /// Length of a burst on average, in packets.
    pub mean_packets: f64,
}

/// Packets that are late and overtaken.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reorder {
    /// Share of packets.
    pub share: Share,
    /// How much later they come.
    #[serde(deserialize_with = "units::duration")]
    pub extra: Duration,
}

/// How much waits before the bottleneck at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// The rate times the delays of both directions.
    BandwidthDelay,
    /// What leaves within this time at the rate.
    Time(Duration),
    /// Bytes.
    Bytes(u64),
}

/// Whether packets pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// They do.
    #[default]
    Up,
    /// They are dropped: a cable is cut.
    Down,
    /// They are kept until the link is up again: a radio that has lost its cell.
    Hold,
}

/// Which directions a change is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Directions {
    /// Both.
    #[default]
    Both,
    /// From source to site.
    Up,
    /// From site to source.
    Down,
}

impl Directions {
    /// Whether a direction is among them.
    pub fn contain(self, way: Way) -> bool {
        match self {
            Directions::Both => true,
            Directions::Up => way == Way::Up,
            Directions::Down => way == Way::Down,
        }
    }
}

/// Something that changes in the course of a run. What is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// When, counted from the start of the run. Of no meaning for a change that is made by hand.
    pub time: Duration,
    /// For which directions.
    pub direction: Directions,
    /// State of the link.
    pub link: Option<LinkState>,
    /// Rate; the inner `None` is unlimited.
    pub rate: Option<Option<Rate>>,
    /// Delay, one way.
    pub delay: Option<Duration>,
    /// Share of packets lost at random.
    pub loss: Option<Share>,
}

impl Change {
    /// Only the state of the link, both ways.
    pub fn link(state: LinkState) -> Change {
        Change { link: Some(state), ..Change::default() }
    }
}
