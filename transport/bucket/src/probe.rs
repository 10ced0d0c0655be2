//! Finds out what a server can do, with objects of its own below `probe/`.
//!
//! What a server must do is a table in `BUCKET.md`; [`ProbeReport::missing`] is its last column.

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions};
use serde::{Deserialize, Serialize};

use crate::s3::IfAbsent;
use crate::settings::Fencing;
use crate::store_error::{BucketError, Cause};

/// Size of a probe object.
const PROBE_BYTES: usize = 1000;
/// Writers of one name at the same time.
const RACERS: usize = 8;

/// Whether a server can do something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ability {
    /// It did.
    Yes,
    /// It did not, and what it did instead.
    No(String),
}

/// What a server can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// What was put is read, whole, by its name.
    pub read_after_write: Ability,
    /// An object that exists is not replaced by a put that must not, not even when many are put at once.
    pub put_if_absent: Ability,
    /// The same when a multipart upload is completed.
    pub multipart_if_absent: Ability,
    /// A range of an object is read.
    pub ranged_reads: Ability,
    /// What was put is listed.
    pub listing: Ability,
    /// What was deleted is gone.
    pub deletion: Ability,
}

/// What a bucket lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What is needed.
    pub ability: &'static str,
    /// What the server did instead.
    pub instead: String,
}

impl ProbeReport {
    /// The first ability that is needed and missing.
    #[must_use]
    pub fn missing(&self, fencing: Fencing) -> Option<Missing> {
        let fenced = fencing == Fencing::PutIfAbsent;
        let needed = [
            ("read after write", &self.read_after_write, true),
            ("ranged reads", &self.ranged_reads, true),
            ("put if absent ('If-None-Match: *')", &self.put_if_absent, fenced),
            ("put if absent at the end of a multipart upload", &self.multipart_if_absent, fenced),
        ];
        needed.into_iter().find_map(|(ability, found, needed)| match found {
            Ability::No(instead) if needed => Some(Missing { ability, instead: instead.clone() }),
            _ => None,
        })
    }

    /// Whether the bucket may be used.
    ///
    /// # Errors
    /// With what is missing.
    pub fn accept(&self, fencing: Fencing, place: &str) -> Result<(), BucketError> {
        match self.missing(fencing) {
            None => Ok(()),
            Some(Missing { ability, instead }) => {
                let what = format!("{ability}: {instead};");
                Err(BucketError::new("use", place, Cause::NotSupported { what }))
            }
        }
    }
}

/// Asks the server for all that is needed of it. It costs about 30 requests.
///
/// # Errors
/// What keeps it from being asked at all: the network, the keys, a missing bucket.
pub async fn probe(store: &dyn ObjectStore) -> Result<ProbeReport, BucketError> {
    let probe =
        Probe { store, folder: Path::from_iter(["probe".into(), format!("{:032x}", fastrand::u128(..))]) };
    let report = probe.ask().await;
    let deletion = probe.clean().await;
    let mut report = report?;
    report.deletion = deletion.unwrap_or_else(|error| Ability::No(error.to_string()));
    Ok(report)
}

struct Probe<'a> {
    store: &'a dyn ObjectStore,
    folder: Path,
}

