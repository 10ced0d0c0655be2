//! Examples for `thirdsite`: settings to start from, and a demonstration that loses a whole site on purpose.
//!
//! The demonstration (`main-job`) uses `thirdsite` as a person would, through its command line. It protects a real Linux
//! guest (`guest/`), kills everything on the protected site, boots the newest point and compares what the guest had
//! promised before with what it finds afterwards. Begin to read there; [`verdict`] says what counts as success.

pub mod console;
#[path = "../guest/lines.rs"]
pub mod lines;
#[path = "../guest/pages.rs"]
pub mod pages;
pub mod process;
pub mod qemu;
#[path = "../guest/records.rs"]
pub mod records;
pub mod settings;
pub mod thirdsite;
pub mod verdict;
