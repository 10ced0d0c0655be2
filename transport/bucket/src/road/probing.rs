//! Asks the server for what is needed of it, before anything is put.

use std::sync::Arc;

use journal_format::ErrorKind;
use object_store::path::Path;
use tokio::time::sleep;
use tracing::{info, warn};
use transport::{Backoff, LinkState};

use super::BucketLinkOptions;
use super::group::GroupRoad;
use crate::error::RoadError;
use crate::lister::failed;
use crate::probe::{Ability, probe};
use crate::settings::Fencing;

/// Asks until the server has proved what it must, and tells the groups why it has not. Answers none if the link ends before.
pub(super) async fn until_usable(roads: &[GroupRoad]) -> Option<()> {
    let Some(first) = roads.first() else { return Some(()) };
    let options = &first.options;
    let Some(fencing) = options.probe_for else { return Some(()) };
    let mut backoff = Backoff::new(options.backoff_min, options.backoff_max, options.seed);
    loop {
        let asked = tokio::select! {
            asked = ask(options, fencing) => asked,
            () = first.shutdown.cancelled() => break,
        };
        let Err(error) = asked else { return Some(()) };
        let pause = if error.kind() == ErrorKind::Retry { backoff.pause() } else { options.refused_pause };
        let error = Arc::new(error);
        for road in roads {
            road.failed(&error).await;
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = first.shutdown.cancelled() => break,
        }
    }
    for road in roads {
        road.tell(LinkState::Stopped).await;
    }
    None
}

async fn ask(options: &BucketLinkOptions, fencing: Fencing) -> Result<(), RoadError> {
    let place = Path::from("probe");
    let found = probe(&*options.store).await.map_err(|error| failed("probe", &place)(error.into()))?;
    found.accept(fencing, &options.bucket).map_err(|error| failed("probe", &place)(error.into()))?;
    info!(bucket = options.bucket, ?found, "the bucket can be used");
    if let Ability::No(instead) = &found.deletion {
        warn!(bucket = options.bucket, instead, "objects of a probe stay in the bucket: it deletes nothing");
    }
    Ok(())
}
