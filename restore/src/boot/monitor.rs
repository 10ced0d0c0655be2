//! The few commands of QEMU's monitor that are needed here.
//! Protocol: <https://www.qemu.org/docs/master/interop/qmp-spec.html>

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

/// QEMU answers at once or not at all.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A connection to QEMU's monitor that is ready for commands.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<UnixStream>,
}

impl Monitor {
    /// Reads the greeting and leaves the negotiation.
    ///
    /// # Errors
    /// If nobody answers in time, or it is not QEMU.
    pub fn new(stream: UnixStream) -> io::Result<Monitor> {
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut monitor = Monitor { reader: BufReader::new(stream) };
        let greeting = monitor.message()?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::other(format!("this is not QEMU's greeting: {greeting}")));
        }
        monitor.execute("qmp_capabilities")?;
        Ok(monitor)
    }

    /// Executes a command without arguments; answers what it returns.
    ///
    /// # Errors
    /// As [`Monitor::execute_with`].
    pub fn execute(&mut self, command: &str) -> io::Result<Value> {
        self.execute_with(command, &json!({}))
    }

    /// Executes a command; answers what it returns.
    ///
    /// # Errors
    /// What QEMU says, or that it does not answer in time.
    pub fn execute_with(&mut self, command: &str, arguments: &Value) -> io::Result<Value> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.reader.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut message = self.message()?;
            if let Some(error) = message.get("error") {
                return Err(io::Error::other(format!("{command}: {error}")));
            }
            // Everything else is an event.
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    fn message(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}
