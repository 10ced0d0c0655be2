//! The arguments of `thirdsite link-test`.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use transport::PeerName;

pub(super) const EXAMPLES: &str = "Examples:
  thirdsite link-test far --config source.toml --change-rate 2MiB
  thirdsite link-test --site far.example:7443 --fingerprint 5f0c… --identity /etc/thirdsite/identity

It sends up to 64 MiB for up to 10 s, which the site discards. Groups go on meanwhile and share the line with it.";

#[derive(Debug, Args)]
pub(crate) struct LinkTestArgs {
    /// Name of a target in the agent's settings
    #[arg(requires = "config", conflicts_with = "site", required_unless_present = "site")]
    pub(crate) target: Option<PeerName>,
    /// The agent's settings, which have its address, fingerprint and identity
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// A site that is in no settings yet
    #[arg(long, value_name = "HOST:PORT", requires = "fingerprint", requires = "identity")]
    pub(crate) site: Option<String>,
    /// Fingerprint of its identity
    #[arg(long, requires = "site")]
    pub(crate) fingerprint: Option<String>,
    /// Folder of the identity that is enrolled there
    #[arg(long, value_name = "DIR", requires = "site")]
    pub(crate) identity: Option<PathBuf>,
    /// What the VMs change in a second, for the recommended settings; 'status' shows what they did
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    pub(crate) change_rate: ByteSize,
    /// Bytes to send at most; 64MiB are allowed
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) bytes: ByteSize,
    /// Time for sending them at most; 20s are allowed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) time: Duration,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
