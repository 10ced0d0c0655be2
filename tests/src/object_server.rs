//! A real server of object storage on the loopback interface, which a test starts, kills and starts again; and a cluster of them, of which
//! it kills a node.
//!
//! `.ci/setup` installs it below `target/object-servers`, in the version of `tests/object-servers.txt`.

mod cluster;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{io, thread};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use transport_bucket::{BucketSettings, CredentialsSource};

pub use cluster::ObjectCluster;

/// How long a server may take to answer. Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);
/// The bucket that a server has once it is ready.
pub const BUCKET: &str = "the-bucket";
/// Access key of the server.
const KEY: &str = "AKIDFORTESTS";
/// Its secret, which nothing but this server knows.
const SECRET: &str = "a-secret-for-tests";
/// Name of the log in a server's folder.
const LOG: &str = "log";

/// SeaweedFS, its parts in one process, with its data in a folder of its own. It is ended, and its data deleted, when this is dropped.
#[derive(Debug)]
pub struct ObjectServer {
    folder: TempDir,
    /// Free when this was made: S3 first.
    ports: [u16; 8],
    process: Option<Child>,
}

impl ObjectServer {
    /// Starts a server and makes [`BUCKET`].
    ///
    /// # Errors
    /// If the program is not installed, ends, or does not answer.
    pub fn start() -> anyhow::Result<Self> {
        let folder = new_folder()?;
        fs::create_dir(folder.path().join("data"))?;
        let mut server = Self { folder, ports: free_ports()?, process: None };
        server.start_again()?;
        let [_, _, master, master_grpc, ..] = server.ports;
        make_bucket(server.folder.path(), master, master_grpc)?;
        Ok(server)
    }

    /// Starts it on the data that it has.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the server runs already");
        self.process = Some(spawn(self.folder.path(), &self.seaweed_arguments())?);
        self.wait_until_it_answers()
    }

    /// Ends it at once, as a crash does (SIGKILL).
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().context("the server does not run")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// URL of its S3.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Settings for `prefix` in its bucket.
    #[must_use]
    pub fn settings(&self, prefix: &str) -> BucketSettings {
        settings_of(self.folder.path(), self.endpoint(), prefix)
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[0]).into()
    }

    fn seaweed_arguments(&self) -> Vec<String> {
        let [s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc] = self.ports;
        let mut arguments: Vec<String> = [
            "server",
            "-dir=data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=50",
            "-s3",
            "-s3.config=s3.json",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]
        .map(str::to_owned)
        .into();
        let ports = [
            ("s3.port", s3),
            ("s3.port.grpc", s3_grpc),
            ("master.port", master),
            ("master.port.grpc", master_grpc),
            ("volume.port", volume),
            ("volume.port.grpc", volume_grpc),
            ("filer.port", filer),
            ("filer.port.grpc", filer_grpc),
        ];
        arguments.extend(ports.map(|(name, port)| format!("-{name}={port}")));
        arguments
    }

    /// It accepts connections, and S3 answers over them.
    fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        let address = self.address();
        let process = self.process.as_mut().context("the server does not run")?;
        let waited = wait_until_it_answers(process, self.folder.path(), address);
        if !matches!(process.try_wait(), Ok(None)) {
            self.process = None;
        }
        waited
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// A folder with the keys, and with the identity that they are of.
fn new_folder() -> anyhow::Result<TempDir> {
    let folder = TempDir::new()?;
    fs::write(folder.path().join("s3.json"), identities())?;
    let keys = format!("access_key_id = \"{KEY}\"\nsecret_access_key = \"{SECRET}\"\n");
    let mut file =
        File::options().write(true).create_new(true).mode(0o600).open(folder.path().join("keys"))?;
    io::Write::write_all(&mut file, keys.as_bytes())?;
    Ok(folder)
}

/// Starts the program in `folder`, where its log is.
fn spawn(folder: &Path, arguments: &[String]) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(folder.join(LOG))?;
    let mut command = Command::new(program("weed")?);
    command.args(arguments);
    command.current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("the server cannot be started")
}

/// Returns when `process` answers HTTP at `address`.
fn wait_until_it_answers(process: &mut Child, folder: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        if let Some(status) = process.try_wait()? {
            bail!("weed ended with {status}:\n{}", end_of_log(folder));
        }
        if answers(address) {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "weed does not answer:\n{}", end_of_log(folder));
        thread::sleep(Duration::from_millis(50));
    }
}

/// With the server's own shell, since the program under test makes no buckets. S3 answers before the filer takes anything.
fn make_bucket(folder: &Path, master: u16, master_grpc: u16) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let mut shell = Command::new(program("weed")?);
        shell.args(["shell", &format!("-master=127.0.0.1:{master}.{master_grpc}")]);
        shell.current_dir(folder);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = shell.spawn()?;
        let mut input = running.stdin.take().context("the shell has no input")?;
        io::Write::write_all(&mut input, format!("s3.bucket.create -name {BUCKET}\nexit\n").as_bytes())?;
        drop(input);
        let output = running.wait_with_output()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if printed.contains("created bucket") {
            return Ok(());
        }
        let patient = begun.elapsed() < PATIENCE;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(patient, "the bucket cannot be made: {printed}{errors}\n{}", end_of_log(folder));
        thread::sleep(Duration::from_millis(100));
    }
}

fn end_of_log(folder: &Path) -> String {
    let log = fs::read_to_string(folder.join(LOG)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Settings for `prefix` in the bucket of the server at `endpoint` whose keys are in `folder`.
fn settings_of(folder: &Path, endpoint: String, prefix: &str) -> BucketSettings {
    let mut settings = BucketSettings::new(format!("s3://{BUCKET}/{prefix}"));
    settings.endpoint = Some(endpoint);
    settings.credentials = Some(CredentialsSource::File(folder.join("keys")));
    settings
}

fn identities() -> String {
    format!(
        r#"{{"identities":[{{"name":"tests","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],"actions":["Admin","Read","Write","List"]}}]}}"#
    )
}

/// Where `.ci/setup` installs it.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/object-servers/bin");
    let path = folder.join(name);
    ensure!(path.is_file(), "'{name}' is not installed in '{}'; run .ci/setup", folder.display());
    Ok(path)
}

/// Ports that nobody has now. All are held until the last one is found.
fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let held: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<_>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// Whether a request without a signature is answered, in whatever way.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = vec![0; 12];
        io::Read::read_exact(&mut stream, &mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 "))
}
