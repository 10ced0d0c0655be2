//! Starting a VM from a point: QEMU on overlays over a server of the point, watched until the guest is up.

mod command_line;
mod console;
mod error;
mod monitor;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use journal_format::definition::{Firmware, VmDefinition};
use tempfile::TempDir;

use crate::error::io_error;
use crate::local_server::LocalServer;
use crate::program::{self, ProgramError, check};
use crate::view::PointView;
use command_line::{Backends, Image, qemu_arguments};
pub use monitor::Monitor;

pub use command_line::Network;
pub use console::Console;
pub use error::BootError;

const QEMU: &str = "qemu-system-x86_64";
const QEMU_IMG: &str = "qemu-img";
/// How long QEMU may take to end when it is asked to.
const QUIT_LIMIT: Duration = Duration::from_secs(5);
/// How much of QEMU's messages is kept.
const STDERR_BYTES_MAX: usize = 8 << 10;

/// How a VM is booted.
#[derive(Debug)]
pub struct BootOptions {
    /// VM to start; may be missing if the point has only one.
    pub vm: Option<String>,
    /// Where the guest's serial console goes.
    pub console: Console,
    /// Text on the console that says that the guest is up, instead of the definition's.
    pub ready: Option<String>,
    /// How long the guest may take until it is up.
    pub timeout: Duration,
    /// What its network cards are connected to.
    pub network: Network,
    /// Folder for overlays that stay when the VM has ended; they are temporary otherwise.
    pub keep: Option<PathBuf>,
    /// Folder for temporary overlays.
    pub scratch: PathBuf,
    /// Since when the time is counted.
    pub began: Instant,
}

/// How a boot went.
#[derive(Clone, Debug)]
pub struct BootReport {
    /// Name of the VM.
    pub vm: String,
    /// Until the point was open, in seconds since `began`.
    pub open_seconds: f64,
    /// Until QEMU ran.
    pub start_seconds: f64,
    /// Until the guest was up; if there is no text to wait for, until its processors ran.
    pub ready_seconds: f64,
    /// Whether the text was seen.
    pub ready_text_seen: bool,
    /// QEMU's process id.
    pub process_id: u32,
}

enum Event {
    /// QEMU has connected to its monitor's socket.
    Monitor(Monitor),
    /// The text that says that the guest is up was printed.
    Ready,
    /// QEMU has closed its console: it ends.
    Ended,
    /// Somebody wants the VM to end.
    Stop,
}

/// Ends a VM from another thread.
#[derive(Clone)]
pub struct Stopper(Sender<Event>);

impl Stopper {
    /// Ends the VM; whoever waits for it hears that it was stopped.
    pub fn stop(&self) {
        // Nobody listens any more if it has ended by itself.
        let _ = self.0.send(Event::Stop);
    }
}

/// A VM that runs from a point. Dropping it ends it.
pub struct Vm {
    name: String,
    child: Child,
    monitor: Option<Monitor>,
    ready_text: Option<String>,
    sender: Sender<Event>,
    events: Receiver<Event>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    console: console::Tail,
    timeout: Duration,
    began: Instant,
    open_seconds: f64,
    start_seconds: f64,
    // QEMU reads from the server and writes to the overlays: both go after it.
    _server: LocalServer,
    _overlays: Overlays,
}

