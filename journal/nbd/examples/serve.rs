//! Serves a raw file or block device over NBD, to measure the server: `serve <socket> <file>`.

use std::path::Path;
use std::sync::Arc;
use std::{env, io, process};

use journal_nbd::{Exports, FileDisk, Listener, Server, ServerOptions};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [socket, file] = &arguments[..] else {
        eprintln!("usage: serve <socket> <file>; ends when its standard input ends");
        process::exit(2);
    };
    if let Err(error) = serve(Path::new(socket), Path::new(file)) {
        eprintln!("serve: {error}");
        process::exit(1);
    }
}

fn serve(socket: &Path, file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let exports = Arc::new(Exports::new());
    exports.add("disk", Arc::new(FileDisk::open(file, false)?))?;
    let server = Server::start(vec![Listener::unix(socket)?], exports, ServerOptions::default())?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    server.shutdown();
    Ok(())
}
