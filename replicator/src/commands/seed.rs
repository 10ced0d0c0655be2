//! `thirdsite seed`: a group's first copy goes to the recovery site on a disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use journal::{FileLeg, JournalError, SeedLeg, SeedSettings, SystemClock};
use journal_format::GroupName;
use journal_format::segment::BuildOptions;
use restore::{Store, StoreError, StoreWriter, WriterOptions};
use serde_json::json;

use crate::args::{ImportTarget, SeedExportArgs, SeedImportArgs};
use crate::failure::{Failure, store_failure};
use crate::output::{print_json, progress, size};
use crate::settings::{self, GroupTable, SiteSettings, SourceSettings, VolumeTable};

/// Reads a group's legs and writes what the folder lacks.
pub(crate) fn export_seed(args: &SeedExportArgs) -> anyhow::Result<()> {
    let began = Instant::now();
    let settings: SourceSettings = settings::load(&args.config)?;
    if settings.dedup.covers == 0 {
        let hint = "give [dedup] covers a size, or remove it from the settings, and restart the agent";
        let message = "a seed would be of no use: [dedup] covers = \"0B\" makes the agent send everything";
        return Err(Failure::invalid(message, hint).into());
    }
    let table = table_of(&settings, &args.group)?;
    let volumes = table.volumes.iter().map(open_leg).collect::<Result<_, Failure>>()?;
    let build = BuildOptions { level: table.compression_level, ..BuildOptions::default() };
    let settings = SeedSettings { group: args.group.clone(), volumes, build };
    let exported = journal::export_seed(&settings, &args.folder, &SystemClock, &progress("exporting"))
        .map_err(|error| Failure::of(&error, error.kind(), error.hint()))?;
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        return print_json(&json!({
            "group": args.group,
            "dir": args.folder,
            "size_bytes": exported.size_bytes,
            "read_bytes": exported.read_bytes,
            "segments": exported.segments,
            "written_bytes": exported.written_bytes,
            "last_segment": exported.last,
            "seconds": seconds,
        }));
    }
    println!(
        "group '{}' is in {}: {} read of {}, {} written in {} segments, in {seconds:.1} s",
        args.group,
        args.folder.display(),
        size(exported.read_bytes),
        size(exported.size_bytes),
        size(exported.written_bytes),
        exported.segments,
    );
    println!("carry the folder to the recovery site and run 'thirdsite seed import' there");
    Ok(())
}

fn table_of<'a>(settings: &'a SourceSettings, group: &GroupName) -> Result<&'a GroupTable, Failure> {
    settings.groups.iter().find(|table| table.name == *group).ok_or_else(|| {
        let names: Vec<&str> = settings.groups.iter().map(|table| table.name.as_str()).collect();
        let hint = format!("the groups of the settings are: {}", names.join(", "));
        Failure::invalid(format!("the settings have no group '{group}'"), &hint)
    })
}

fn open_leg(volume: &VolumeTable) -> Result<SeedLeg, Failure> {
    let leg = FileLeg::open_for_reading(&volume.leg).map_err(|source| {
        let path = volume.leg.display().to_string();
        let error = JournalError::Leg { volume: volume.name.clone(), path, source };
        Failure::of(&error, error.kind(), "check 'leg' in the settings and the file's permissions")
    })?;
    Ok(SeedLeg { name: volume.name.clone(), kind: volume.kind(), leg: Arc::new(leg) })
}

/// Takes a folder into the store.
pub(crate) fn import_seed(args: &SeedImportArgs) -> anyhow::Result<()> {
    let began = Instant::now();
    let store = store_of(&args.into)?;
    let writer = open_writer(&store)?;
    let imported = restore::import_seed(&writer, &args.folder, &progress("importing"))
        .map_err(|error| Failure::of(&error, error.kind(), error.hint()))?;
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        return print_json(&json!({
            "group": imported.group,
            "store": store,
            "segments": imported.segments,
            "taken_segments": imported.taken_segments,
            "taken_bytes": imported.taken_bytes,
            "last_segment": imported.head.map(|head| head.sequence),
            "seconds": seconds,
        }));
    }
    println!(
        "the seed of group '{}' is in {}: {} of {} segments were new, {}, in {seconds:.1} s",
        imported.group,
        store.display(),
        imported.taken_segments,
        imported.segments,
        size(imported.taken_bytes),
    );
    println!("start 'thirdsite site run'; the group's first sync sends what the seed does not have");
    Ok(())
}

/// The store's folder. One that is named without settings has to be a store: a wrong path must not become one.
fn store_of(target: &ImportTarget) -> anyhow::Result<PathBuf> {
    match (&target.store, &target.config) {
        (Some(store), _) => {
            Store::open(store).map_err(|error| store_failure(&error))?;
            Ok(store.clone())
        }
        (None, Some(config)) => Ok(settings::load::<SiteSettings>(config)?.store),
        (None, None) => unreachable!("the command line asks for one of both"),
    }
}

pub(super) fn open_writer(store: &Path) -> Result<StoreWriter, Failure> {
    StoreWriter::open(store, WriterOptions::default()).map_err(|error| match error {
        StoreError::Locked { .. } => {
            let hint =
                "stop the recovery site's daemon ('thirdsite site run') meanwhile, and start it again then";
            Failure::of(&error, error.kind(), hint)
        }
        error => store_failure(&error),
    })
}