impl Vm {
    /// Starts a VM of a point. QEMU is killed when the calling thread ends: call it from one that waits for the VM.
    ///
    /// # Errors
    /// If the point has no such VM, its definition cannot be used here, or QEMU does not start.
    pub fn start(view: &Arc<PointView>, options: BootOptions) -> Result<Vm, BootError> {
        let definition = choose(view, options.vm.as_deref())?;
        definition.check().map_err(|source| BootError::Definition { point: view.point().id, source })?;
        let open_seconds = options.began.elapsed().as_secs_f64();
        let server = LocalServer::start(view)?;
        let overlays = Overlays::make(view, definition, &options)?;
        let monitor_socket = server.folder().join("monitor.sock");
        let listener = UnixListener::bind(&monitor_socket).map_err(io_error("listen on", &monitor_socket))?;
        let backends = Backends {
            server: &server.socket(),
            monitor: &monitor_socket,
            images: &overlays.images,
            durable: options.keep.is_some(),
            network: options.network,
        };
        let sink = options.console.open()?;
        let mut child = spawn(&qemu_arguments(definition, &backends))?;
        let start_seconds = options.began.elapsed().as_secs_f64();
        let (sender, events) = channel();
        wait_for_monitor(listener, sender.clone());
        let ready_text = options.ready.or_else(|| definition.ready.clone());
        let output = child.stdout.take().expect("standard output is piped");
        let (ready, ended) = (sender.clone(), sender.clone());
        let (on_ready, on_end) =
            (move || drop(ready.send(Event::Ready)), move || drop(ended.send(Event::Ended)));
        let tail = console::follow(output, sink, ready_text.clone(), on_ready, on_end);
        let stderr = child.stderr.take().expect("standard error is piped");
        Ok(Vm {
            name: definition.name.clone(),
            child,
            monitor: None,
            ready_text,
            sender,
            events,
            stderr: Some(thread::spawn(move || keep_end(stderr))),
            console: tail,
            timeout: options.timeout,
            began: options.began,
            open_seconds,
            start_seconds,
            _server: server,
            _overlays: overlays,
        })
    }

