//! The arguments of `thirdsite wan-lab`.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use wan_lab::Rate;

const RUN_EXAMPLES: &str = "Examples:
  thirdsite wan-lab run transoceanic                              # keep the link full for 30 s
  thirdsite wan-lab run bad-day --duration 2min --rate 20mbit --svg bad-day.svg
  thirdsite wan-lab run my-link.toml --bytes 500MB --json         # how long does this take?
  thirdsite wan-lab run lte --engine relay                        # without root

Everything stays on this host; no daemon is needed. A profile of your own begins with: thirdsite wan-lab profiles NAME > my-link.toml";

const PROFILES_EXAMPLES: &str = "Examples:
  thirdsite wan-lab profiles
  thirdsite wan-lab profiles transoceanic > my-link.toml";

#[derive(Debug, Subcommand)]
pub(crate) enum WanLabCommand {
    /// Ship synthetic segments over a link and report goodput, lag, lost packets and CPU time
    #[command(after_help = RUN_EXAMPLES)]
    Run(WanLabRunArgs),
    /// List the built-in links, or print one as a file to begin with
    #[command(after_help = PROFILES_EXAMPLES)]
    Profiles {
        /// Built-in link to print as TOML
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct WanLabRunArgs {
    /// Name of a built-in link, or the path of a profile ending in .toml
    #[arg(value_name = "PROFILE")]
    pub(crate) profile: String,
    /// How long to run; with --bytes at most
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(crate) duration: Duration,
    /// Ship this much and end when all of it is confirmed, instead of keeping the link full
    #[arg(long, value_name = "SIZE", conflicts_with = "rate")]
    pub(crate) bytes: Option<ByteSize>,
    /// Change data at this rate, sealed every second, instead of keeping the link full
    #[arg(long, value_name = "RATE")]
    pub(crate) rate: Option<Rate>,
    /// Size of a segment at most
    #[arg(long, default_value = "4MiB", value_name = "SIZE")]
    pub(crate) segment: ByteSize,
    /// What carries the packets
    #[arg(long, value_enum, default_value = "namespaces")]
    pub(crate) engine: Engine,
    /// Decides the link's random draws
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write the course of the run as a picture
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Print JSON, with the samples
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// Two network namespaces through the kernel (root, or a user namespace)
    Namespaces,
    /// A UDP relay on loopback (no rights)
    Relay,
}

impl Engine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Engine::Namespaces => "namespaces",
            Engine::Relay => "relay",
        }
    }
}
