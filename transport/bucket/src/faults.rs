//! A layer that makes a backend fail, for tests: at random from a seed, at chosen calls, or always in one way.
//!
//! It is what remains when the repetitions of [`crate::S3Store`] have not helped, or what a server of another dialect does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use crate::s3::IfAbsent;
use crate::store_error::{BucketError, Cause};

/// What goes wrong in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// 503 SlowDown; nothing was done.
    Busy,
    /// 500; nothing was done.
    Failed,
    /// 500, or the connection was lost, after it was done.
    AnswerLost,
    /// No answer; nothing was done.
    TimedOut,
    /// It takes a second longer, of the runtime's time.
    Slow,
    /// The body of an answer ends early.
    Truncated,
    /// A list fails in its middle.
    ListBreaks,
    /// A list does not have what was put since the last list that was whole.
    ListLate,
    /// The credentials do not permit it.
    Denied,
}

impl Fault {
    /// All that pass by themselves: what a client that tries again gets over.
    pub const PASSING: [Self; 7] = [
        Self::Busy,
        Self::Failed,
        Self::AnswerLost,
        Self::TimedOut,
        Self::Slow,
        Self::Truncated,
        Self::ListBreaks,
    ];
}

/// What a server always does otherwise than S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dialect {
    /// Conditions of puts are ignored: what exists is replaced.
    IgnoresConditions,
    /// Conditions of puts are refused with 501.
    RefusesConditions,
    /// Conditions are obeyed, but not when a multipart upload is completed.
    IgnoresConditionsOfParts,
    /// Deletions are answered and not done.
    KeepsDeleted,
    /// Ranges are refused.
    RefusesRanges,
}

/// Which calls fail.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// Calls out of a thousand that fail at random.
    pub per_thousand: u32,
    /// What may happen to them; one is chosen.
    pub faults: Vec<Fault>,
    /// Calls, counted from 0 over all kinds, that fail in a chosen way.
    pub at: BTreeMap<u64, Fault>,
    /// What the server always does.
    pub dialects: BTreeSet<Dialect>,
}

/// Makes `inner` fail.
#[derive(Clone, Debug)]
pub struct FaultStore<T> {
    inner: T,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    plan: FaultPlan,
    random: fastrand::Rng,
    calls: u64,
    faults: u64,
    /// Put since the last list that was whole.
    recent: BTreeSet<Path>,
}

impl<T: ObjectStore> FaultStore<T> {
    /// Fails as planned, with what is random drawn from `seed`.
    pub fn new(inner: T, seed: u64, plan: FaultPlan) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let state = State { plan, random, calls: 0, faults: 0, recent: BTreeSet::new() };
        Self { inner, state: Arc::new(Mutex::new(state)) }
    }

    /// Fails otherwise from now on; calls are counted from 0 again.
    pub fn change_plan(&self, plan: FaultPlan) {
        let mut state = self.state();
        state.plan = plan;
        state.calls = 0;
    }

    /// Calls that failed, or were disturbed.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.state().faults
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn has(&self, dialect: Dialect) -> bool {
        self.state().plan.dialects.contains(&dialect)
    }

    /// Whether a condition is to be obeyed.
    fn obeys_conditions(&self, key: &Path) -> Result<bool> {
        if self.has(Dialect::RefusesConditions) {
            let message = "A header you provided implies functionality that is not implemented".into();
            let cause = Cause::Dialect { status: 501, code: "NotImplemented".into(), message };
            return Err(BucketError::new("put", key.as_ref(), cause).into());
        }
        Ok(!self.has(Dialect::IgnoresConditions))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn next(&mut self) -> Option<Fault> {
        let call = self.calls;
        self.calls += 1;
        let drawn = self.random.u32(..1000) < self.plan.per_thousand;
        let random = if drawn { self.random.choice(&self.plan.faults).copied() } else { None };
        let fault = self.plan.at.get(&call).copied().or(random);
        self.faults += u64::from(fault.is_some());
        fault
    }
}

/// Makes a call, or does not, as `fault` says.
async fn call<R>(
    fault: Option<Fault>,
    operation: &'static str,
    key: &str,
    work: impl Future<Output = Result<R>>,
) -> Result<R> {
    let error = |cause| Err(BucketError::new(operation, key, cause).into());
    let failed = Cause::Server { status: 500, code: "InternalError".into(), message: "a fault".into() };
    match fault {
        Some(Fault::Busy) => error(Cause::Busy { status: 503, code: "SlowDown".into() }),
        Some(Fault::Failed) => error(failed),
        Some(Fault::TimedOut) => error(Cause::TimedOut { after: Duration::from_secs(30) }),
        Some(Fault::Denied) => error(Cause::Denied),
        Some(Fault::AnswerLost) => match work.await {
            Ok(_) => error(failed),
            Err(refused) => Err(refused),
        },
        Some(Fault::Slow) => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            work.await
        }
        None | Some(Fault::Truncated | Fault::ListBreaks | Fault::ListLate) => work.await,
    }
}

impl<T: fmt::Display> fmt::Display for FaultStore<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with faults", self.inner)
    }
}

