//! A point for the programs of this host: an NBD server on a socket in a private folder.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use journal_format::VolumeName;
use journal_nbd::{Listener, Server, ServerOptions};
use tempfile::TempDir;

use crate::error::{StoreError, io_error};
use crate::export::{Access, exports_of};
use crate::view::PointView;

/// A server that ends, and whose folder goes, when this is dropped.
pub(crate) struct LocalServer {
    // Before the folder, so that the socket is closed before it is removed.
    _server: Server,
    folder: TempDir,
}

impl LocalServer {
    /// Serves all volumes of a point, read-only.
    pub(crate) fn start(view: &Arc<PointView>) -> Result<LocalServer, StoreError> {
        let place = std::env::temp_dir();
        let folder = tempfile::Builder::new().prefix("thirdsite-").tempdir_in(&place);
        let folder = folder.map_err(io_error("make a folder in", &place))?;
        let socket = folder.path().join("nbd.sock");
        let failed = |error| io_error("serve on", &socket)(error);
        let listener = Listener::unix(&socket).map_err(|error| failed(std::io::Error::other(error)))?;
        let exports = Arc::new(exports_of(view, Access::ReadOnly)?);
        let server = Server::start(vec![listener], exports, ServerOptions::default()).map_err(failed)?;
        Ok(LocalServer { _server: server, folder })
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd.sock")
    }

    /// Its private folder.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Where a program finds a volume.
    pub(crate) fn uri(&self, volume: &VolumeName) -> OsString {
        let mut uri = OsString::from(format!("nbd+unix:///{volume}?socket="));
        uri.push(self.socket());
        uri
    }
}
