//! The command line. Names and ids that one command prints are accepted by the others.

mod link_test;
mod wan_lab;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use chrono::{DateTime, FixedOffset};
use clap::{Args, Parser, Subcommand, ValueEnum};
use journal_format::{BookmarkName, GroupName, PointId, VolumeName};
use transport::PeerName;

pub(crate) use self::link_test::LinkTestArgs;
pub(crate) use self::wan_lab::{Engine, WanLabCommand, WanLabRunArgs};
use crate::settings::Listen;

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrong arguments or settings; 3 damaged data; 4 a daemon, site or \
program cannot be reached; 5 a disk or limit is full; 6 time ran out; 7 timelines diverged or fenced.";

/// Asynchronous disaster recovery of virtual machines to a third, far site.
#[derive(Debug, Parser)]
#[command(name = "thirdsite", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make and show the identity by which the sites know each other
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Run the agent at the protected site
    #[command(subcommand)]
    Source(SourceCommand),
    /// Run the recovery site and say who may send to it
    #[command(subcommand)]
    Site(SiteCommand),
    /// End a group's epoch now: a recovery point, with a name if wanted
    Cut(CutArgs),
    /// Compare everything of a group with the recovery site and send what differs; the VM goes on meanwhile
    Resync(ResyncArgs),
    /// Put the tap into, or take it out of, the disk path of a running QEMU
    #[command(subcommand)]
    Tap(TapCommand),
    /// The pair's two hosts
    #[command(subcommand)]
    Pair(PairCommand),
    /// Bring a group's first copy to the recovery site on a disk
    #[command(subcommand)]
    Seed(SeedCommand),
    /// What the daemons, or a store, know of their groups: state, lag, backlog, actual RPO, last point
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Recovery points of a store
    #[command(subcommand)]
    Point(PointCommand),
    /// Serve the volumes of a point over NBD, each under its own name
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportArgs),
    /// Write a volume of a point to a file or device
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(RestoreArgs),
    /// Start a VM of a point, on overlays, its network isolated; ends with the VM, Ctrl-C or SIGTERM
    #[command(after_help = BOOT_EXAMPLES)]
    Boot(BootArgs),
    /// Read and re-hash everything in a store
    Verify(VerifyArgs),
    /// Measure the path to a recovery site beside its groups, without storing anything, and recommend settings
    #[command(after_help = link_test::EXAMPLES)]
    LinkTest(LinkTestArgs),
    /// Measure the transport over an emulated wide-area link, on this host alone
    #[command(subcommand)]
    WanLab(WanLabCommand),
    /// Look after stores: the recovery site's word on a bucket, copies
    #[command(subcommand)]
    Store(StoreCommand),
}

const CHECK_EXAMPLES: &str = "Examples:
  thirdsite store check --store s3://dr-bucket/site-a
  thirdsite store check --store s3://dr-bucket/site-a --identity /etc/thirdsite/identity --every 60s

With an identity its receipt is put as checked.json: sources with 'receipts = \"checked\"' trim no sooner. Damage is never receipted.";

const COPY_EXAMPLES: &str = "Examples:
  thirdsite store copy --from s3://dr-bucket/site-a --to /srv/thirdsite demo
  thirdsite store copy --from /srv/thirdsite --to s3://dr-bucket/site-a --fingerprint 5f0c… demo

Interrupted, it goes on where it was when it is run again. No daemon may write to a folder that is copied to meanwhile.";

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Read what is new in a bucket whole, with everything that it refers to, and say how far it is sound
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Copy what another store lacks of a group
    #[command(after_help = COPY_EXAMPLES)]
    Copy(CopyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The bucket: s3://BUCKET/PREFIX, or file:///FOLDER
    #[arg(long, value_name = "URL")]
    pub(crate) store: Location,
    /// Folder of the recovery site's identity; without it nothing is put into the bucket
    #[arg(long, value_name = "DIR")]
    pub(crate) identity: Option<PathBuf>,
    /// Look again and again, with this time between the looks, until Ctrl-C or SIGTERM
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(crate) every: Option<Duration>,
    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
    /// Print JSON, a line for each look
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// The group
    pub(crate) group: GroupName,
    /// Store that has it: a folder, s3://BUCKET/PREFIX or file:///FOLDER; repeat to read several as one
    #[arg(long, value_name = "DIR|URL", required = true)]
    pub(crate) from: Vec<Location>,
    /// Store that gets it; it is made if there is none
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) to: Location,
    /// Fingerprint of the protected site, which claims in a bucket bear, if the store that is copied from does not know it
    #[arg(long)]
    pub(crate) fingerprint: Option<String>,
    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TapCommand {
    /// Let a running VM use its disk through the tap from now on
    Insert {
        #[command(flatten)]
        device: TapDevice,
        /// The tap's socket: unix:PATH or ADDRESS:PORT
        #[arg(long)]
        tap: Listen,
        /// Name of the export: GROUP/VOLUME
        #[arg(long)]
        export: String,
    },
    /// Let a running VM use the leg itself again, without the tap
    Remove {
        #[command(flatten)]
        device: TapDevice,
    },
}

