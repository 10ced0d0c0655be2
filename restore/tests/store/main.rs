//! The store, views, exports, images and boots against real files, sockets and tools.

mod boot;
mod bucket;
mod buckets;
mod checking;
mod claims;
mod copying;
mod exports;
mod history;
mod images;
mod ingest;
mod opening;
mod references;
mod unions;
mod views;
