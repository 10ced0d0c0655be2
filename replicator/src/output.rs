//! Printing: times, sizes, tables, progress.

use std::io::{IsTerminal, stderr};

use bytesize::ByteSize;
use chrono::{DateTime, SecondsFormat};
use indicatif::{ProgressBar, ProgressStyle};
use journal_format::Timestamp;
use serde::Serialize;

/// A time as RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    DateTime::from_timestamp_nanos(time.0).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// Prints one JSON value on a line of its own.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// Prints rows under a header, columns aligned to the left.
pub(crate) fn print_table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(header);
    for row in rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// A progress bar in segments on a terminal, nothing in a pipe. Call the closure with (done, total).
pub(crate) fn progress_of_segments(what: &'static str) -> impl Fn(u64, u64) + Send + Sync {
    let template = "{msg} {wide_bar} {pos} of {len} segments, {per_sec}, {eta} left";
    bar(what, template)
}

/// A progress bar in bytes on a terminal, nothing in a pipe. Call the closure with (done, total).
pub(crate) fn progress(what: &'static str) -> impl Fn(u64, u64) + Send + Sync {
    bar(what, "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left")
}

fn bar(what: &'static str, template: &str) -> impl Fn(u64, u64) + Send + Sync + use<> {
    let bar = if stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what);
    move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            bar.finish_and_clear();
        }
    }
}
