//! References and differences against a recovery site that forgets, lies, and is believed to have what it does not have. The parts are the real
//! ones, in one process: groups with their journals, taps and index, and the store behind the transport's own interface.
//!
//! Whatever the site does, every point that it lists is exact and the newest state arrives; what it costs is bytes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use journal::{
    Compared, Comparer, CutRequest, DirStorage, FileLeg, Group, GroupSettings, KnownBlocks, LearntBlock,
    MARK_PATIENCE, RegionState, SiteHead, SweepStep, SystemClock, TapVolume, VolumeSettings,
};
use journal_format::segment::{BuildOptions, SegmentSource, VolumeKind};
use journal_format::{Generation, GroupName, Hash, PointId, Sequence, VolumeName};
use journal_nbd::{Arena, Export, Payload, ZeroMode};
use restore::{Store, StoreWriter, ViewOptions, WriterOptions};
use tests::scaled;
use tests::workload::Random;
use transport::{
    AttachedSegment, Begin, CallAnswer, CallRequest, Inbox, LISTED_BLOCKS_MAX, PeerName, RefusalKind,
    RegionAnswer, SegmentDescriptor,
};

const BLOCK: usize = 4096;
const VOLUME_BYTES: usize = 2 << 20;
const BLOCKS: u64 = (VOLUME_BYTES / BLOCK) as u64;

fn peer() -> PeerName {
    "pair-a".parse().expect("a name")
}

/// Asks the store in the same process.
struct Direct {
    writer: Arc<StoreWriter>,
    group: GroupName,
}

impl Comparer for Direct {
    fn compare(
        &self,
        volume: &VolumeName,
        size_bytes: u64,
        offset: u64,
        regions: &[Hash],
    ) -> Option<Compared> {
        let regions = regions.iter().map(|hash| hash.0).collect();
        let request = CallRequest::Compare { volume: volume.clone(), offset, regions, size_bytes };
        let CallAnswer::Compared { head, regions } = self.writer.call(&self.group, request).ok()? else {
            return None;
        };
        let state = |answer| match answer {
            RegionAnswer::Equal => RegionState::Equal,
            RegionAnswer::Blocks(hashes) => RegionState::Blocks(hashes.into_iter().map(Hash).collect()),
        };
        Some(Compared { head, regions: regions.into_iter().map(state).collect() })
    }
}

/// One group with what its points should hold.
struct Member {
    name: GroupName,
    leg: PathBuf,
    journal: PathBuf,
    group: Arc<Group>,
    tap: TapVolume,
    content: Vec<u8>,
    points: HashMap<PointId, Vec<u8>>,
}

impl Member {
    fn open(folder: &Path, name: &str, known: &Arc<KnownBlocks>) -> anyhow::Result<Member> {
        let (leg, journal) = (folder.join(format!("{name}.raw")), folder.join("journal").join(name));
        if !leg.exists() {
            fs::write(&leg, vec![0; VOLUME_BYTES])?;
        }
        let group = open_group(name, &leg, &journal, known)?;
        let (tap, content) = (TapVolume::new(group.clone(), 0), fs::read(&leg)?);
        Ok(Member { name: name.parse()?, leg, journal, group, tap, content, points: HashMap::new() })
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> anyhow::Result<()> {
        self.content[offset..offset + bytes.len()].copy_from_slice(bytes);
        let written = self.tap.write(offset as u64, Payload::from_vec(bytes.to_vec()));
        written.map_err(|errno| anyhow::anyhow!("the tap answers {errno}"))
    }

    fn zero(&mut self, offset: usize, length: usize) -> anyhow::Result<()> {
        self.content[offset..offset + length].fill(0);
        let zeroed = self.tap.write_zeroes(offset as u64, length as u64, ZeroMode::MayPunch);
        zeroed.map_err(|errno| anyhow::anyhow!("the tap answers {errno}"))
    }

    /// Cuts, seals, and remembers what the point holds.
    fn cut(&mut self) -> anyhow::Result<()> {
        let ticket = self.group.cut(CutRequest::default());
        while self.group.seal_next() {}
        if let Ok(sealed) = ticket.recv()?
            && sealed.is_point
        {
            self.points.insert(sealed.point, self.content.clone());
        }
        Ok(())
    }
}

fn open_group(
    name: &str,
    leg: &Path,
    journal: &Path,
    known: &Arc<KnownBlocks>,
) -> anyhow::Result<Arc<Group>> {
    let volume = VolumeSettings {
        name: "disk0".parse()?,
        kind: VolumeKind::Disk,
        leg: Arc::new(FileLeg::open(leg)?),
        accept_resize: false,
    };
    let settings = GroupSettings {
        name: name.parse()?,
        volumes: vec![volume],
        definition: None,
        memory_budget_bytes: 64 << 20,
        journal_limit_bytes: 256 << 20,
        build: BuildOptions { level: 1, frame_bytes: 64 << 10 },
        known: Some(known.clone()),
        mark_patience: MARK_PATIENCE,
        resync_rate_bytes: None,
    };
    let storage = Arc::new(DirStorage::open(journal)?);
    Ok(Group::open(settings, storage, Arc::new(SystemClock), Arena::new(1 << 20), Box::new(|_, _| {}))?)
}

struct World {
    folder: PathBuf,
    random: Random,
    known: Arc<KnownBlocks>,
    writer: Arc<StoreWriter>,
    members: Vec<Member>,
    lacking: u64,
}

impl World {
    fn new(folder: &Path, seed: u64) -> anyhow::Result<World> {
        let known = Arc::new(KnownBlocks::open(&folder.join("journal/known.blocks"), 1 << 20)?);
        let writer = Arc::new(StoreWriter::open(&folder.join("store"), WriterOptions::default())?);
        let members = ["one", "two"].map(|name| Member::open(folder, name, &known));
        let members = members.into_iter().collect::<anyhow::Result<_>>()?;
        let mut world = World {
            folder: folder.to_owned(),
            random: Random::new(seed),
            known,
            writer,
            members,
            lacking: 0,
        };
        world.connect()?;
        Ok(world)
    }

