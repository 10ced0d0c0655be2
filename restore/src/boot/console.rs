//! The guest's serial console: kept, and watched for the text that says that the guest is up.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ChildStdout;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::error::{StoreError, io_error};

/// How much of the console is shown when a boot fails.
const TAIL_BYTES: usize = 2 << 10;

/// Where the console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// To standard output.
    Output,
    /// To standard error.
    Error,
    /// To a file, which is emptied first.
    File(PathBuf),
}

/// The end of what was printed.
#[derive(Clone, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// As text, without what a terminal would not show.
    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.lock().iter().copied().collect();
        String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|shown| !shown.is_control() || *shown == '\n')
            .collect()
    }

    fn push(&self, bytes: &[u8]) {
        let mut tail = self.lock();
        tail.extend(bytes);
        let surplus = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..surplus);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Console {
    /// Opens what the console is written to.
    pub(super) fn open(&self) -> Result<Sink, StoreError> {
        Ok(match self {
            Console::Output => Box::new(std::io::stdout()),
            Console::Error => Box::new(std::io::stderr()),
            Console::File(path) => {
                let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
                Box::new(file.map_err(io_error("write the console to", path))?)
            }
        })
    }
}

/// What a console is written to.
pub(super) type Sink = Box<dyn Write + Send>;

/// Takes over a console. `ready` is called once, when `text` has been printed, `ended` when the console is closed.
pub(super) fn follow(
    mut console: ChildStdout,
    mut sink: Sink,
    text: Option<String>,
    ready: impl FnOnce() + Send + 'static,
    ended: impl FnOnce() + Send + 'static,
) -> Tail {
    let tail = Tail::default();
    let kept = tail.clone();
    thread::spawn(move || {
        let mut search = text.map(|text| (Search::new(text.into_bytes()), ready));
        let (mut buffer, mut broken) = ([0; 4096], false);
        // QEMU must never wait for a console that nobody reads: it is read on even if it cannot be kept.
        while let Ok(count @ 1..) = console.read(&mut buffer) {
            let bytes = &buffer[..count];
            kept.push(bytes);
            let written = sink.write_all(bytes).and_then(|()| sink.flush());
            if let Err(error) = written
                && !std::mem::replace(&mut broken, true)
            {
                tracing::warn!(%error, "the console cannot be kept");
            }
            if let Some((_, ready)) = search.take_if(|(search, _)| search.found_in(bytes)) {
                ready();
            }
        }
        ended();
    });
    tail
}

/// Looks for a text in a stream.
struct Search {
    text: Vec<u8>,
    /// The end of what was seen, shorter than the text.
    seen: Vec<u8>,
}

impl Search {
    fn new(text: Vec<u8>) -> Self {
        Search { text, seen: Vec::new() }
    }

    fn found_in(&mut self, bytes: &[u8]) -> bool {
        self.seen.extend_from_slice(bytes);
        if self.text.is_empty() || self.seen.windows(self.text.len()).any(|window| window == self.text) {
            return true;
        }
        let surplus = self.seen.len().saturating_sub(self.text.len() - 1);
        self.seen.drain(..surplus);
        false
    }
}

#[cfg(test)]
mod tests;
