//! Opening the stores that the arguments name: folders, and buckets through the cache.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use restore::{BucketPlace, CacheOptions, Place, Store};
use tokio::runtime::{Handle, Runtime};

use crate::args::{BucketArgs, Location, StoreArg};
use crate::failure::{Failure, exit, store_failure};
use crate::output::progress_of_segments;

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
    let Some(folder) = url.strip_prefix("file://").map(PathBuf::from) else {
        let hint = "mount the bucket and name it as file:///FOLDER";
        return Err(Failure::invalid(format!("{url}: this build has no S3 client"), hint));
    };
    Ok(BucketPlace {
        url: url.to_owned(),
        objects: folder_objects(&folder)?,
        prefix: String::new(),
        runtime: runtime(),
        patience: args.patience,
    })
}

fn folder_objects(folder: &Path) -> Result<Arc<dyn ObjectStore>, Failure> {
    let objects = LocalFileSystem::new_with_prefix(folder).map_err(|error| {
        let hint = "give file:// and the absolute path of a folder that exists";
        Failure::new(
            exit::INVALID,
            format!("'{}' cannot be used as a bucket: {error}", folder.display()),
            hint,
        )
    })?;
    Ok(Arc::new(objects))
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
