//! The store, views, exports and restores against real files, sockets and tools.

mod history;
mod ingest;
mod opening;
mod views;
