//! The NBD server of the product, and a small client.
//!
//! The server stands in the write path of a protected VM (as the tap in front of a leg) and in front of recovery
//! points that are exported or booted. It turns the bytes of a socket into calls of one synchronous trait,
//! [`Export`], and hands the payload of a write on without copying it ([`Payload`]).
//!
//! # What it deliberately does not know
//! - What an export is: no journal, no epoch, no recovery point. [`FileDisk`] is the only export in here.
//! - Any async runtime: a connection is one plain thread that reads many requests with one system call. Measured
//!   against event loops and thread pools this costs a third to a fifth of the CPU time per write.
//! - TLS and authentication: it is reached over unix sockets of mode 0600 or over a network that the owner trusts.
//! - Old-style negotiation, extended headers and resize of the protocol.
//!
//! # Where to begin reading
//! [`export`](Export) is what an owner implements, [`Server::start`] what it calls. `negotiation.rs`, `request.rs` and
//! `reply.rs` are the protocol without any socket; `server/connection.rs` is the loop of one connection;
//! `server/jobs.rs` is where whatever may wait for a disk goes, so that the requests behind it do not wait as well.
//! `arena.rs` is the only module with `unsafe`.
//!
//! The protocol is the one of <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>; all its integers are
//! big endian.

mod arena;
mod client;
mod errno;
mod export;
mod file;
mod negotiation;
mod reply;
mod request;
mod server;
mod stream;
mod wire;

pub use arena::{Arena, ArenaStats, Payload};
pub use client::{Body, Client, ClientError, Completion, ExportInfo, ListedExport, Protocol, WriteFlags};
pub use errno::Errno;
pub use export::{Export, ExportNameError, Exports, StatusExtent, ZeroMode};
pub use file::{FileDisk, OpenError};
pub use server::{ListenError, Listener, Server, ServerOptions};
pub use wire::{BLOCK_SIZE_BYTES_MIN, PAYLOAD_BYTES_MAX};
