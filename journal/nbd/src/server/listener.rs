//! Where connections come in.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

use crate::stream::Stream;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener, Option<BoundPath>),
    Tcp(TcpListener),
}

/// A path in the file system that ends with its listener.
#[derive(Debug)]
struct BoundPath {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Why nobody can be listened to.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another process listens there, or the path is something that is not a socket.
    #[error("{address} is in use: {why}")]
    AddrInUse {
        /// The path or address.
        address: String,
        /// By what.
        why: &'static str,
    },
    /// The system refuses.
    #[error("cannot listen on {address}")]
    Io {
        /// The path or address.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ListenError {
    /// The nearest kind of an I/O error.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            ListenError::AddrInUse { .. } => io::ErrorKind::AddrInUse,
            ListenError::Io { source, .. } => source.kind(),
        }
    }
}

impl Listener {
    /// Listens on a new unix socket that only its owner may use (mode 0600). A socket that was left behind by a process
    /// that is gone is replaced; the path is removed with the listener.
    ///
    /// # Errors
    /// If somebody listens there, the path is no socket, or the system refuses.
    pub fn unix(path: &Path) -> Result<Self, ListenError> {
        let address = path.display().to_string();
        let io = |source: io::Error| ListenError::Io { address: path.display().to_string(), source };
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ListenError::AddrInUse { address, why: "the path exists and is not a socket" });
            }
            Ok(_) => match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(io)?;
                }
                Err(error) => return Err(io(error)),
                Ok(_) => {
                    return Err(ListenError::AddrInUse { address, why: "another process listens there" });
                }
            },
        }
        let listener = bind_private(path).map_err(|error| match error {
            rustix::io::Errno::ADDRINUSE => {
                ListenError::AddrInUse { address, why: "another process took it just now" }
            }
            error => io(error.into()),
        })?;
        let bound = std::fs::symlink_metadata(path).map_err(io)?;
        let bound = BoundPath { path: path.to_owned(), device: bound.dev(), inode: bound.ino() };
        Ok(Listener { socket: Socket::Unix(listener, Some(bound)) })
    }

    /// Listens on a TCP address.
    ///
    /// # Errors
    /// If the address is in use or not of this machine.
    pub fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        let listener = TcpListener::bind(address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => {
                ListenError::AddrInUse { address: address.to_string(), why: "another process listens there" }
            }
            _ => ListenError::Io { address: address.to_string(), source },
        })?;
        Listener::from_tcp(listener)
            .map_err(|source| ListenError::Io { address: address.to_string(), source })
    }

    /// Takes over a listening unix socket, as socket activation hands it over. Its path is left alone at the end.
    ///
    /// # Errors
    /// If the system refuses to make it non-blocking.
    pub fn from_unix(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Listener { socket: Socket::Unix(listener, None) })
    }

    /// Takes over a listening TCP socket, as socket activation hands it over.
    ///
    /// # Errors
    /// If the system refuses to make it non-blocking.
    pub fn from_tcp(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Listener { socket: Socket::Tcp(listener) })
    }

    /// A second handle of the socket. The path of a unix socket stays with the first.
    ///
    /// # Errors
    /// If the system gives no more descriptors.
    pub fn try_clone(&self) -> io::Result<Listener> {
        let socket = match &self.socket {
            Socket::Unix(listener, _) => Socket::Unix(listener.try_clone()?, None),
            Socket::Tcp(listener) => Socket::Tcp(listener.try_clone()?),
        };
        Ok(Listener { socket })
    }

    /// The TCP address, with the port that the system chose for port 0; `None` for a unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Unix(..) => None,
            Socket::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    pub(super) fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Unix(listener, _) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                // A client whose machine has died must not keep its connection for ever.
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(listener, _) => listener.as_fd(),
            Socket::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.socket {
            Socket::Unix(_, Some(bound)) => write!(f, "{}", bound.path.display()),
            Socket::Unix(listener, None) => match listener.local_addr() {
                Ok(address) => write!(f, "{address:?}"),
                Err(_) => f.write_str("unix socket"),
            },
            Socket::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(_) => f.write_str("TCP socket"),
            },
        }
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        // A successor may have put its own socket there.
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a socket could not be removed");
        }
    }
}

/// On Linux the mode of the unbound socket becomes that of its path: nobody can connect before it is restricted.
fn bind_private(path: &Path) -> rustix::io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}
