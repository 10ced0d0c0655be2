//! What is served: the trait of an export, and the names under which exports are found.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

use crate::arena::Payload;
use crate::errno::Errno;
use crate::wire::NAME_BYTES_MAX;

/// How a range may become zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// Its space may be given back.
    MayPunch,
    /// Its space stays allocated, so that later writes to it cannot fail for want of space.
    Allocate,
}

/// The status of consecutive bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes.
    pub length: u64,
    /// No space is allocated for it.
    pub hole: bool,
    /// It reads as zero.
    pub zero: bool,
}

/// One disk that is served. Called from several threads at once; ranges have been checked against
/// [`size_bytes`](Export::size_bytes) and are multiples of 512 bytes, and nothing that writes is called on a read-only one.
pub trait Export: Send + Sync + 'static {
    /// Size in bytes, a multiple of 512; asked once per connection.
    fn size_bytes(&self) -> u64;

    /// Whether writes are refused; asked once per connection.
    fn read_only(&self) -> bool;

    /// What this is, for people who list the exports.
    fn description(&self) -> String;

    /// A client has opened it.
    fn opened(&self) {}

    /// A client that had opened it is gone, and all of its requests are done.
    fn closed(&self) {}

    /// Reads without waiting for a disk; `Ok(false)` if that is impossible, [`read`](Export::read) is called then.
    ///
    /// # Errors
    /// What the client is to be told.
    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Errno>;

    /// Reads, and may wait for a disk.
    ///
    /// # Errors
    /// What the client is to be told.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno>;

    /// Applies a write. The payload is the request's own buffer and may be kept for as long as the callee likes.
    ///
    /// # Errors
    /// What the client is to be told.
    fn write(&self, offset: u64, payload: Payload) -> Result<(), Errno>;

    /// Makes everything durable whose call has returned. Also called after writes with FUA.
    ///
    /// # Errors
    /// What the client is to be told; nobody may rely on any write since the last flush that worked.
    fn flush(&self) -> Result<(), Errno>;

    /// Hears that a range is not needed any more; may do nothing.
    ///
    /// # Errors
    /// What the client is to be told.
    fn trim(&self, offset: u64, length: u64) -> Result<(), Errno>;

    /// Makes a range zero.
    ///
    /// # Errors
    /// What the client is to be told.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), Errno>;

    /// Appends the status of a range, from its start on without gaps; may end early, but not before the first extent.
    ///
    /// # Errors
    /// What the client is to be told.
    fn block_status(&self, offset: u64, length: u64, extents: &mut Vec<StatusExtent>) -> Result<(), Errno>;

    /// Whether [`write_zeroes`](Export::write_zeroes) in this mode is much faster than writing the same amount of data.
    /// A client that insists on speed is refused otherwise.
    fn zeroes_fast(&self, mode: ZeroMode) -> bool {
        let _ = mode;
        false
    }

    /// Whether a range is known, without looking at its bytes, to read as zero; it is sent as a hole then.
    fn reads_as_zero(&self, offset: u64, length: u64) -> bool {
        let _ = (offset, length);
        false
    }
}

/// The exports of a server by name; can be changed while it runs. A connection keeps the export that it has opened.
#[derive(Default)]
pub struct Exports {
    by_name: RwLock<BTreeMap<String, Arc<dyn Export>>>,
}

/// Why an export cannot have a name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ExportNameError {
    /// Another one has it.
    #[error("there is an export named {name:?} already; remove it first or choose another name")]
    Taken {
        /// The name.
        name: String,
    },
    /// The protocol has no room for it.
    #[error("an export's name may have {limit} bytes, this one has {actual}")]
    TooLong {
        /// Its length in bytes.
        actual: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

impl Exports {
    /// No exports yet.
    pub fn new() -> Self {
        Exports::default()
    }

    /// Adds an export.
    ///
    /// # Errors
    /// If the name is taken or longer than 4096 bytes.
    pub fn add(&self, name: &str, export: Arc<dyn Export>) -> Result<(), ExportNameError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(ExportNameError::TooLong { actual: name.len(), limit: NAME_BYTES_MAX });
        }
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        if by_name.contains_key(name) {
            return Err(ExportNameError::Taken { name: name.to_owned() });
        }
        by_name.insert(name.to_owned(), export);
        Ok(())
    }

    /// Takes an export away from later connections; those that have it open keep it.
    pub fn remove(&self, name: &str) -> Option<Arc<dyn Export>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    /// Finds an export. The empty name stands for the only one, if there is just one.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Export>> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(export) = by_name.get(name) {
            return Some(Arc::clone(export));
        }
        let only = name.is_empty() && by_name.len() == 1;
        by_name.values().next().filter(|_| only).map(Arc::clone)
    }

    /// All exports with their names, in the names' order.
    pub fn list(&self) -> Vec<(String, Arc<dyn Export>)> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        by_name.iter().map(|(name, export)| (name.clone(), Arc::clone(export))).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests;
