//! `source.toml`: the protected site's agent.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal_format::definition::{DEFINITION_VERSION, Disk, Firmware, GroupDefinition, Nic, VmDefinition};
use journal_format::segment::VolumeKind;
use journal_format::{GroupName, VolumeName};
use serde::{Deserialize, Serialize};
use transport::PeerName;
use transport_bucket::{BucketSettings, Receipts};

use super::Settings;
use crate::failure::Failure;
use crate::identity::parse_fingerprint;
use crate::source::Role;

use super::units::{Listen, duration, optional_size, size};

const MEMORY_BUDGET_MIN_BYTES: u64 = 16 << 20;
const RESYNC_RATE_MIN_BYTES: u64 = 1 << 20;
const JOURNAL_LIMIT_MIN_BYTES: u64 = 64 << 20;
const RATE_MIN_BYTES: u64 = 16 << 10;
const DEDUP_COVERS_MIN_BYTES: u64 = 1 << 30;

/// The protected site's settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceSettings {
    version: u32,
    /// Folder made by `identity new`.
    pub(crate) identity: PathBuf,
    /// Folder of the journals.
    pub(crate) journal: PathBuf,
    /// Unix socket for `status` and `cut`.
    pub(crate) control: PathBuf,
    /// Where the groups are shipped to.
    #[serde(default, rename = "target")]
    pub(crate) targets: Vec<TargetTable>,
    /// Where VMs find their disks.
    pub(crate) tap: TapTable,
    /// The pair's other host.
    pub(crate) pair: Option<PairTable>,
    /// What the site has is not sent again.
    #[serde(default)]
    pub(crate) dedup: DedupTable,
    /// The groups.
    #[serde(default, rename = "group")]
    pub(crate) groups: Vec<GroupTable>,
}

/// `[[target]]`: a place that all groups are shipped to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetTable {
    /// Its name, in `status` and messages.
    pub(crate) name: TargetName,
    /// A recovery site's daemon.
    site: Option<SiteTable>,
    /// A bucket: the keys of `transport/bucket/BUCKET.md`.
    bucket: Option<BucketSettings>,
    /// Fingerprint of the recovery site whose word is waited for, if the bucket's settings say `receipts = "checked"`.
    checked_by: Option<String>,
    /// Bytes that a site is sent in a second at most, headers included.
    #[serde(default, deserialize_with = "optional_size")]
    pub(crate) rate_max: Option<u64>,
}

/// What a target is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// A recovery site's daemon, over QUIC.
    Site(&'a SiteTable),
    /// A bucket, without a server of ours.
    Bucket(&'a BucketSettings, Option<&'a String>),
}

/// What a target is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TargetKind {
    /// A recovery site's daemon, over QUIC.
    Site,
    /// A bucket.
    Bucket,
}

/// Name of a target: like that of a peer.
pub(crate) type TargetName = PeerName;

impl TargetTable {
    /// What the target is. Settings that were checked have exactly one.
    pub(crate) fn place(&self) -> Place<'_> {
        match (&self.site, &self.bucket) {
            (Some(site), None) => Place::Site(site),
            (None, Some(bucket)) => Place::Bucket(bucket, self.checked_by.as_ref()),
            _ => unreachable!("the settings were checked"),
        }
    }

    /// The same in one word.
    pub(crate) fn kind(&self) -> TargetKind {
        match self.place() {
            Place::Site(_) => TargetKind::Site,
            Place::Bucket(..) => TargetKind::Bucket,
        }
    }

    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if self.rate_max.is_some_and(|rate| rate < RATE_MIN_BYTES) {
            return Err(format!("target '{name}': rate_max is smaller than 16KiB"));
        }
        let bucket = match (&self.site, &self.bucket) {
            (Some(_), None) if self.checked_by.is_none() => return Ok(()),
            (Some(_), None) => return Err(format!("target '{name}': checked_by is for buckets")),
            (None, Some(bucket)) => bucket,
            _ => return Err(format!("target '{name}' needs either [target.site] or [target.bucket]")),
        };
        bucket.check().map_err(|error| {
            let hint = error.hint().map_or_else(String::new, |hint| format!("; {hint}"));
            format!("target '{name}': {error}{hint}")
        })?;
        if self.rate_max.is_some() {
            return Err(format!("target '{name}': rate_max is for sites"));
        }
        match (bucket.receipts, &self.checked_by) {
            (Receipts::Checked, None) => Err(format!(
                "target '{name}': receipts = \"checked\" needs checked_by, the fingerprint of the recovery site that runs 'thirdsite store check'"
            )),
            (Receipts::Stored, Some(_)) => {
                Err(format!("target '{name}': checked_by has no meaning without receipts = \"checked\""))
            }
            _ => Ok(()),
        }
    }
}

