//! Receipts on their way to a source: only the newest of each group, so that a slow reader holds up nobody.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use journal_format::{GroupName, Position};
use quinn::{Connection, WriteError};
use tokio::sync::Notify;

use super::Site;
use crate::frames::write_message;
use crate::quic::CONTROL_PRIORITY;
use crate::wire::Receipt;

#[derive(Default)]
pub(super) struct ReceiptQueue {
    heads: Mutex<BTreeMap<GroupName, Position>>,
    wake: Notify,
}

impl ReceiptQueue {
    /// Puts a group's contiguous head in line. Sessions never go backwards, so it replaces an older one.
    pub(super) fn push(&self, group: GroupName, head: Position) {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).insert(group, head);
        self.wake.notify_one();
    }

    fn take(&self) -> BTreeMap<GroupName, Position> {
        std::mem::take(&mut *self.heads.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Signs and writes receipts until the connection ends.
    pub(super) async fn run(&self, site: &Site, connection: &Connection) -> Result<(), WriteError> {
        let mut stream = connection.open_uni().await.map_err(WriteError::ConnectionLost)?;
        // Only fails if the stream is gone, which the first write tells as well.
        stream.set_priority(CONTROL_PRIORITY).ok();
        loop {
            self.wake.notified().await;
            for (group, head) in self.take() {
                let receipt = Receipt::sign(&site.identity, group, head, (site.options.clock)());
                write_message(&mut stream, &receipt).await?;
            }
        }
    }
}
