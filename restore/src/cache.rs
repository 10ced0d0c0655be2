//! What was read and may be needed again, least recently used first out. The lock is held for a look-up only, never while something
//! is read or decompressed.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) struct Cache<K, V> {
    bytes_max: u64,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    by_key: HashMap<K, Entry<V>>,
    by_use: BTreeMap<u64, K>,
    uses: u64,
    bytes: u64,
}

struct Entry<V> {
    last_use: u64,
    bytes: u64,
    value: Arc<V>,
}

impl<K: Hash + Eq + Clone, V> Cache<K, V> {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let state = State { by_key: HashMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0 };
        Cache { bytes_max, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut guard = self.state();
        let state = &mut *guard;
        let entry = state.by_key.get_mut(key)?;
        state.uses += 1;
        state.by_use.remove(&entry.last_use);
        state.by_use.insert(state.uses, key.clone());
        entry.last_use = state.uses;
        Some(Arc::clone(&entry.value))
    }

    /// The value of a key, and what was dropped for it; a new one of so many bytes is kept if there is none.
    pub(crate) fn get_or_put(&self, key: K, bytes: u64) -> (Arc<V>, Vec<Arc<V>>)
    where
        V: Default,
    {
        if let Some(value) = self.get(&key) {
            return (value, Vec::new());
        }
        let mut state = self.state();
        if let Some(entry) = state.by_key.get(&key) {
            return (Arc::clone(&entry.value), Vec::new());
        }
        let value = Arc::new(V::default());
        let dropped = self.put_into(&mut state, key, &value, bytes);
        (value, dropped)
    }

    /// Keeps a value of so many bytes.
    pub(crate) fn put(&self, key: K, value: &Arc<V>, bytes: u64) {
        drop(self.put_into(&mut self.state(), key, value, bytes));
    }

    /// Answers what was dropped for it.
    fn put_into(&self, state: &mut State<K, V>, key: K, value: &Arc<V>, bytes: u64) -> Vec<Arc<V>> {
        let mut dropped = Vec::new();
        if bytes > self.bytes_max {
            return dropped;
        }
        state.uses += 1;
        let entry = Entry { last_use: state.uses, bytes, value: Arc::clone(value) };
        // Two threads may have read the same at once.
        if let Some(replaced) = state.by_key.insert(key.clone(), entry) {
            state.by_use.remove(&replaced.last_use);
            state.bytes -= replaced.bytes;
        }
        state.by_use.insert(state.uses, key);
        state.bytes += bytes;
        while state.bytes > self.bytes_max {
            let Some((_, oldest)) = state.by_use.pop_first() else { break };
            if let Some(entry) = state.by_key.remove(&oldest) {
                state.bytes -= entry.bytes;
                dropped.push(entry.value);
            }
        }
        dropped
    }
}

#[cfg(test)]
mod tests;