impl Probe<'_> {
    async fn ask(&self) -> Result<ProbeReport, BucketError> {
        let content = random_bytes();
        self.put("plain", content.clone(), PutMode::Overwrite).await?;
        Ok(ProbeReport {
            read_after_write: self.read_after_write(&content).await?,
            put_if_absent: self.put_if_absent().await?,
            multipart_if_absent: self.multipart_if_absent().await?,
            ranged_reads: self.ranged_reads(&content).await?,
            listing: self.listing().await?,
            deletion: Ability::Yes,
        })
    }

    async fn read_after_write(&self, content: &Bytes) -> Result<Ability, BucketError> {
        Ok(match self.get("plain").await {
            Ok(found) if found == *content => Ability::Yes,
            Ok(found) => {
                Ability::No(format!("{} bytes were put and {} other ones read", content.len(), found.len()))
            }
            Err(error) if error.cause == Cause::NotFound => {
                Ability::No("an object that was put is not found".into())
            }
            Err(error) => return Err(error),
        })
    }

    /// Many writers of one name, then one more.
    async fn put_if_absent(&self) -> Result<Ability, BucketError> {
        let contents: Vec<Bytes> = (0..RACERS).map(|_| random_bytes()).collect();
        let puts = contents.iter().map(|content| self.put("once", content.clone(), PutMode::Create));
        let results = join_all(puts).await;
        self.only_one_won("once", &contents, results).await
    }

    async fn multipart_if_absent(&self) -> Result<Ability, BucketError> {
        let contents = [random_bytes(), random_bytes()];
        let mut results = Vec::new();
        for content in &contents {
            results.push(self.put_in_parts("parts", content.clone()).await);
        }
        self.only_one_won("parts", &contents, results).await
    }

    async fn only_one_won(
        &self,
        name: &str,
        contents: &[Bytes],
        results: Vec<Result<(), BucketError>>,
    ) -> Result<Ability, BucketError> {
        let mut winner = None;
        let mut winners = 0;
        for (content, result) in contents.iter().zip(results) {
            match result {
                Ok(()) => {
                    winners += 1;
                    winner = Some(content);
                }
                Err(error) if error.cause == Cause::Exists => {}
                Err(error) if matches!(error.cause, Cause::Dialect { .. } | Cause::NotSupported { .. }) => {
                    return Ok(Ability::No(error.cause.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        let Some(winner) = winner.filter(|_| winners == 1) else {
            let count = contents.len();
            return Ok(Ability::No(format!(
                "{winners} of {count} puts of one name were answered as the first"
            )));
        };
        let unchanged = self.get(name).await? == *winner;
        Ok(if unchanged {
            Ability::Yes
        } else {
            Ability::No("a put that was refused replaced the object".into())
        })
    }

    async fn ranged_reads(&self, content: &Bytes) -> Result<Ability, BucketError> {
        let range = 100..300;
        match self.store.get_range(&self.key("plain"), range.clone()).await {
            Ok(found) if found == content[100..300] => Ok(Ability::Yes),
            Ok(found) => {
                Ok(Ability::No(format!("for 200 bytes from byte 100 on it sent {} other ones", found.len())))
            }
            Err(error) => match BucketError::from_store_error("read a range of", "probe", error) {
                error if matches!(error.cause, Cause::Dialect { .. } | Cause::NotSupported { .. }) => {
                    Ok(Ability::No(error.cause.to_string()))
                }
                error => Err(error),
            },
        }
    }

    async fn listing(&self) -> Result<Ability, BucketError> {
        let names = self.names().await?;
        let listed = names.contains(&self.key("plain"));
        Ok(if listed { Ability::Yes } else { Ability::No("an object that was put is not listed yet".into()) })
    }

    /// Deletes what the probe put, and answers whether it is gone.
    async fn clean(&self) -> Result<Ability, BucketError> {
        let keys = ["plain", "once", "parts"].map(|name| Ok(self.key(name)));
        let deletions = self.store.delete_stream(stream::iter(keys).boxed());
        let results: Vec<_> = deletions.collect().await;
        for error in results.into_iter().filter_map(Result::err) {
            let error = BucketError::from_store_error("delete", self.folder.as_ref(), error);
            if error.cause != Cause::NotFound {
                return Ok(Ability::No(error.to_string()));
            }
        }
        Ok(match self.get("plain").await {
            Err(error) if error.cause == Cause::NotFound => Ability::Yes,
            Err(error) => return Err(error),
            Ok(_) => {
                Ability::No(format!("what was deleted is still there; the probe left '{}'", self.folder))
            }
        })
    }

    fn key(&self, name: &str) -> Path {
        self.folder.clone().join(name)
    }

    async fn put(&self, name: &str, content: Bytes, mode: PutMode) -> Result<(), BucketError> {
        let key = self.key(name);
        let put = self.store.put_opts(&key, content.into(), PutOptions::from(mode)).await;
        put.map(drop).map_err(|error| BucketError::from_store_error("put", key.as_ref(), error))
    }

    async fn put_in_parts(&self, name: &str, content: Bytes) -> Result<(), BucketError> {
        let key = self.key(name);
        let failed = |error| BucketError::from_store_error("put in parts", key.as_ref(), error);
        let mut options = PutMultipartOptions::default();
        options.extensions.insert(IfAbsent);
        let mut upload = self.store.put_multipart_opts(&key, options).await.map_err(failed)?;
        let put = upload.put_part(content.into()).await;
        let completed = match put {
            Ok(()) => upload.complete().await.map(drop),
            Err(error) => Err(error),
        };
        if completed.is_err()
            && let Err(error) = upload.abort().await
        {
            tracing::debug!(%error, "the probe's upload is not aborted");
        }
        completed.map_err(failed)
    }

    async fn get(&self, name: &str) -> Result<Bytes, BucketError> {
        let key = self.key(name);
        let failed = |error| BucketError::from_store_error("get", key.as_ref(), error);
        self.store.get(&key).await.map_err(failed)?.bytes().await.map_err(failed)
    }

    async fn names(&self) -> Result<Vec<Path>, BucketError> {
        let names = self.store.list(Some(&self.folder)).map_ok(|meta| meta.location);
        let failed = |error| BucketError::from_store_error("list", self.folder.as_ref(), error);
        names.try_collect().await.map_err(failed)
    }
}

fn random_bytes() -> Bytes {
    std::iter::repeat_with(|| fastrand::u8(..)).take(PROBE_BYTES).collect()
}

#[cfg(test)]
mod tests;
