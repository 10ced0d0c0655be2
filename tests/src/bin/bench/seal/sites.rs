//! A group with its journal, and the recovery site's store, without a network between them.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use anyhow::{Context, bail, ensure};
use journal::{
    CutRequest, DirStorage, Group, GroupSettings, KnownBlocks, Leg, LegStamp, MARK_PATIENCE, StoredSegment,
    SystemClock, TapVolume, VolumeSettings,
};
use journal_format::segment::{BuildOptions, VolumeKind};
use journal_nbd::{Arena, Errno, Export, Payload, StatusExtent, ZeroMode};
use restore::{StoreWriter, WriterOptions};
use transport::{Begin, Inbox, PeerName, SegmentDescriptor};

use super::MEMORY;

/// What the guest writes at once.
const WRITE: usize = 1 << 20;
/// What the transport takes from a stream at once.
const ARRIVAL: usize = 128 << 10;

/// A sealed segment.
pub(super) struct Sealed {
    descriptor: SegmentDescriptor,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Sites {
    group: Arc<Group>,
    tap: TapVolume,
    store: StoreWriter,
    peer: PeerName,
    /// Removed at the end.
    folder: tempfile::TempDir,
}

impl Sites {
    pub(super) fn open(level: i32, volume_bytes: usize) -> anyhow::Result<Sites> {
        let folder = tempfile::Builder::new().prefix("bench-seal-").tempdir_in(MEMORY)?;
        let known = KnownBlocks::open(&folder.path().join("known"), 1 << 28)?;
        let storage = Arc::new(DirStorage::open(&folder.path().join("journal"))?);
        let leg = Arc::new(MemoryLeg(RwLock::new(vec![0; volume_bytes])));
        let settings = GroupSettings {
            name: "demo".parse()?,
            volumes: vec![VolumeSettings {
                name: "disk0".parse()?,
                kind: VolumeKind::Disk,
                leg,
                accept_resize: false,
            }],
            definition: None,
            // So much that the level is the one that was asked for.
            memory_budget_bytes: 16 * volume_bytes as u64,
            journal_limit_bytes: u64::MAX,
            build: BuildOptions { level, ..BuildOptions::default() },
            known: Some(Arc::new(known)),
            mark_patience: MARK_PATIENCE,
            resync_rate_bytes: None,
        };
        let arena = Arena::new(1 << 20);
        let group = Group::open(settings, storage, Arc::new(SystemClock), arena, Box::new(|_, _| ()))?;
        let tap = TapVolume::new(group.clone(), 0);
        let store = StoreWriter::open(&folder.path().join("store"), WriterOptions::default())?;
        let peer: PeerName = "source".parse()?;
        store.claim(&peer, group.name(), group.generation())?;
        store.open_group(&peer, group.name())?;
        Ok(Sites { group, tap, store, peer, folder })
    }

    /// Writes the whole volume through the tap.
    pub(super) fn write(&self, content: &[u8]) -> anyhow::Result<()> {
        for (number, piece) in content.chunks(WRITE).enumerate() {
            let written = self.tap.write((number * WRITE) as u64, Payload::from_vec(piece.to_vec()));
            written.map_err(|error| anyhow::anyhow!("the tap answers {error}"))?;
        }
        Ok(())
    }

    /// Seals what was written.
    pub(super) fn seal(&self) -> anyhow::Result<()> {
        let ticket = self.group.cut(CutRequest::default());
        ensure!(self.group.seal_next(), "a cut waits to be sealed");
        ticket.recv()??;
        Ok(())
    }

    /// What was sealed and not received.
    pub(super) fn sealed(&self) -> anyhow::Result<Vec<Sealed>> {
        let read = |stored: StoredSegment| {
            let StoredSegment { position, parent, size_bytes, .. } = stored;
            let name = Group::segment_name(position.sequence);
            let bytes = fs::read(self.folder.path().join("journal").join(name))?;
            Ok(Sealed { descriptor: SegmentDescriptor { position, parent, size_bytes }, bytes })
        };
        let from = self.group.continue_behind(self.group.acknowledged());
        self.group.pending(from, usize::MAX).into_iter().map(read).collect()
    }

    /// Brings segments to the store, so many at once.
    pub(super) fn receive(&self, segments: &[Sealed], at_once: usize) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        let take_in = || {
            while let Some(segment) = segments.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.take_in(segment)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(take_in)).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.flatten().collect::<anyhow::Result<Vec<()>>>()
        })?;
        let head = self.group.head().context("something is sealed")?;
        ensure!(self.store.head(self.group.name()) == Some(head), "the store has all segments");
        self.group.receipt(head)?;
        self.group.note_everywhere(head.sequence);
        Ok(())
    }

    fn take_in(&self, segment: &Sealed) -> anyhow::Result<()> {
        let Begin::Receive(mut sink) = self.store.begin(self.group.name(), &segment.descriptor)? else {
            bail!("segment {} is wanted", segment.descriptor.position);
        };
        let pieces = segment.bytes.chunks(ARRIVAL).enumerate();
        for (number, piece) in pieces {
            sink.write_at((number * ARRIVAL) as u64, piece)?;
        }
        sink.commit()?;
        Ok(())
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        self.store.closed(&self.peer, self.group.name());
    }
}

/// A leg whose content is at hand.
struct MemoryLeg(RwLock<Vec<u8>>);

impl MemoryLeg {
    fn bytes(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leg for MemoryLeg {
    fn path(&self) -> Option<&Path> {
        None
    }

    fn size_bytes(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
        self.read(offset, buffer).map(|()| true)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        buffer.copy_from_slice(&self.bytes()[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, _mode: ZeroMode) -> Result<(), Errno> {
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        bytes[offset as usize..][..length as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn block_status(&self, _offset: u64, length: u64, extents: &mut Vec<StatusExtent>) -> Result<(), Errno> {
        extents.push(StatusExtent { length, hole: false, zero: false });
        Ok(())
    }

    fn reads_as_zero(&self, _offset: u64, _length: u64) -> bool {
        false
    }

    fn zeroes_fast(&self, _mode: ZeroMode) -> bool {
        false
    }

    fn stamp(&self) -> Option<LegStamp> {
        None
    }
}