#[async_trait]
impl<T: ObjectStore + Clone> ObjectStore for FaultStore<T> {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        if options.mode == PutMode::Create && !self.obeys_conditions(location)? {
            options.mode = PutMode::Overwrite;
        }
        let fault = self.state().next();
        let result =
            call(fault, "put", location.as_ref(), self.inner.put_opts(location, payload, options)).await;
        self.state().recent.insert(location.clone());
        result
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        mut options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if options.extensions.get::<IfAbsent>().is_some()
            && (!self.obeys_conditions(location)? || self.has(Dialect::IgnoresConditionsOfParts))
        {
            options.extensions.remove::<IfAbsent>();
        }
        let fault = self.state().next();
        let begin = self.inner.put_multipart_opts(location, options);
        let inner = call(fault, "put in parts", location.as_ref(), begin).await?;
        Ok(Box::new(FaultUpload { inner, state: Arc::clone(&self.state), key: location.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.range.is_some() && self.has(Dialect::RefusesRanges) {
            let cause = Cause::NotSupported { what: "reading a range of an object".into() };
            return Err(BucketError::new("get", location.as_ref(), cause).into());
        }
        let fault = self.state().next();
        let head = options.head;
        let mut result =
            call(fault, "get", location.as_ref(), self.inner.get_opts(location, options)).await?;
        if fault == Some(Fault::Truncated) && !head {
            result.payload = truncated(location, result.payload).await;
        }
        Ok(result)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |location: Result<Path>| {
            let store = store.clone();
            async move {
                let location = location?;
                if store.has(Dialect::KeepsDeleted) {
                    return Ok(location);
                }
                let fault = store.state().next();
                let deleted = store.inner.delete_stream(stream::iter([Ok(location.clone())]).boxed());
                let work = deleted.try_collect::<Vec<_>>();
                call(fault, "delete", location.as_ref(), work).await?;
                Ok(location)
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.disturbed(prefix, self.inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.disturbed(prefix, self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let fault = self.state().next();
        let place = prefix.map(Path::as_ref).unwrap_or_default();
        let list = call(fault, "list", place, self.inner.list_with_delimiter(prefix)).await?;
        if fault == Some(Fault::ListBreaks) {
            return Err(BucketError::new("list", place, Cause::Lost).into());
        }
        Ok(list)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let fault = self.state().next();
        call(fault, "copy", to.as_ref(), self.inner.copy_opts(from, to, options)).await
    }
}

impl<T: ObjectStore + Clone> FaultStore<T> {
    fn disturbed(
        &self,
        prefix: Option<&Path>,
        list: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let place = prefix.map(ToString::to_string).unwrap_or_default();
        let mut state = self.state();
        let fault = state.next();
        let hidden = if fault == Some(Fault::ListLate) {
            state.recent.clone()
        } else {
            state.recent.clear();
            BTreeSet::new()
        };
        let breaks_after = state.random.usize(..8);
        drop(state);
        let whole = async move {
            let work = list.try_collect::<Vec<_>>();
            call(fault, "list", &place, work).await.map(|objects| (objects, place))
        };
        let disturb = move |(mut objects, place): (Vec<ObjectMeta>, String)| {
            objects.retain(|object| !hidden.contains(&object.location));
            let broken = fault == Some(Fault::ListBreaks);
            if broken {
                objects.truncate(breaks_after);
            }
            let end = broken.then(|| Err(BucketError::new("list", place, Cause::Lost).into()));
            stream::iter(objects.into_iter().map(Ok).chain(end))
        };
        stream::once(whole).map_ok(disturb).try_flatten().boxed()
    }
}

/// The first half of a body, and then what a reader sees of the rest.
async fn truncated(location: &Path, payload: GetResultPayload) -> GetResultPayload {
    let chunks = match payload {
        GetResultPayload::Stream(chunks) => chunks,
        // Whoever reads a file of this machine cannot lose its second half on the way.
        file @ GetResultPayload::File(..) => return file,
    };
    let whole: Vec<Bytes> = match chunks.try_collect().await {
        Ok(whole) => whole,
        Err(error) => return GetResultPayload::Stream(stream::iter([Err(error)]).boxed()),
    };
    let whole = whole.concat();
    let half = Bytes::copy_from_slice(&whole[..whole.len() / 2]);
    let what = format!("it ends at byte {}, expected {}", half.len(), whole.len());
    let error = BucketError::new("read the body of", location.as_ref(), Cause::BadAnswer { what });
    GetResultPayload::Stream(stream::iter([Ok(half), Err(error.into())]).boxed())
}

#[derive(Debug)]
struct FaultUpload {
    inner: Box<dyn MultipartUpload>,
    state: Arc<Mutex<State>>,
    key: Path,
}

#[async_trait]
impl MultipartUpload for FaultUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (fault, key) = (lock(&self.state).next(), self.key.clone());
        let part = self.inner.put_part(data);
        Box::pin(async move { call(fault, "put a part of", key.as_ref(), part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let fault = lock(&self.state).next();
        let result = call(fault, "complete", self.key.as_ref(), self.inner.complete()).await;
        lock(&self.state).recent.insert(self.key.clone());
        result
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests;
