//! The maps in memory, and what a commit takes from them.

use std::collections::BTreeSet;
use std::time::Duration;

use journal_format::{GroupName, VolumeName};

use super::ahead::Ahead;
use super::file::{self, Layout};
use super::{MarkedPage, Tracking};
use crate::regions::{REGION_BYTES, RegionSet};
use crate::storage::UpdateFile;

/// One volume's map.
pub(super) struct Map {
    pub(super) name: VolumeName,
    pub(super) layout: Layout,
    pub(super) bits: RegionSet,
    pub(super) versions: Vec<u64>,
    /// For each page the commit that makes its last change durable.
    pub(super) due: Vec<u64>,
    pub(super) pending: BTreeSet<u32>,
    /// For each page the number of regions that are marked on disk.
    pub(super) on_disk: Vec<u32>,
    pub(super) ahead: Ahead,
    /// Absent while a commit uses it, and after a failure.
    pub(super) file: Option<Box<dyn UpdateFile>>,
}

impl Map {
    pub(super) fn new(group: &GroupName, name: &VolumeName, bits: RegionSet) -> Map {
        let layout = Layout::new(group, name, bits.size_bytes());
        let pages = layout.pages() as usize;
        let on_disk = (0..layout.pages()).map(|page| file::count(&file::page_bits(&bits, page))).collect();
        Map {
            name: name.clone(),
            layout,
            bits,
            on_disk,
            versions: vec![1; pages],
            due: vec![0; pages],
            pending: BTreeSet::new(),
            ahead: Ahead::default(),
            file: None,
        }
    }

    pub(super) fn changed(&mut self, page: u32, commit: u64) {
        self.versions[page as usize] += 1;
        self.due[page as usize] = commit;
        self.pending.insert(page);
    }

    /// Regions that would be compared after a crash now, in bytes.
    pub(super) fn after_crash_bytes(&self, tracking: Tracking) -> u64 {
        match tracking {
            Tracking::Durable => {
                self.on_disk.iter().map(|&count| u64::from(count)).sum::<u64>() * REGION_BYTES
            }
            Tracking::Untracked => self.bits.regions() * REGION_BYTES,
            // Nothing would say so.
            Tracking::InMemory => 0,
        }
    }
}

/// The maps of a group.
pub(super) struct State {
    pub(super) maps: Vec<Map>,
    pub(super) session: u64,
    pub(super) begun: u64,
    pub(super) finished: u64,
    pub(super) tracking: Tracking,
    /// A thread commits; otherwise whoever marks does.
    pub(super) has_writer: bool,
    pub(super) stopping: bool,
    pub(super) waits: u64,
    pub(super) wait_max: Duration,
    pub(super) syncs: u64,
}

impl State {
    pub(super) fn keep(&mut self, Written { volume, file, on_disk }: Written) {
        let map = &mut self.maps[volume];
        map.file = Some(file);
        on_disk.into_iter().for_each(|(page, count)| map.on_disk[page as usize] = count);
    }
}

/// What one commit writes to one map.
pub(super) struct Work {
    pub(super) volume: usize,
    pub(super) layout: Layout,
    pub(super) file: Option<Box<dyn UpdateFile>>,
    pub(super) pages: Vec<MarkedPage>,
}

/// What is durable of one map.
pub(super) struct Written {
    pub(super) volume: usize,
    pub(super) file: Box<dyn UpdateFile>,
    /// For each page that was written, how many regions it marks.
    pub(super) on_disk: Vec<(u32, u32)>,
}

/// Takes what changed since the last commit; answers the commit's number with it.
pub(super) fn take_work(state: &mut State) -> (u64, Vec<Work>) {
    state.begun += 1;
    let changed = state.maps.iter_mut().enumerate().filter(|(_, map)| !map.pending.is_empty());
    let work = changed.map(|(volume, map)| {
        let pages = std::mem::take(&mut map.pending);
        let pages = pages.into_iter().map(|page| marked_page(volume, map, page)).collect();
        Work { volume, layout: map.layout.clone(), file: map.file.take(), pages }
    });
    let work = work.collect();
    (state.begun, work)
}

pub(super) fn marked_page(volume: usize, map: &Map, page: u32) -> MarkedPage {
    let (version, bits) = (map.versions[page as usize], file::page_bits(&map.bits, page));
    MarkedPage { volume: volume as u16, page, version, bits }
}
