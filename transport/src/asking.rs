//! Asking an outbox, which may block, from asynchronous code: what both roads do.

use std::sync::Arc;

use tokio::task::JoinError;

use crate::traits::Outbox;

/// Calls the implementer on a blocking thread. A panic there is passed on here.
///
/// # Cancel safety
/// If this is dropped, the call goes on, and its answer is lost.
pub async fn blocking<T: Send + 'static>(
    outbox: &Arc<dyn Outbox>,
    call: impl FnOnce(&dyn Outbox) -> T + Send + 'static,
) -> T {
    let outbox = outbox.clone();
    match tokio::task::spawn_blocking(move || call(&*outbox)).await {
        Ok(value) => value,
        Err(error) => resume(error).await,
    }
}

/// Passes on the panic with which a task ended.
pub async fn resume<T>(error: JoinError) -> T {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        // The runtime is being shut down; nothing after this runs.
        Err(_) => std::future::pending().await,
    }
}
