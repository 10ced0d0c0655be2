//! Questions to the site, asked from plain threads.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use journal_format::GroupName;
use quinn::Connection;
use thiserror::Error;
use tokio::runtime::Handle;

use crate::causes::causes;
use crate::frames::read_message;
use crate::quic::CALL_PRIORITY;
use crate::wire::{Call, CallAnswer, CallRequest, Refusal, call_preamble, encode};

/// Why a call has no answer.
#[derive(Debug, Error)]
pub enum CallError {
    /// The group has no session with the site.
    #[error("the group is not open at the site")]
    NotConnected,
    /// No answer came in time.
    #[error("no answer came in time")]
    TimedOut,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// The site refuses.
    #[error("the site refuses: {0}")]
    Refused(Refusal),
}

/// Asks the site about one group. Works whenever the group's session is open.
#[derive(Clone, Debug)]
pub struct Caller {
    group: GroupName,
    runtime: Handle,
    connection: Arc<Mutex<Option<Connection>>>,
}

/// A call under way.
#[derive(Debug)]
pub struct PendingCall {
    answer: mpsc::Receiver<Result<CallAnswer, CallError>>,
}

impl Caller {
    pub(super) fn new(group: GroupName, runtime: Handle) -> Self {
        Caller { group, runtime, connection: Arc::default() }
    }

    pub(super) fn set_connection(&self, connection: Option<Connection>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// Asks; several calls may be under way.
    pub fn start(&self, request: CallRequest) -> PendingCall {
        let (sender, answer) = mpsc::channel();
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(connection) = connection else {
            // The receiver is right here.
            let _ = sender.send(Err(CallError::NotConnected));
            return PendingCall { answer };
        };
        let call = Call { group: self.group.clone(), request };
        self.runtime.spawn(async move {
            // Whoever asked may have given up.
            let _ = sender.send(perform(connection, call).await);
        });
        PendingCall { answer }
    }

    /// Asks and waits for the answer. Not to be called on the runtime's own threads.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call(&self, request: CallRequest, patience: Duration) -> Result<CallAnswer, CallError> {
        self.start(request).wait(patience)
    }
}

impl PendingCall {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn wait(self, patience: Duration) -> Result<CallAnswer, CallError> {
        match self.answer.recv_timeout(patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(CallError::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(CallError::Lost("this side is ending".to_owned())),
        }
    }
}

async fn perform(connection: Connection, call: Call) -> Result<CallAnswer, CallError> {
    let lost = |error: &(dyn std::error::Error + 'static)| {
        let causes = causes(error).map_or_else(String::new, |causes| format!(": {causes}"));
        CallError::Lost(format!("{error}{causes}"))
    };
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| lost(&error))?;
    // Only fails if the stream is gone, which the write tells as well.
    send.set_priority(CALL_PRIORITY).ok();
    let mut bytes = call_preamble().to_vec();
    bytes.extend_from_slice(&encode(&call));
    send.write_all(&bytes).await.map_err(|error| lost(&error))?;
    send.finish().ok();
    match read_message(&mut recv, "answer to a call").await {
        Ok(Some(CallAnswer::Refused(refusal))) => Err(CallError::Refused(refusal)),
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(CallError::Lost("the stream ends without an answer".to_owned())),
        Err(fault) => Err(lost(&fault)),
    }
}