/// `[target.site]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SiteTable {
    /// `HOST:PORT` of the site's daemon.
    pub(crate) address: String,
    /// Fingerprint of the site's identity.
    pub(crate) fingerprint: String,
    /// Another one that is trusted as well, while the site changes its identity.
    pub(crate) next_fingerprint: Option<String>,
}

/// `[pair]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PairTable {
    /// Role of this host before it ever took one; afterwards its journal knows.
    pub(crate) role: Role,
    /// Where the other host's agent connects to.
    pub(crate) listen: SocketAddr,
    /// `HOST:PORT` where the other host's agent listens.
    pub(crate) peer: String,
    /// Fingerprint of the other host's identity.
    pub(crate) fingerprint: String,
    /// How long a write to a region that is not marked waits for the other host before this one goes on alone.
    #[serde(default = "default_pair_patience", deserialize_with = "duration")]
    pub(crate) patience: Duration,
    /// What makes a standby take over.
    #[serde(default)]
    pub(crate) takeover: TakeoverWord,
}

/// `[dedup]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DedupTable {
    /// Size of the different blocks that are known at most, in bytes; nothing is looked for if it is 0.
    #[serde(default = "default_dedup_covers", deserialize_with = "size")]
    pub(crate) covers: u64,
}

impl Default for DedupTable {
    fn default() -> Self {
        DedupTable { covers: default_dedup_covers() }
    }
}

/// What makes a standby take over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TakeoverWord {
    /// `thirdsite pair takeover` only.
    #[default]
    Manual,
    /// That, or a VM that connects to this host's tap.
    OnConnect,
}

/// `[tap]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TapTable {
    /// Listening sockets, in the order in which socket activation hands them over.
    pub(crate) listen: Vec<Listen>,
}

/// `[[group]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupTable {
    /// Name of the group.
    pub(crate) name: GroupName,
    /// Time between two cuts.
    #[serde(default = "default_cut_interval", deserialize_with = "duration")]
    pub(crate) cut_interval: Duration,
    /// Limit of the payload in memory, in bytes.
    #[serde(default = "default_memory_budget", deserialize_with = "size")]
    pub(crate) memory_budget: u64,
    /// Limit of the journal on disk, in bytes.
    #[serde(default = "default_journal_limit", deserialize_with = "size")]
    pub(crate) journal_limit: u64,
    /// Bytes that are sent to each site in a second at most.
    #[serde(default, deserialize_with = "optional_size")]
    pub(crate) rate_max: Option<u64>,
    /// How old the newest point at a target may become: whichever group would break its own first is sent first.
    #[serde(default = "default_rpo", deserialize_with = "duration")]
    pub(crate) rpo: Duration,
    /// Bytes that a resync reads in a second at most.
    #[serde(default, deserialize_with = "optional_size")]
    pub(crate) resync_rate: Option<u64>,
    /// How long a write waits for its mark in the intent map at most.
    #[serde(default = "default_mark_patience", deserialize_with = "duration")]
    pub(crate) mark_patience: Duration,
    /// Time between two looks for marks that can be taken out of the intent map.
    #[serde(default = "default_clear_interval", deserialize_with = "duration")]
    pub(crate) clear_interval: Duration,
    /// zstd level of the segments.
    #[serde(default = "default_compression_level")]
    pub(crate) compression_level: i32,
    /// Volumes.
    #[serde(default, rename = "volume")]
    pub(crate) volumes: Vec<VolumeTable>,
    /// VMs.
    #[serde(default, rename = "vm")]
    pub(crate) vms: Vec<VmTable>,
}

/// `[[group.volume]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeTable {
    /// Name of the volume.
    pub(crate) name: VolumeName,
    /// Raw file or block device.
    pub(crate) leg: PathBuf,
    /// What it holds.
    #[serde(default)]
    kind: KindWord,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindWord {
    #[default]
    Disk,
    Firmware,
}

impl VolumeTable {
    /// What the volume holds.
    pub(crate) fn kind(&self) -> VolumeKind {
        match self.kind {
            KindWord::Disk => VolumeKind::Disk,
            KindWord::Firmware => VolumeKind::Firmware,
        }
    }
}

