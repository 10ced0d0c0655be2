use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::faults::{Dialect, FaultPlan, FaultStore};
use crate::staged::StagedStore;

/// What the probe finds out of a server with this dialect.
async fn probed(dialect: Dialect) -> ProbeReport {
    let store: Arc<dyn ObjectStore> = Arc::new(StagedStore::new(InMemory::new()));
    let plan = FaultPlan { dialects: [dialect].into(), ..FaultPlan::default() };
    probe(&FaultStore::new(store, 0, plan)).await.expect("probed")
}

fn check_refused(report: &ProbeReport, ability: &str) {
    let missing = report.missing(Fencing::PutIfAbsent).expect("something is missing");
    assert!(missing.ability.contains(ability), "{missing:?}");
    let error = report.accept(Fencing::PutIfAbsent, "s3://bucket").expect_err("refused");
    assert!(error.to_string().contains(ability), "{error}");
}

#[tokio::test]
async fn conditions_that_are_ignored_or_refused_are_found() {
    for dialect in [Dialect::IgnoresConditions, Dialect::RefusesConditions] {
        let report = probed(dialect).await;
        check_refused(&report, "put if absent");
        assert_eq!(report.missing(Fencing::None), None, "unless one writer is promised");
        assert_eq!(report.read_after_write, Ability::Yes);
    }
}

#[tokio::test]
async fn conditions_that_are_ignored_for_uploads_alone_are_found() {
    let report = probed(Dialect::IgnoresConditionsOfParts).await;
    assert_eq!(report.put_if_absent, Ability::Yes);
    check_refused(&report, "multipart");
}

#[tokio::test]
async fn deletions_that_do_nothing_are_found_and_are_no_obstacle() {
    let report = probed(Dialect::KeepsDeleted).await;
    assert!(matches!(&report.deletion, Ability::No(instead) if instead.contains("probe/")), "{report:?}");
    assert_eq!(report.missing(Fencing::PutIfAbsent), None);
}

#[tokio::test]
async fn a_server_without_ranges_is_refused() {
    check_refused(&probed(Dialect::RefusesRanges).await, "ranged reads");
}

#[tokio::test]
async fn a_probe_leaves_nothing() {
    let store = StagedStore::new(InMemory::new());
    probe(&store).await.expect("probed");
    assert_eq!(store.list(None).collect::<Vec<_>>().await.len(), 0);
}

#[tokio::test]
async fn what_keeps_a_server_from_being_asked_is_an_error() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let plan = FaultPlan { at: [(0, crate::faults::Fault::Denied)].into(), ..FaultPlan::default() };
    let error = probe(&FaultStore::new(store, 0, plan)).await.expect_err("denied");
    assert_eq!(error.cause, Cause::Denied);
}

#[tokio::test]
async fn a_probe_may_run_in_a_task_of_its_own() {
    let store: Arc<dyn ObjectStore> = Arc::new(StagedStore::new(InMemory::new()));
    let report = tokio::spawn(async move { probe(&*store).await }).await.expect("no panic").expect("probed");
    assert_eq!(report.missing(Fencing::PutIfAbsent), None);
}
