//! What was lost: the records announced before the disaster against those found after the boot.

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::console::Life;

/// More than this is a failed demonstration, in seconds of the guest's writes.
pub const SECONDS_LOST_MAX: f64 = 2.0;

/// The result of the demonstration, as its last line prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Highest number of a record that the guest announced at the protected site.
    pub records_written: u64,
    /// Highest number of a record that the guest found after its boot at the third site.
    pub records_after_boot: u64,
    /// Announced records that are not there after the boot.
    pub records_lost: u64,
    /// Time between the last record that was announced and the last that was found, both by the guest's clock.
    pub seconds_lost: f64,
    /// Time from the start of `thirdsite boot` until the guest had checked its records.
    pub boot_seconds: f64,
    /// The point that was booted.
    pub point: String,
}

/// Compares the guest's life before the disaster with the one after it.
///
/// # Errors
/// If the guest found damage, if a record is not the one that was announced, if the guest did not go on where it stopped,
/// or if more than [`SECONDS_LOST_MAX`] is lost.
pub fn judge(before: &Life, after: &Life, boot_seconds: f64, point: &str) -> Result<Verdict> {
    let last = before.records.last().context("the protected guest announced no record")?;
    let ready = after.ready.context("the recovered guest did not say that it is ready")?;
    ensure!(
        ready.is_whole(),
        "the recovered guest found damage: {} records torn, {} missing in between, {} of {} pages wrong, {} file system errors",
        ready.torn,
        ready.holes,
        ready.pages_bad,
        ready.pages,
        ready.fs_errors
    );
    // One record more than announced is fine: it was durable, and the console died before the line was out.
    let announced = before.records.iter().find(|record| record.number == ready.records);
    if let Some(announced) = announced
        && announced.unix_ms != ready.last_ms
    {
        let (number, then, now) = (ready.records, announced.unix_ms, ready.last_ms);
        bail!(
            "record {number} is not the one that was announced: it carries the time {now} instead of {then}"
        );
    }
    if let Some(first) = after.records.first()
        && first.number != ready.records + 1
    {
        bail!("the recovered guest found {} records and went on with record {}", ready.records, first.number);
    }
    let seconds_lost = last.unix_ms.saturating_sub(ready.last_ms) as f64 / 1000.0;
    ensure!(
        seconds_lost <= SECONDS_LOST_MAX,
        "{seconds_lost} s of writes are lost (records {} to {}); at most {SECONDS_LOST_MAX} s are allowed",
        ready.records + 1,
        last.number
    );
    Ok(Verdict {
        records_written: last.number,
        records_after_boot: ready.records,
        records_lost: last.number.saturating_sub(ready.records),
        seconds_lost,
        boot_seconds,
        point: point.to_owned(),
    })
}

#[cfg(test)]
mod tests;