/// `[[group.vm]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmTable {
    name: String,
    machine: String,
    #[serde(default = "default_accel")]
    accel: String,
    cpu: String,
    #[serde(default = "default_cpus")]
    cpus: u32,
    #[serde(deserialize_with = "size")]
    memory: u64,
    uuid: Option<String>,
    firmware: Firmware,
    #[serde(default, rename = "disk")]
    disks: Vec<Disk>,
    #[serde(default, rename = "nic")]
    nics: Vec<Nic>,
    ready: Option<String>,
}

impl GroupTable {
    /// The definition that travels with the points, if there is a VM.
    pub(crate) fn definition(&self) -> Option<GroupDefinition> {
        let vm = |table: &VmTable| VmDefinition {
            name: table.name.clone(),
            machine: table.machine.clone(),
            accel: table.accel.clone(),
            cpu: table.cpu.clone(),
            cpus: table.cpus,
            memory_bytes: table.memory,
            uuid: table.uuid.clone(),
            firmware: table.firmware.clone(),
            disks: table.disks.clone(),
            nics: table.nics.clone(),
            ready: table.ready.clone(),
        };
        let vms: Vec<VmDefinition> = self.vms.iter().map(vm).collect();
        (!vms.is_empty()).then_some(GroupDefinition { version: DEFINITION_VERSION, vms })
    }

    fn check(&self) -> Result<(), String> {
        let group = &self.name;
        if self.volumes.is_empty() {
            return Err(format!("group '{group}' has no [[group.volume]]"));
        }
        if let Some(name) = first_double(self.volumes.iter().map(|volume| &volume.name)) {
            return Err(format!("group '{group}' has two volumes named '{name}'"));
        }
        if self.cut_interval < Duration::from_millis(10) {
            return Err(format!("group '{group}': cut_interval is shorter than 10ms"));
        }
        if self.clear_interval < Duration::from_millis(100) {
            return Err(format!("group '{group}': clear_interval is shorter than 100ms"));
        }
        if self.rate_max.is_some_and(|rate| rate < RATE_MIN_BYTES) {
            return Err(format!("group '{group}': rate_max is smaller than 16KiB"));
        }
        if self.memory_budget < MEMORY_BUDGET_MIN_BYTES {
            return Err(format!("group '{group}': memory_budget is smaller than 16MiB"));
        }
        if self.journal_limit < JOURNAL_LIMIT_MIN_BYTES {
            return Err(format!("group '{group}': journal_limit is smaller than 64MiB"));
        }
        if self.resync_rate.is_some_and(|rate| rate < RESYNC_RATE_MIN_BYTES) {
            return Err(format!("group '{group}': resync_rate is smaller than 1MiB"));
        }
        if !(-7..=19).contains(&self.compression_level) {
            return Err(format!("group '{group}': compression_level is not between -7 and 19"));
        }
        self.vms.iter().try_for_each(|vm| self.check_vm(vm))?;
        if let Some(name) = first_double(self.vms.iter().map(|vm| &vm.name)) {
            return Err(format!("group '{group}' has two VMs named '{name}'"));
        }
        let checked = self
            .definition()
            .map_or(Ok(()), |definition| definition.vms.iter().try_for_each(VmDefinition::check));
        checked.map_err(|error| format!("group '{group}': {error}"))
    }

    fn check_vm(&self, vm: &VmTable) -> Result<(), String> {
        let place = format!("group '{}', VM '{}'", self.name, vm.name);
        if matches!(vm.machine.as_str(), "pc" | "q35") {
            return Err(format!(
                "{place}: machine '{}' is an alias that changes with QEMU's version; name the versioned type, for example pc-q35-10.0",
                vm.machine
            ));
        }
        if matches!(vm.cpu.as_str(), "host" | "max") {
            return Err(format!(
                "{place}: cpu '{}' differs from host to host; name a model, for example qemu64",
                vm.cpu
            ));
        }
        let vars = match &vm.firmware {
            Firmware::Uefi { vars, .. } => Some(vars),
            _ => None,
        };
        let used = vm.disks.iter().map(|disk| &disk.volume).chain(vars);
        for volume in used {
            if !self.volumes.iter().any(|known| &known.name == volume) {
                return Err(format!("{place} uses volume '{volume}', which the group does not have"));
            }
        }
        Ok(())
    }
}

