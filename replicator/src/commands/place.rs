//! Opening the stores that the arguments name: folders, and buckets through the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use restore::{BucketPlace, CacheOptions, Place, Store};
use tokio::runtime::{Handle, Runtime};
use transport_bucket::{BucketSettings, CredentialsSource};

use crate::args::{BucketArgs, Location, StoreArg};
use crate::failure::{Failure, store_failure};
use crate::output::progress_of_segments;

/// Time until a request is given up; it is then made again for as long as the command is patient.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
const SETTINGS_HINT: &str = "transport/bucket/BUCKET.md lists the settings; without --bucket-config the environment counts (AWS_REGION, AWS_ENDPOINT_URL, AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)";

/// Opens the stores of the arguments for reading, as one.
pub(super) fn open_store(args: &StoreArg) -> Result<Store, Failure> {
    open_locations(&args.store, &args.bucket)
}

/// Opens stores for reading, as one.
pub(super) fn open_locations(locations: &[Location], args: &BucketArgs) -> Result<Store, Failure> {
    let places = locations.iter().map(|location| place(location, args)).collect::<Result<Vec<_>, _>>()?;
    let progress = progress_of_segments("reading outlines");
    Store::open_places(&places, &cache_options(args), &progress).map_err(|error| store_failure(&error))
}

/// Where and how much of buckets is kept on this machine.
pub(super) fn cache_options(args: &BucketArgs) -> CacheOptions {
    CacheOptions { folder: args.cache.clone(), size_bytes_max: args.cache_size.as_u64() }
}

/// Where a store is, ready to be opened.
pub(super) fn place(location: &Location, args: &BucketArgs) -> Result<Place, Failure> {
    match location {
        Location::Folder(folder) => Ok(Place::Folder(folder.clone())),
        Location::Bucket(url) => bucket(url, args).map(Place::Bucket),
    }
}

fn bucket(url: &str, args: &BucketArgs) -> Result<BucketPlace, Failure> {
    let mut settings = match configured(url, &args.bucket_config)? {
        Some(settings) => settings,
        None => from_environment(url),
    };
    // Whoever reads is patient, and says so; a request is given up early.
    settings.deadline = settings.deadline.min(REQUEST_DEADLINE);
    let opened = settings.open().map_err(|error| Failure::of(&error, error.kind(), SETTINGS_HINT))?;
    Ok(BucketPlace {
        url: url.to_owned(),
        objects: opened.store,
        prefix: String::new(),
        runtime: runtime(),
        patience: args.patience,
    })
}

/// The settings among the files that name a bucket.
fn configured(url: &str, files: &[PathBuf]) -> Result<Option<BucketSettings>, Failure> {
    for path in files {
        let settings = read_settings(path)?;
        if settings.url.trim_end_matches('/') == url.trim_end_matches('/') {
            return Ok(Some(settings));
        }
    }
    match files {
        [only] => {
            let message = format!("'{}' is not about {url}", only.display());
            Err(Failure::invalid(message, "give the settings of the bucket that is named with --store"))
        }
        _ => Ok(None),
    }
}

fn read_settings(path: &Path) -> Result<BucketSettings, Failure> {
    let invalid = |reason: String| {
        Failure::invalid(
            format!("settings file '{}' cannot be used: {reason}", path.display()),
            SETTINGS_HINT,
        )
    };
    let text = fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
    let mut settings: BucketSettings = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    let absolute = std::path::absolute(path).map_err(|error| invalid(error.to_string()))?;
    settings.resolve(absolute.parent().unwrap_or(Path::new("/")));
    Ok(settings)
}

/// What the environment says, as for other tools.
fn from_environment(url: &str) -> BucketSettings {
    let mut settings = BucketSettings::new(url);
    if !url.starts_with("s3://") {
        return settings;
    }
    let first = |names: &[&str]| {
        names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    };
    settings.region = first(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
    settings.endpoint = first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
    settings.ca_file = first(&["AWS_CA_BUNDLE"]).map(PathBuf::from);
    let keys = first(&["AWS_ACCESS_KEY_ID"]);
    let profile = first(&["AWS_PROFILE"]);
    let token = first(&["AWS_WEB_IDENTITY_TOKEN_FILE"]);
    settings.credentials = Some(match (keys, profile, token) {
        (None, Some(profile), _) => CredentialsSource::Profile(profile),
        (None, None, Some(_)) => CredentialsSource::WebIdentity,
        _ => CredentialsSource::Environment,
    });
    settings
}

/// What requests to buckets are performed on, for as long as the process lives.
fn runtime() -> Handle {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let make = || {
        let builder = &mut tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().thread_name("bucket").build().expect("threads can be started")
    };
    RUNTIME.get_or_init(make).handle().clone()
}
