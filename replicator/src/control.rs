//! The daemons' control socket: one JSON request on a line, one JSON answer on a line, over a unix socket of mode 0600.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use journal_format::{BookmarkName, GroupName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::failure::{Failure, exit};

const REQUEST_BYTES_MAX: u64 = 64 << 10;
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// What a daemon can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum ControlRequest {
    /// Everything that it knows of its groups.
    Status {},
    /// Compares everything of a group with the recovery site.
    Resync {
        /// The group.
        group: GroupName,
        /// Send everything without comparing.
        full: bool,
    },
    /// How fast a target is sent to, or one group there, until the settings are taken in again.
    Limit {
        target: String,
        group: Option<GroupName>,
        /// Bytes in a second; none for no limit.
        rate_max: Option<u64>,
    },
    /// Takes in changed settings.
    Reload {
        /// Volumes, as GROUP/VOLUME, whose legs may have another size than before.
        accept_resize: Vec<String>,
    },
    /// Makes a standby of a pair active.
    Takeover {},
    /// Ends the epoch of a group.
    Cut {
        /// The group.
        group: GroupName,
        /// Name for the point.
        bookmark: Option<BookmarkName>,
        /// How long to wait for the recovery site's receipt; `None` to answer when the cut is in the journal.
        wait_seconds: Option<u64>,
    },
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ControlAnswer {
    /// The result.
    Ok(Value),
    /// Why there is none.
    Error {
        message: String,
        hint: Option<String>,
        /// The exit code for the caller.
        code: u8,
    },
}

/// The daemon behind the socket. Called on a thread that may block.
pub(crate) trait ControlHandler: Send + Sync + 'static {
    /// Answers a request.
    fn handle(&self, request: ControlRequest) -> Result<Value, Failure>;
}

/// A listening control socket; removed when dropped.
pub(crate) struct ControlServer {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl ControlServer {
    /// Begins to listen. A socket that nobody listens on any more is replaced.
    pub(crate) fn start(path: &Path, handler: Arc<dyn ControlHandler>) -> anyhow::Result<ControlServer> {
        if BlockingStream::connect(path).is_ok() {
            let hint = "another daemon uses it; give each daemon a 'control' of its own";
            return Err(
                Failure::invalid(format!("control socket '{}' is in use", path.display()), hint).into()
            );
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("control socket '{}'", path.display()));
            }
            _ => {}
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("folder '{}'", folder.display()))?;
        }
        let listener =
            UnixListener::bind(path).with_context(|| format!("control socket '{}'", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let task = tokio::spawn(accept(listener, handler));
        Ok(ControlServer { path: path.to_owned(), task })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.task.abort();
        // A socket that is left behind is replaced at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, handler: Arc<dyn ControlHandler>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = handler.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, handler).await {
                        warn!(%error, "a control connection failed");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "the control socket cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, handler: Arc<dyn ControlHandler>) -> anyhow::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut line = String::new();
    let mut input = tokio::io::BufReader::new(input.take(REQUEST_BYTES_MAX));
    if tokio::time::timeout(REQUEST_PATIENCE, input.read_line(&mut line)).await?? == 0 {
        return Ok(());
    }
    let answer = match serde_json::from_str::<ControlRequest>(&line) {
        Ok(request) => tokio::task::spawn_blocking(move || handler.handle(request)).await?,
        Err(error) => Err(Failure::invalid(format!("the request is not understood: {error}"), "")),
    };
    let answer = answer.map_or_else(ControlAnswer::from, ControlAnswer::Ok);
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    output.write_all(&text).await?;
    Ok(())
}

impl From<Failure> for ControlAnswer {
    fn from(failure: Failure) -> Self {
        ControlAnswer::Error { message: failure.message, hint: failure.hint, code: failure.code }
    }
}

/// Asks a daemon that is just changing for its status until it answers with one that is `wanted`.
///
/// # Errors
/// If that does not happen in time, with `late` as the message.
pub(crate) fn ask_until(
    path: &Path,
    timeout: Duration,
    late: &str,
    wanted: impl Fn(&Value) -> bool,
) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + timeout;
    while !ask(path, &ControlRequest::Status {}).is_ok_and(|status| wanted(&status)) {
        if Instant::now() > deadline {
            return Err(Failure::new(exit::TIMEOUT, late, "see the agent's log; it goes on").into());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Asks the daemon behind `path`.
///
/// # Errors
/// If nobody listens there, or the daemon answers with an error.
pub(crate) fn ask(path: &Path, request: &ControlRequest) -> anyhow::Result<Value> {
    let mut stream = BlockingStream::connect(path).map_err(|error| {
        let hint = "start 'thirdsite source run' or 'thirdsite site run', or name its socket with --control";
        Failure::unreachable(format!("no daemon answers on '{}': {error}", path.display()), hint)
    })?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        bail!("the daemon on '{}' ended before it answered", path.display());
    }
    match serde_json::from_str(&line).context("the daemon's answer is not understood")? {
        ControlAnswer::Ok(value) => Ok(value),
        ControlAnswer::Error { message, hint, code } => Err(Failure { message, hint, code }.into()),
    }
}