impl SourceSettings {
    /// What an agent cannot change while it runs and that differs in other settings, if anything does.
    pub(crate) fn fixed_part_that_differs(&self, other: &SourceSettings) -> Option<&'static str> {
        let differs = [
            ("identity", self.identity != other.identity),
            ("journal", self.journal != other.journal),
            ("control", self.control != other.control),
            ("[tap] listen", self.tap.listen != other.tap.listen),
            ("[pair]", self.pair != other.pair),
            ("[dedup]", self.dedup != other.dedup),
        ];
        differs.into_iter().find_map(|(part, differs)| differs.then_some(part))
    }

    /// Finds out at the start whether every fingerprint is one.
    pub(crate) fn check_fingerprints(&self) -> Result<(), Failure> {
        let of_targets = self.targets.iter().flat_map(|target| match target.place() {
            Place::Site(site) => [Some(&site.fingerprint), site.next_fingerprint.as_ref()],
            Place::Bucket(_, checked_by) => [checked_by, None],
        });
        let of_pair = self.pair.iter().map(|pair| &pair.fingerprint);
        of_targets.flatten().chain(of_pair).try_for_each(|text| parse_fingerprint(text).map(drop))
    }

    /// A write has to wait for the pair's other host as long as that is waited for, and a little longer.
    pub(crate) fn mark_patience_min(&self) -> Duration {
        self.pair.as_ref().map_or(Duration::ZERO, |pair| pair.patience + Duration::from_secs(1))
    }
}

impl Settings for SourceSettings {
    fn version(&self) -> u32 {
        self.version
    }

    fn resolve(&mut self, folder: &Path) {
        for path in [&mut self.identity, &mut self.journal, &mut self.control] {
            *path = folder.join(&path);
        }
        self.tap.listen.iter_mut().for_each(|listen| listen.resolve(folder));
        self.targets
            .iter_mut()
            .flat_map(|target| &mut target.bucket)
            .for_each(|bucket| bucket.resolve(folder));
        for volume in self.groups.iter_mut().flat_map(|group| &mut group.volumes) {
            volume.leg = folder.join(&volume.leg);
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.groups.is_empty() {
            return Err("there is no [[group]]: nothing is protected".to_owned());
        }
        if self.tap.listen.is_empty() {
            return Err("[tap] listen is empty: no VM could reach its disk".to_owned());
        }
        if self.targets.is_empty() {
            return Err("there is no [[target]]: nothing would be shipped".to_owned());
        }
        self.targets.iter().try_for_each(TargetTable::check)?;
        if let Some(name) = first_double(self.targets.iter().map(|target| &target.name)) {
            return Err(format!("two targets are named '{name}'"));
        }
        if let Some(pair) = &self.pair
            && !(Duration::from_millis(500)..=Duration::from_secs(30)).contains(&pair.patience)
        {
            return Err("[pair] patience is not between 500ms and 30s".to_owned());
        }
        if !(self.dedup.covers == 0 || self.dedup.covers >= DEDUP_COVERS_MIN_BYTES) {
            return Err("[dedup] covers is neither 0B nor at least 1GiB".to_owned());
        }
        if let Some(name) = first_double(self.groups.iter().map(|group| &group.name)) {
            return Err(format!("two groups are named '{name}'"));
        }
        let seed = |group: &GroupTable| {
            group.name.seed().filter(|seed| self.groups.iter().any(|other| other.name == *seed))
        };
        if let Some(name) = self.groups.iter().find_map(seed) {
            return Err(format!("group '{name}' has the name of another group's seed"));
        }
        let legs = self.groups.iter().flat_map(|group| &group.volumes).map(|volume| &volume.leg);
        if let Some(leg) = first_double(legs) {
            return Err(format!("leg '{}' is used by two volumes", leg.display()));
        }
        self.groups.iter().try_for_each(GroupTable::check)
    }
}

fn first_double<'a, T: Eq + std::hash::Hash>(mut items: impl Iterator<Item = &'a T>) -> Option<&'a T> {
    let mut seen = HashSet::new();
    items.find(|item| !seen.insert(*item))
}

fn default_cut_interval() -> Duration {
    Duration::from_secs(1)
}

fn default_rpo() -> Duration {
    Duration::from_secs(10)
}

fn default_memory_budget() -> u64 {
    256 << 20
}

fn default_journal_limit() -> u64 {
    10 << 30
}

fn default_dedup_covers() -> u64 {
    1 << 40
}

fn default_pair_patience() -> Duration {
    Duration::from_secs(2)
}

fn default_clear_interval() -> Duration {
    Duration::from_secs(15)
}

fn default_mark_patience() -> Duration {
    journal::MARK_PATIENCE
}

fn default_compression_level() -> i32 {
    3
}

fn default_accel() -> String {
    "kvm:tcg".to_owned()
}

fn default_cpus() -> u32 {
    1
}