/// A disk of a running VM.
#[derive(Debug, Args)]
pub(crate) struct TapDevice {
    /// QEMU's monitor socket (QMP, a unix socket)
    #[arg(long)]
    pub(crate) qmp: PathBuf,
    /// Id of the disk's device in QEMU, for example the id of -device virtio-blk-pci
    #[arg(long)]
    pub(crate) device: String,
    /// The leg: the raw file or block device that the tap serves
    #[arg(long)]
    pub(crate) leg: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PairCommand {
    /// Make this standby host the active one: what a cluster manager calls before it starts the VM here
    Takeover {
        #[command(flatten)]
        agent: AgentArg,
        /// How long to wait until this host is active
        #[arg(long, default_value = "1min", value_parser = humantime::parse_duration, value_name = "DURATION")]
        timeout: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

const SEED_EXPORT_EXAMPLES: &str = "Examples:
  thirdsite seed export --config source.toml demo /mnt/disk/demo-seed
  thirdsite seed export --config source.toml demo /mnt/disk/demo-seed   # again: adds what is new

Interrupted, it goes on behind the last whole segment when it is run again. At the recovery site, 'thirdsite seed import' takes the folder in.";

const SEED_IMPORT_EXAMPLES: &str = "Examples:
  thirdsite seed import --config site.toml /mnt/disk/demo-seed
  thirdsite seed import --store /srv/thirdsite /mnt/disk/demo-seed

The recovery site's daemon must not run meanwhile. Interrupted, it goes on where it was when it is run again.";

const STATUS_EXAMPLES: &str = "Examples:
  thirdsite status                                    # the daemons of this host
  thirdsite status --store s3://dr-bucket/site-a      # from any machine that has the keys";

const EXPORT_EXAMPLES: &str = "Examples:
  thirdsite export demo --latest --store /srv/thirdsite --listen unix:/run/demo.sock
  thirdsite export demo --at 2026-11-23T10:00:00Z --store s3://dr-bucket/site-a --listen 127.0.0.1:10809";

const RESTORE_EXAMPLES: &str = "Examples:
  thirdsite restore demo --latest --store s3://dr-bucket/site-a --volume root --output root.raw
  thirdsite restore demo --latest --store /srv/thirdsite --store s3://dr-bucket/site-a --volume root --output root.raw";

const BOOT_EXAMPLES: &str = "Examples:
  thirdsite boot demo --latest --store s3://dr-bucket/site-a
  thirdsite boot demo --latest --store /srv/thirdsite --check --json";

#[derive(Debug, Subcommand)]
pub(crate) enum SeedCommand {
    /// At the protected site: write what a group's disks hold into a folder; VMs and the agent may run
    #[command(after_help = SEED_EXPORT_EXAMPLES)]
    Export(SeedExportArgs),
    /// At the recovery site: verify a folder that was carried there and take it in
    #[command(after_help = SEED_IMPORT_EXAMPLES)]
    Import(SeedImportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SeedExportArgs {
    /// Settings file (source.toml)
    #[arg(long)]
    pub(crate) config: PathBuf,
    /// The group
    pub(crate) group: GroupName,
    /// Folder of the seed: empty or absent to begin one, that of an earlier export to add what is new
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SeedImportArgs {
    #[command(flatten)]
    pub(crate) into: ImportTarget,
    /// Folder of the seed, as 'seed export' has written it
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The store that takes a seed in.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ImportTarget {
    /// Settings file (site.toml); its store is made if there is none yet
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Folder of a store that exists
    #[arg(long, value_name = "STORE")]
    pub(crate) store: Option<PathBuf>,
}

/// The agent that is asked.
#[derive(Debug, Args)]
pub(crate) struct AgentArg {
    /// Control socket of this host's agent
    #[arg(long, env = "THIRDSITE_SOURCE_CONTROL", default_value = "/run/thirdsite/source.sock")]
    pub(crate) control: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ResyncArgs {
    /// Group
    pub(crate) group: GroupName,
    /// Send everything, whatever the recovery site says it has
    #[arg(long)]
    pub(crate) full: bool,
    /// Show its progress and return when a point behind it is confirmed
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) agent: AgentArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IdentityCommand {
    /// Make a new identity: a key (mode 0600) and its certificate in a folder
    New {
        /// Folder to make
        #[arg(long)]
        dir: PathBuf,
        /// Name of this host or site, for people
        #[arg(long)]
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show an identity's fingerprint, to be compared by people and put into the other side's settings
    Show {
        /// Folder of the identity
        #[arg(long)]
        dir: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SourceCommand {
    /// Serve the taps, keep the journal and ship it; uses sockets handed over by socket activation if there are any
    Run {
        /// Settings file (source.toml)
        #[arg(long)]
        config: PathBuf,
        /// Accept that the leg of GROUP/VOLUME has another size than before
        #[arg(long, value_name = "GROUP/VOLUME")]
        accept_resize: Vec<String>,
    },
    /// Let the running agent take in changed settings: groups and volumes that come or go, limits; VMs wait for a moment
    Reload {
        /// Accept that the leg of GROUP/VOLUME has another size than before
        #[arg(long, value_name = "GROUP/VOLUME")]
        accept_resize: Vec<String>,
        #[command(flatten)]
        agent: AgentArg,
        /// How long to wait until the agent works by the new settings
        #[arg(long, default_value = "1min", value_parser = humantime::parse_duration, value_name = "DURATION")]
        timeout: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Limit, at once, how fast a target is sent to; until the settings are taken in again
    #[command(after_help = LIMIT_EXAMPLES)]
    Limit {
        /// Name of the target in the settings
        target: PeerName,
        /// Bytes in a second on the wire, headers included, for example 2MiB; or none
        #[arg(value_parser = parse_rate)]
        rate: Rate,
        /// Limit this group only
        #[arg(long)]
        group: Option<GroupName>,
        #[command(flatten)]
        agent: AgentArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Hold the taps' listening sockets and keep 'source run' running behind them, for hosts without systemd
    Supervise {
        /// Settings file (source.toml)
        #[arg(long)]
        config: PathBuf,
    },
}

const LIMIT_EXAMPLES: &str = "Examples:
  thirdsite source limit far-site 2MiB
  thirdsite source limit far-site 512KiB --group archive
  thirdsite source limit far-site none";

/// Bytes in a second, or no limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate(pub(crate) Option<u64>);

const RATE_MIN: ByteSize = ByteSize::kib(16);

fn parse_rate(text: &str) -> Result<Rate, String> {
    if text == "none" {
        return Ok(Rate(None));
    }
    let rate: ByteSize =
        text.parse().map_err(|error| format!("{error}; give a size such as 2MiB, or none"))?;
    if rate < RATE_MIN {
        return Err(format!("{text} is less than {RATE_MIN} in a second"));
    }
    Ok(Rate(Some(rate.as_u64())))
}

#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// Receive, verify and keep segments
    Run {
        /// Settings file (site.toml)
        #[arg(long)]
        config: PathBuf,
    },
    /// Allow a protected site to send groups here; takes effect at once
    Enroll {
        /// Settings file (site.toml)
        #[arg(long)]
        config: PathBuf,
        /// Name for the protected site
        #[arg(long)]
        name: String,
        /// Fingerprint that 'thirdsite identity show' prints there
        #[arg(long)]
        fingerprint: String,
        /// Group that it may send; repeat for several
        #[arg(long = "group", required = true)]
        groups: Vec<GroupName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Withdraw an enrolment; live connections end within seconds
    Expel {
        /// Settings file (site.toml)
        #[arg(long)]
        config: PathBuf,
        /// Name of the protected site
        #[arg(long)]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CutArgs {
    /// Group to cut
    pub(crate) group: GroupName,
    /// Name for the point
    #[arg(long)]
    pub(crate) bookmark: Option<BookmarkName>,
    /// Return when the recovery site's receipt covers the point
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait for the receipt
    #[arg(long, default_value = "5min", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) agent: AgentArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Control socket of a daemon; repeat for several [default: both daemons' sockets in /run/thirdsite]
    #[arg(long, conflicts_with = "store")]
    pub(crate) control: Vec<PathBuf>,
    /// Look into this store instead, without a daemon: a folder, s3://BUCKET/PREFIX or file:///FOLDER; repeat to read several as one
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) store: Vec<Location>,
    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PointCommand {
    /// List the points of a group, oldest first
    List {
        /// The group
        group: GroupName,
        #[command(flatten)]
        store: StoreArg,
        /// Only the newest N
        #[arg(long, value_name = "N")]
        last: Option<usize>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Where a store is: the folder of a recovery site's daemon, or a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// A folder that `site run` writes to.
    Folder(PathBuf),
    /// `s3://BUCKET/PREFIX`, or `file:///FOLDER` for a bucket in a folder.
    Bucket(String),
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            None if text.is_empty() => Err("it is empty".to_owned()),
            None => Ok(Location::Folder(text.into())),
            Some(("s3" | "file", rest)) if !rest.is_empty() => Ok(Location::Bucket(text.to_owned())),
            Some(_) => Err("a folder, s3://BUCKET/PREFIX or file:///FOLDER is wanted".to_owned()),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Folder(folder) => folder.display().fmt(f),
            Location::Bucket(url) => f.write_str(url),
        }
    }
}

/// The stores that are read, as one.
#[derive(Debug, Args)]
pub(crate) struct StoreArg {
    /// Folder of a store, s3://BUCKET/PREFIX, or file:///FOLDER for a bucket in a folder; repeat to read several as one
    #[arg(long, value_name = "DIR|URL", required = true)]
    pub(crate) store: Vec<Location>,
    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

/// How buckets are read.
#[derive(Debug, Args)]
pub(crate) struct BucketArgs {
    /// Settings (TOML, as in the source's target.bucket) of the bucket that it names; repeat for several; by default what AWS_REGION, AWS_ENDPOINT_URL, AWS_PROFILE, AWS_CA_BUNDLE and the AWS keys in the environment say
    #[arg(long, value_name = "FILE", help_heading = "Buckets")]
    pub(crate) bucket_config: Vec<PathBuf>,
    /// Folder that keeps what was read of buckets [default: $XDG_CACHE_HOME/thirdsite, or a temporary folder]
    #[arg(long, value_name = "DIR", help_heading = "Buckets")]
    pub(crate) cache: Option<PathBuf>,
    /// How much of it is kept
    #[arg(long, value_name = "SIZE", default_value = "10GiB", help_heading = "Buckets")]
    pub(crate) cache_size: ByteSize,
    /// How long a bucket that does not answer is waited for; guests and exports wait meanwhile
    #[arg(long, default_value = "10min", value_parser = humantime::parse_duration, value_name = "DURATION", help_heading = "Buckets")]
    pub(crate) patience: Duration,
}

/// Which point.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct PointArg {
    /// Point with this id, as 'point list' prints it
    #[arg(long, value_name = "ID")]
    pub(crate) point: Option<PointId>,
    /// Newest point not after this time, for example 2026-11-23T10:00:00Z
    #[arg(long, value_name = "RFC3339")]
    pub(crate) at: Option<DateTime<FixedOffset>>,
    /// Newest point
    #[arg(long)]
    pub(crate) latest: bool,
    /// Newest point with this name
    #[arg(long, value_name = "NAME")]
    pub(crate) bookmark: Option<BookmarkName>,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The group
    pub(crate) group: GroupName,
    #[command(flatten)]
    pub(crate) point: PointArg,
    #[command(flatten)]
    pub(crate) store: StoreArg,
    /// Where to serve: unix:PATH or ADDRESS:PORT
    #[arg(long, value_name = "unix:PATH|HOST:PORT")]
    pub(crate) listen: Listen,
    /// Accept writes into a temporary overlay; the point stays as it is
    #[arg(long)]
    pub(crate) writable: bool,
    /// Folder for the overlay
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(crate) scratch: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// Sparse raw image
    Raw,
    /// qcow2 image (needs qemu-img)
    Qcow2,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The group
    pub(crate) group: GroupName,
    /// Volume to write
    #[arg(long, value_name = "NAME")]
    pub(crate) volume: VolumeName,
    #[command(flatten)]
    pub(crate) point: PointArg,
    #[command(flatten)]
    pub(crate) store: StoreArg,
    /// File or block device to write
    #[arg(long, value_name = "FILE|DEVICE")]
    pub(crate) output: PathBuf,
    /// Format of the image
    #[arg(long, value_enum, default_value = "raw")]
    pub(crate) format: ImageFormat,
    /// Replace a file, or write to a device, that has content
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// The guest reaches nothing
    Isolated,
    /// The guest reaches out through this host (QEMU user networking)
    User,
}

#[derive(Debug, Args)]
pub(crate) struct BootArgs {
    /// The group
    pub(crate) group: GroupName,
    #[command(flatten)]
    pub(crate) point: PointArg,
    #[command(flatten)]
    pub(crate) store: StoreArg,
    /// VM to start, if the group has several
    #[arg(long)]
    pub(crate) vm: Option<String>,
    /// File for the guest's serial console [default: standard output, standard error with --json]
    #[arg(long, value_name = "FILE")]
    pub(crate) console: Option<PathBuf>,
    /// Text on the console that says that the guest is up [default: 'ready' of the VM definition]
    #[arg(long, value_name = "TEXT")]
    pub(crate) ready: Option<String>,
    /// How long the guest may take until it is up
    #[arg(long, default_value = "5min", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(crate) timeout: Duration,
    /// What the guest's network cards are connected to
    #[arg(long, value_enum, default_value = "isolated")]
    pub(crate) network: Network,
    /// Stop the VM when it is up
    #[arg(long)]
    pub(crate) check: bool,
    /// Keep the overlays with the guest's writes in this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Folder for temporary overlays
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(crate) scratch: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) store: StoreArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