    fn connect(&mut self) -> anyhow::Result<()> {
        for member in &self.members {
            let claimed = self.writer.claim(&peer(), &member.name, member.group.generation());
            claimed.and_then(|()| self.writer.open_group(&peer(), &member.name))?;
            let direct = Direct { writer: self.writer.clone(), group: member.name.clone() };
            member.group.set_comparer(Some(Arc::new(direct)));
        }
        Ok(())
    }

    fn below(&mut self, bound: u64) -> usize {
        self.random.below(bound) as usize
    }

    /// One write of some kind.
    fn write(&mut self) -> anyhow::Result<()> {
        let number = self.below(2);
        let count = 1 + self.below(24);
        let to = self.below(BLOCKS - count as u64) * BLOCK;
        match self.random.below(10) {
            // New content, half of it compressible.
            0..3 => {
                let mut bytes = vec![0; count * BLOCK];
                let key = self.random.below(u64::MAX).to_le_bytes();
                blake3::Hasher::new().update(&key).finalize_xof().fill(&mut bytes);
                let half = bytes.len() / 2;
                bytes[..half].iter_mut().for_each(|byte| *byte &= 1);
                self.members[number].write(to, &bytes)
            }
            // Content that some group has, or had, somewhere.
            3..6 => {
                let (from, of) = (self.below(BLOCKS - count as u64) * BLOCK, self.below(2));
                let bytes = self.members[of].content[from..from + count * BLOCK].to_vec();
                self.members[number].write(to, &bytes)
            }
            // A few bytes of blocks that are there.
            6..9 => {
                let mut bytes = self.members[number].content[to..to + count * BLOCK].to_vec();
                for block in bytes.chunks_mut(BLOCK) {
                    let at = self.below(BLOCK as u64 - 64);
                    block[at] = block[at].wrapping_add(1);
                    block[at + 60] ^= 0x55;
                }
                self.members[number].write(to, &bytes)
            }
            _ => {
                self.members[number].zero(to, count * BLOCK)?;
                self.members[number].write(to + 512, &[7; 1024])
            }
        }
    }

    /// Ships what waits in the journals; answers whether everything was taken.
    fn ship(&mut self) -> anyhow::Result<bool> {
        let mut all = true;
        for number in 0..self.members.len() {
            all &= self.ship_one(number)?;
        }
        Ok(all)
    }

