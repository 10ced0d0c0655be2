use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;

use super::*;
use crate::faults::{Fault, FaultPlan, FaultStore};
use crate::staged::StagedStore;
use crate::testing::{S3Server, connect};

/// One call in five fails; a probe, which fails as a whole, then succeeds once in a thousand times.
const PER_THOUSAND: u32 = 100;
const TRIES: u32 = 1000;

/// Runs the suite through faults that pass, of this seed.
async fn run_with_faults(store: impl ObjectStore, seed: u64) {
    println!("seed {seed}");
    let plan = FaultPlan {
        per_thousand: PER_THOUSAND,
        faults: Fault::PASSING.into_iter().filter(|fault| *fault != Fault::Slow).collect(),
        ..FaultPlan::default()
    };
    let store = FaultStore::new(Arc::new(store) as Arc<dyn ObjectStore>, seed, plan);
    run(Arc::new(store.clone()), "suite", TRIES).await;
    assert!(store.faults() > 0, "something went wrong on the way");
}

#[tokio::test]
async fn memory_conforms() {
    run(Arc::new(StagedStore::new(InMemory::new())), "suite", 1).await;
}

#[tokio::test]
async fn memory_conforms_through_faults() {
    for seed in 0..8 {
        run_with_faults(StagedStore::new(InMemory::new()), seed).await;
    }
}

fn folder() -> (tempfile::TempDir, StagedStore<LocalFileSystem>) {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let store = LocalFileSystem::new_with_prefix(folder.path()).expect("a store").with_fsync(true);
    (folder, StagedStore::new(store))
}

#[tokio::test]
async fn a_folder_conforms() {
    let (_folder, store) = folder();
    run(Arc::new(store), "suite", 1).await;
}

#[tokio::test]
async fn a_folder_conforms_through_faults() {
    for seed in 0..2 {
        let (_folder, store) = folder();
        run_with_faults(store, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms() {
    let server = S3Server::start().await;
    let connected = connect(server.url(), |_| ());
    run(Arc::new(connected.store), "suite", 1).await;
    println!("{:?}", connected.meter.traffic());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms_through_faults() {
    let server = S3Server::start().await;
    let connected = connect(server.url(), |_| ());
    run_with_faults(connected.store, 1).await;
}
