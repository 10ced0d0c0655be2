use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

use super::*;

type Subject = FaultStore<Arc<InMemory>>;

fn subject(plan: FaultPlan) -> Subject {
    FaultStore::new(Arc::new(InMemory::new()), 1, plan)
}

fn at(call: u64, fault: Fault) -> Subject {
    subject(FaultPlan { at: [(call, fault)].into(), ..FaultPlan::default() })
}

async fn put(store: &Subject, name: &str) -> Result<PutResult> {
    store.put_opts(&name.into(), "content".into(), PutMode::Create.into()).await
}

async fn names(store: &Subject) -> Result<Vec<String>> {
    store.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await
}

#[tokio::test]
async fn a_fault_hits_the_chosen_call_alone() {
    let store = at(1, Fault::Busy);
    put(&store, "a").await.expect("the first");
    let error = BucketError::from_store_error("put", "", put(&store, "b").await.expect_err("the second"));
    assert!(matches!(error.cause, Cause::Busy { .. }), "{error}");
    assert_eq!(names(&store).await.expect("the third"), ["a"], "nothing was done");
    assert_eq!(store.faults(), 1);
}

#[tokio::test]
async fn an_answer_that_is_lost_was_given() {
    let store = at(0, Fault::AnswerLost);
    put(&store, "a").await.expect_err("lost");
    assert!(matches!(put(&store, "a").await, Err(object_store::Error::AlreadyExists { .. })));
}

#[tokio::test]
async fn a_late_list_lacks_what_was_put_since_the_last_one() {
    let store = at(3, Fault::ListLate);
    put(&store, "a").await.expect("put");
    names(&store).await.expect("listed");
    put(&store, "b").await.expect("put");
    assert_eq!(names(&store).await.expect("late"), ["a"]);
    store.head(&"b".into()).await.expect("by its name it is found");
    assert_eq!(names(&store).await.expect("whole"), ["a", "b"]);
}

#[tokio::test]
async fn bodies_and_lists_break_in_their_middle() {
    let store = at(1, Fault::Truncated);
    put(&store, "a").await.expect("put");
    let mut body = store.get(&"a".into()).await.expect("begun").into_stream();
    assert_eq!(body.next().await.expect("a chunk").expect("the first half"), "con".as_bytes());
    assert!(body.next().await.expect("an end").is_err());
    let store = at(1, Fault::ListBreaks);
    put(&store, "a").await.expect("put");
    assert!(names(&store).await.is_err());
}

#[tokio::test]
async fn one_seed_gives_the_same_faults() {
    let outcomes = async |seed| {
        let plan = FaultPlan { per_thousand: 500, faults: Fault::PASSING.into(), ..FaultPlan::default() };
        let store = FaultStore::new(Arc::new(InMemory::new()), seed, plan);
        let mut outcomes = Vec::new();
        for call in 0..50 {
            let result = store.put(&Path::from(format!("{call}")), "content".into()).await;
            outcomes.push(result.map(drop).map_err(|error| error.to_string()));
        }
        outcomes
    };
    tokio::time::pause();
    assert_eq!(outcomes(1).await, outcomes(1).await);
    assert_ne!(outcomes(1).await, outcomes(2).await);
}