    fn ship_one(&mut self, number: usize) -> anyhow::Result<bool> {
        let member = &self.members[number];
        let (SiteHead::Continue(next) | SiteHead::Rebased(next)) =
            member.group.site_head(self.writer.head(&member.name))?;
        for stored in member.group.pending(next, 1000) {
            let sequence = stored.position.sequence;
            member.group.check_segment(sequence)?;
            let bytes = fs::read(member.journal.join(Group::segment_name(sequence)))?;
            let (position, parent, size_bytes) = (stored.position, stored.parent, stored.size_bytes);
            let descriptor = SegmentDescriptor { position, parent, size_bytes };
            let taken = self.writer.begin(&member.name, &descriptor).and_then(|begin| match begin {
                Begin::Have(head) => Ok(head),
                Begin::Receive(mut sink) => {
                    sink.write_at(0, &bytes)?;
                    sink.commit()
                }
            });
            match taken {
                Ok(head) => {
                    let head = head.context("no head after a commit")?;
                    member.group.receipt(head)?;
                    member.group.note_everywhere(head.sequence);
                }
                Err(refusal) => {
                    match refusal.kind {
                        RefusalKind::Lacking => {
                            self.lacking += 1;
                            member.group.site_lacks(sequence);
                        }
                        RefusalKind::Diverged | RefusalKind::Corrupt => member.group.distrust(),
                        _ => bail!("{refusal}"),
                    }
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Brings everything to the site.
    fn settle(&mut self) -> anyhow::Result<()> {
        for _ in 0..100 {
            let mut idle = true;
            for member in &mut self.members {
                for _ in 0..100 {
                    idle &= member.group.sweep_step() == SweepStep::Idle;
                }
                member.cut()?;
            }
            let taken = self.ship()?;
            let newest = |member: &Member| {
                let last = member.group.status().last_point;
                last.is_some_and(|last| self.writer.head(&member.name) == Some(last.position))
            };
            if idle && taken && self.members.iter().all(newest) {
                return Ok(());
            }
        }
        bail!("the last cut did not become a point at the site")
    }

    /// Every point that the store lists holds what it should, and the newest one what the legs hold.
    fn check(&self) -> anyhow::Result<u64> {
        let store = Store::open(&self.folder.join("store"))?;
        let mut checked = 0;
        for member in &self.members {
            let points = store.points(&member.name)?;
            for point in &points {
                let expected = member.points.get(&point.id).context("a point that was never cut")?;
                let view = store.open_point(point, &ViewOptions::default())?;
                let volume = view.volume(&"disk0".parse()?)?;
                let mut bytes = vec![0xee; VOLUME_BYTES];
                volume.read_at(0, &mut bytes)?;
                ensure!(bytes == *expected, "point {} of {} differs", point.id, member.name);
                checked += 1;
            }
            let newest = points.last().context("no point")?;
            ensure!(
                member.points[&newest.id] == fs::read(&member.leg)?,
                "the newest point differs from the leg"
            );
        }
        Ok(checked)
    }

    fn reopen_store(&mut self, change: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let root = self.folder.join("store");
        self.members.iter().for_each(|member| member.group.set_comparer(None));
        // The lock ends with the last user.
        let elsewhere =
            Arc::new(StoreWriter::open(&self.folder.join("other-store"), WriterOptions::default())?);
        self.writer = elsewhere;
        change(&root)?;
        self.writer = Arc::new(StoreWriter::open(&root, WriterOptions::default())?);
        fs::remove_dir_all(self.folder.join("other-store"))?;
        self.connect()
    }

    /// The agent ends without a word and comes back, perhaps without its index.
    fn crash(&mut self, lose_index: bool) -> anyhow::Result<()> {
        let points: Vec<_> = self.members.drain(..).map(|member| (member.name, member.points)).collect();
        // The index can be opened again when its last user is gone.
        let (index, spare) = (self.folder.join("journal/known.blocks"), self.folder.join("spare"));
        self.known = Arc::new(KnownBlocks::open(&spare, 1 << 20)?);
        if lose_index {
            fs::remove_dir_all(&index)?;
        }
        self.known = Arc::new(KnownBlocks::open(&index, 1 << 20)?);
        fs::remove_dir_all(&spare)?;
        for (name, points) in points {
            let member = Member::open(&self.folder, name.as_str(), &self.known)?;
            self.members.push(Member { points, ..member });
        }
        self.connect()
    }

    fn segments(&self, group: &GroupName) -> anyhow::Result<Vec<AttachedSegment>> {
        let listed = self.writer.call(group, CallRequest::Attached { seed: false, before: None });
        let Ok(CallAnswer::Attached(segments)) = listed else {
            bail!("the site lists no segments: {listed:?}")
        };
        Ok(segments)
    }

    /// Makes the source believe that blocks, which it is likely to write, lie where something else lies, or nothing.
    fn mislead(&mut self) -> anyhow::Result<()> {
        let number = self.below(2);
        let of = self.members[number].name.clone();
        let segments = self.segments(&of)?;
        let mut source = SegmentSource {
            group: of,
            generation: Generation(1),
            sequence: Sequence(1 + self.random.below(10)),
            hash: Hash([self.random.below(256) as u8; 32]),
        };
        if !segments.is_empty() && self.random.below(3) > 0 {
            let segment = segments[self.below(segments.len() as u64)];
            (source.sequence, source.hash) = (segment.sequence, Hash(segment.hash));
        }
        let blocks: Vec<LearntBlock> = (0..200)
            .map(|_| {
                let (of, at) = (self.below(2), self.below(BLOCKS) * BLOCK);
                LearntBlock {
                    hash: Hash::of(&self.members[of].content[at..at + BLOCK]),
                    frame: self.random.below(3) as u32,
                    offset: self.random.below(16) as u32 * BLOCK as u32,
                    steps: self.random.below(5) as u8,
                }
            })
            .collect();
        self.known.learn(&source, blocks);
        Ok(())
    }

    /// Learns what the site says, as the agent does after a takeover.
    fn learn(&mut self) -> anyhow::Result<()> {
        for member in &self.members {
            for segment in self.segments(&member.name)? {
                let (seed, sequence) = (false, segment.sequence);
                let mut blocks: Vec<LearntBlock> = Vec::new();
                loop {
                    let request = CallRequest::Blocks { seed, sequence, skip: blocks.len() as u32 };
                    let listed = match self.writer.call(&member.name, request) {
                        Ok(CallAnswer::Blocks(listed)) => listed,
                        other => bail!("the site lists no blocks: {other:?}"),
                    };
                    blocks.extend(listed.iter().map(|block| {
                        let mut hash = [0; 32];
                        hash[..8].copy_from_slice(&block.fingerprint);
                        let offset = u32::from(block.block) * BLOCK as u32;
                        LearntBlock { hash: Hash(hash), frame: block.frame, offset, steps: block.steps }
                    }));
                    if listed.len() < LISTED_BLOCKS_MAX {
                        break;
                    }
                }
                let (group, hash) = (member.name.clone(), Hash(segment.hash));
                let source = SegmentSource { group, generation: segment.generation, sequence, hash };
                self.known.learn(&source, blocks);
            }
        }
        Ok(())
    }

    /// What a bad site, or a bad day, does.
    fn adversary(&mut self, saved: &mut Option<PathBuf>) -> anyhow::Result<&'static str> {
        match self.random.below(8) {
            0 => {
                let copy = self.folder.join("saved");
                if copy.exists() {
                    fs::remove_dir_all(&copy)?;
                }
                self.reopen_store(|root| copy_folder(root, &copy))?;
                *saved = Some(copy);
                Ok("the store is saved")
            }
            1 if saved.is_some() => {
                let copy = saved.take().context("just looked at")?;
                self.reopen_store(|root| {
                    fs::remove_dir_all(root)?;
                    Ok(fs::rename(&copy, root)?)
                })?;
                Ok("the site forgets what came since")
            }
            2 => {
                let garble = self.random.below(2) == 0;
                let folder = self.folder.clone();
                self.reopen_store(|_| spoil_block_lists(&folder, garble))?;
                Ok("block lists are gone or garbled")
            }
            3 => {
                let lose_index = self.random.below(2) == 0;
                self.crash(lose_index)?;
                Ok("the agent crashes")
            }
            4 => {
                self.learn()?;
                Ok("the agent learns what the site has")
            }
            _ => {
                self.mislead()?;
                Ok("the agent is misled")
            }
        }
    }
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn spoil_block_lists(folder: &Path, garble: bool) -> anyhow::Result<()> {
    for group in ["one", "two"] {
        for entry in fs::read_dir(folder.join("store/groups").join(group).join("blocks"))? {
            let path = entry?.path();
            if garble {
                let mut bytes = fs::read(&path)?;
                bytes.iter_mut().skip(48).for_each(|byte| *byte ^= 0x5a);
                fs::write(&path, bytes)?;
            } else {
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

fn one_life(seed: u64) -> anyhow::Result<(u64, u64, journal::SealCounters)> {
    let folder = tempfile::tempdir()?;
    let mut world = World::new(folder.path(), seed)?;
    let mut saved = None;
    for _ in 0..12 {
        for _ in 0..1 + world.below(12) {
            world.write()?;
        }
        for member in &mut world.members {
            member.cut()?;
        }
        if world.below(3) > 0 {
            world.ship()?;
        }
        if world.below(2) == 0 {
            let what = world.adversary(&mut saved)?;
            eprintln!("seed {seed}: {what}");
        }
    }
    world.settle()?;
    let checked = world.check()?;
    let mut sealed = journal::SealCounters::default();
    world.members.iter().for_each(|member| sealed += member.group.status().sealed);
    Ok((checked, world.lacking, sealed))
}

#[test]
fn every_point_is_exact_whatever_the_site_forgets_or_lies_about() -> anyhow::Result<()> {
    let (mut points, mut lacking, mut sealed) = (0, 0, journal::SealCounters::default());
    let seeds = scaled(30, 500);
    for seed in 0..seeds {
        let (checked, refused, counters) = one_life(seed).with_context(|| format!("seed {seed}"))?;
        points += checked;
        lacking += refused;
        sealed += counters;
    }
    println!(
        "{seeds} seeds, {points} points checked, {lacking} segments refused for what they refer to, {sealed:?}"
    );
    ensure!(points > 0 && lacking > seeds / 4, "the site was never in the way");
    ensure!(sealed.known_bytes > 0 && sealed.difference_bytes > 0, "nothing was referred to: {sealed:?}");
    Ok(())
}
