//! `thirdsite store copy`: a group goes from one store to another.

use std::time::Instant;

use journal::{Clock, SystemClock};
use restore::{BucketCopy, Place, copy_to_bucket, copy_to_folder};
use serde_json::json;

use super::place::{cache_options, open_locations, place};
use super::seed::open_writer;
use crate::args::CopyArgs;
use crate::failure::Failure;
use crate::output::{print_json, progress, size};

/// Copies what the target lacks.
pub(crate) fn copy(args: &CopyArgs) -> anyhow::Result<()> {
    let began = Instant::now();
    let fingerprint = args.fingerprint.as_deref().map(crate::identity::parse_fingerprint).transpose()?;
    let from = open_locations(&args.from, &args.bucket)?;
    let progress = progress("copying");
    let copied = match place(&args.to, &args.bucket)? {
        Place::Folder(folder) => copy_to_folder(&from, &open_writer(&folder)?, &args.group, &progress),
        Place::Bucket(place) => {
            let cache = cache_options(&args.bucket);
            let copy = BucketCopy { place, cache, fingerprint, now: SystemClock.now() };
            copy_to_bucket(&from, &copy, &args.group, &progress)
        }
    };
    let copied = copied.map_err(|error| Failure::of(&error, error.kind(), error.hint()))?;
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        return print_json(&json!({
            "group": copied.group,
            "from": from.location(),
            "to": args.to.to_string(),
            "segments": copied.segments,
            "copied_segments": copied.copied_segments,
            "copied_bytes": copied.copied_bytes,
            "head": copied.head.map(|head| head.to_string()),
            "seconds": seconds,
        }));
    }
    println!(
        "{} has group '{}': {} of {} segments were copied, {}, in {seconds:.1} s",
        args.to,
        copied.group,
        copied.copied_segments,
        copied.segments,
        size(copied.copied_bytes),
    );
    Ok(())
}
