//! Buckets on real servers of object storage.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, ensure};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode};
use tests::object_server::{BUCKET, ObjectServer};
use tests::scaled;
use tokio::task::JoinSet;
use transport_bucket::conformance::{self, content};
use transport_bucket::{BucketError, Cause, CredentialsSource, OpenBucket, put_file};

/// Large enough to be put in parts.
const FILE_BYTES: usize = 20 << 20;

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

#[test]
fn seaweedfs_conforms() -> anyhow::Result<()> {
    let server = ObjectServer::start()?;
    let bucket = server.settings("a/prefix").open()?;
    runtime()?.block_on(conformance::run(bucket.store, "suite", 1));
    let traffic = bucket.meter.traffic();
    println!("{traffic:?}");
    ensure!(traffic.retries == 0, "nothing had to be repeated: {traffic:?}");
    Ok(())
}

#[test]
fn wrong_keys_and_a_missing_bucket_are_told_apart_by_seaweedfs() -> anyhow::Result<()> {
    let server = ObjectServer::start()?;
    let keys = tempfile::NamedTempFile::new()?;
    let meets = |id: &str, secret: &str, bucket: &str| -> anyhow::Result<Cause> {
        let lines = format!("access_key_id = \"{id}\"\nsecret_access_key = \"{secret}\"\n");
        std::fs::write(keys.path(), lines)?;
        let mut settings = server.settings("");
        settings.url = format!("s3://{bucket}");
        settings.credentials = Some(CredentialsSource::File(keys.path().into()));
        let bucket = settings.open()?;
        let put = runtime()?.block_on(bucket.store.put(&"object".into(), "bytes".into()));
        let error = put.err().context("the put was taken")?;
        let error = BucketError::from_store_error("put", "object", error);
        println!("{error}\n  hint: {:?}", error.hint());
        Ok(error.cause)
    };
    ensure!(meets("AKIDFORTESTS", "not-the-secret", BUCKET)? == Cause::WrongSecret);
    ensure!(meets("NOBODY", "not-the-secret", BUCKET)? == Cause::UnknownKey);
    ensure!(meets("AKIDFORTESTS", "a-secret-for-tests", "another-bucket")? == Cause::NoBucket);
    Ok(())
}

/// Puts objects one after the other, and counts those that are put.
async fn put_many(bucket: OpenBucket, writer: usize, objects: usize, done: tokio::sync::mpsc::Sender<()>) {
    for number in 0..objects {
        let seed = u64::try_from(writer * objects + number).expect("it fits");
        let key = Path::from(format!("{writer}/{number}"));
        let result = if number % 4 == 3 {
            let mut file = tempfile::tempfile().expect("a temporary file");
            file.write_all(&content(seed, FILE_BYTES)).expect("written");
            let file: Arc<File> = Arc::new(file);
            put_file(&*bucket.store, &key, &file, FILE_BYTES as u64, PutMode::Create).await
        } else {
            let put =
                bucket.store.put_opts(&key, content(seed, 100_000).into(), PutMode::Create.into()).await;
            put.map_err(|error| BucketError::from_store_error("put", key.as_ref(), error))
        };
        result.expect("put in the end");
        done.send(()).await.expect("somebody counts");
    }
}

#[test]
fn puts_survive_a_killed_seaweedfs() -> anyhow::Result<()> {
    const WRITERS: usize = 4;
    let objects = usize::try_from(scaled(8, 40))?;
    let kills = usize::try_from(scaled(2, 10))?;
    let mut server = ObjectServer::start()?;
    let bucket = server.settings("").open()?;
    let runtime = runtime()?;
    let (done, mut puts) = tokio::sync::mpsc::channel(1);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn_on(put_many(bucket.clone(), writer, objects, done.clone()), runtime.handle());
    }
    drop(done);
    let all = WRITERS * objects;
    for number in 0..all {
        runtime.block_on(puts.recv()).context("a writer has ended early")?;
        if number % (all / (kills + 1)) == all / (kills + 1) - 1 && number + 1 < all {
            server.kill()?;
            server.start_again()?;
        }
    }
    runtime.block_on(async {
        while let Some(ended) = writers.join_next().await {
            ended.expect("a writer")
        }
    });
    let traffic = bucket.meter.traffic();
    println!("{traffic:?}");
    ensure!(traffic.retries > 0, "no kill met a put");
    runtime.block_on(async {
        for seed in 0..all {
            let (writer, number) = (seed / objects, seed % objects);
            let bytes = if number % 4 == 3 { FILE_BYTES } else { 100_000 };
            let key = Path::from(format!("{writer}/{number}"));
            let found = bucket.store.get(&key).await?.bytes().await?;
            ensure!(found == content(u64::try_from(seed)?, bytes), "'{key}' has other bytes");
        }
        Ok(())
    })
}
