//! Decompressed frames, least recently used ones dropped first. The lock is held for a look-up only, never while a frame
//! is read or decompressed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) struct FrameCache {
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    by_frame: HashMap<u32, (u64, Arc<Vec<u8>>)>,
    by_use: BTreeMap<u64, u32>,
    uses: u64,
    bytes: u64,
}

impl FrameCache {
    pub(super) fn new(bytes_max: u64) -> Self {
        FrameCache { bytes_max, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, frame: u32) -> Option<Arc<Vec<u8>>> {
        let mut guard = self.state();
        let state = &mut *guard;
        let (last_use, bytes) = state.by_frame.get_mut(&frame)?;
        state.uses += 1;
        state.by_use.remove(last_use);
        state.by_use.insert(state.uses, frame);
        *last_use = state.uses;
        Some(Arc::clone(bytes))
    }

    pub(super) fn put(&self, frame: u32, bytes: &Arc<Vec<u8>>) {
        let size = bytes.len() as u64;
        if size > self.bytes_max {
            return;
        }
        let mut guard = self.state();
        let state = &mut *guard;
        state.uses += 1;
        // Two threads may have read the same frame at once.
        if let Some((last_use, _)) = state.by_frame.insert(frame, (state.uses, Arc::clone(bytes))) {
            state.by_use.remove(&last_use);
            state.bytes -= size;
        }
        state.by_use.insert(state.uses, frame);
        state.bytes += size;
        while state.bytes > self.bytes_max {
            let Some((_, oldest)) = state.by_use.pop_first() else { break };
            if let Some((_, dropped)) = state.by_frame.remove(&oldest) {
                state.bytes -= dropped.len() as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests;