    /// Something that ends it from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.sender.clone())
    }

    /// Waits until the guest is up.
    ///
    /// # Errors
    /// If QEMU ends, the time is over or the VM is stopped.
    pub fn wait_until_ready(&mut self) -> Result<BootReport, BootError> {
        let deadline = self.began + self.timeout;
        let (mut text_seen, mut running) = (false, false);
        while !(if self.ready_text.is_some() { text_seen } else { running }) {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Ready) => text_seen = true,
                Ok(Event::Monitor(mut monitor)) => {
                    running = monitor.execute("query-status").is_ok();
                    self.monitor = Some(monitor);
                }
                Ok(Event::Stop) => return Err(BootError::Stopped),
                Ok(Event::Ended) | Err(RecvTimeoutError::Disconnected) => return Err(self.failed()),
                Err(RecvTimeoutError::Timeout) => {
                    let (seconds, text) = (self.timeout.as_secs_f64(), self.ready_text.clone());
                    return Err(BootError::NotReady { seconds, text, console: self.console.text() });
                }
            }
        }
        Ok(BootReport {
            vm: self.name.clone(),
            open_seconds: self.open_seconds,
            start_seconds: self.start_seconds,
            ready_seconds: self.began.elapsed().as_secs_f64(),
            ready_text_seen: text_seen,
            process_id: self.child.id(),
        })
    }

    /// Waits until the guest turns itself off or the VM is stopped.
    ///
    /// # Errors
    /// If QEMU ends with an error.
    pub fn wait_until_ended(mut self) -> Result<(), BootError> {
        loop {
            match self.events.recv() {
                Ok(Event::Ready) => {}
                Ok(Event::Monitor(monitor)) => self.monitor = Some(monitor),
                Ok(Event::Stop) | Err(_) => return Ok(()),
                Ok(Event::Ended) => {
                    let status = self.reap()?;
                    return Ok(check(QEMU, status, &self.messages())?);
                }
            }
        }
    }

    /// QEMU has closed its console before the guest was up.
    fn failed(&mut self) -> BootError {
        let status = match self.reap() {
            Ok(status) => status,
            Err(error) => return error,
        };
        match check(QEMU, status, &self.messages()) {
            Err(error) => error.into(),
            Ok(()) => BootError::TurnedOff { console: self.console.text() },
        }
    }

    /// Waits until QEMU closes its console.
    fn ends_by(&self, deadline: Instant) -> bool {
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Ended) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    fn reap(&mut self) -> Result<ExitStatus, BootError> {
        self.child.wait().map_err(|source| ProgramError::Start { program: QEMU, source }.into())
    }

    fn messages(&mut self) -> Vec<u8> {
        self.stderr.take().and_then(|reader| reader.join().ok()).unwrap_or_default()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let asked = self.monitor.as_mut().is_some_and(|monitor| monitor.execute("quit").is_ok());
        if !(asked && self.ends_by(Instant::now() + QUIT_LIMIT)) {
            // It may be ending; if not, nothing that it holds is worth waiting for.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn choose<'a>(view: &'a PointView, wanted: Option<&str>) -> Result<&'a VmDefinition, BootError> {
    let point = view.point().id;
    let vms = view.definition().map_or(&[][..], |definition| &definition.vms);
    let known = || vms.iter().map(|vm| vm.name.clone()).collect();
    match (vms, wanted) {
        ([], _) => Err(BootError::NoDefinition { point }),
        ([only], None) => Ok(only),
        (_, None) => Err(BootError::SeveralVms { point, known: known() }),
        (_, Some(name)) => {
            let found = vms.iter().find(|vm| vm.name == name);
            found.ok_or_else(|| BootError::NoSuchVm { point, vm: name.to_owned(), known: known() })
        }
    }
}

/// The files that take the guest's writes.
struct Overlays {
    images: Vec<Image>,
    _temporary: Option<TempDir>,
}

impl Overlays {
    fn make(
        view: &Arc<PointView>,
        definition: &VmDefinition,
        options: &BootOptions,
    ) -> Result<Overlays, BootError> {
        let (folder, temporary) = match &options.keep {
            Some(folder) => {
                // Disks hold secrets.
                let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
                made.map_err(io_error("make", folder))?;
                (folder.clone(), None)
            }
            None => {
                let made = tempfile::Builder::new().prefix("thirdsite-boot-").tempdir_in(&options.scratch);
                let made = made.map_err(io_error("make a folder in", &options.scratch))?;
                (made.path().to_owned(), Some(made))
            }
        };
        let vars = match &definition.firmware {
            Firmware::Uefi { vars, .. } => Some(vars),
            Firmware::Bios {} | Firmware::Kernel { .. } => None,
        };
        let mut images: Vec<Image> = Vec::new();
        for name in definition.disks.iter().map(|disk| &disk.volume).chain(vars) {
            let volume = view.volume(name)?;
            let path = folder.join(format!("{name}.qcow2"));
            make_overlay(&path, volume.size_bytes())?;
            images.push(Image { volume: name.clone(), overlay: path });
        }
        Ok(Overlays { images, _temporary: temporary })
    }
}

fn make_overlay(path: &Path, size_bytes: u64) -> Result<(), BootError> {
    File::create_new(path).map_err(io_error("create the overlay", path))?;
    let mut arguments: Vec<OsString> = ["create", "-q", "-f", "qcow2"].iter().map(OsString::from).collect();
    arguments.extend([path.into(), size_bytes.to_string().into()]);
    Ok(program::run(QEMU_IMG, &arguments)?)
}

#[allow(unsafe_code, reason = "the parent-death signal can only be asked for between fork and exec")]
fn spawn(arguments: &[OsString]) -> Result<Child, ProgramError> {
    let mut command = Command::new(QEMU);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // In a group of its own: Ctrl-C on a terminal is for this process, which then ends QEMU in order.
    command.process_group(0);
    let die_with_us = || {
        // QEMU's disks are served by this process: without it QEMU could only hang.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        Ok(())
    };
    // SAFETY: the closure makes one system call (prctl), which is async-signal-safe, and touches no memory of ours.
    unsafe { command.pre_exec(die_with_us) };
    command.spawn().map_err(|source| ProgramError::Start { program: QEMU, source })
}

/// The thread ends with QEMU's connection; if QEMU never connects it stays until the process ends.
fn wait_for_monitor(listener: UnixListener, sender: Sender<Event>) {
    thread::spawn(move || {
        let connected = listener.accept().and_then(|(stream, _)| Monitor::new(stream));
        match connected {
            Ok(monitor) => drop(sender.send(Event::Monitor(monitor))),
            Err(error) => tracing::warn!(%error, "QEMU's monitor cannot be used; the VM can only be killed"),
        }
    });
}

fn keep_end(mut stderr: ChildStderr) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(STDERR_BYTES_MAX);
        kept.drain(..surplus);
    }
    kept
}
