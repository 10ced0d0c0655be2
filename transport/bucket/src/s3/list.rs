//! Lists of objects, page by page.

use std::sync::Arc;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::Object;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::{DELIMITER, Path};
use object_store::{ListResult, ObjectMeta, Result};

use super::classify::error_of;
use super::{Shared, body};
use crate::meter::RequestKind;
use crate::retry::Request;
use crate::store_error::{BucketError, Cause};

/// What is asked for.
#[derive(Clone, Debug)]
struct Query {
    /// Empty, or ends with a slash.
    prefix: String,
    /// Names behind this one.
    after: Option<String>,
    /// Whether what has further slashes is put together.
    one_level: bool,
}

/// Where a list goes on.
enum Next {
    Page(Option<String>),
    End,
}

/// All objects below `prefix`, those behind `after` if it is given.
pub(super) fn objects(
    shared: Arc<Shared>,
    prefix: Option<&Path>,
    after: Option<&Path>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let query =
        Query { prefix: folder(prefix), after: after.map(|after| after.to_string()), one_level: false };
    let offset = after.cloned();
    let pages = stream::try_unfold(Next::Page(None), move |next| {
        let (shared, query) = (Arc::clone(&shared), query.clone());
        async move {
            let Next::Page(token) = next else { return Ok::<_, BucketError>(None) };
            let (page, next) = page(&shared, &query, token).await?;
            let objects: Vec<_> = page.contents.unwrap_or_default().into_iter().filter_map(meta).collect();
            Ok(Some((stream::iter(objects.into_iter().map(Ok::<_, BucketError>)), next)))
        }
    });
    // Not every server obeys `start-after`.
    let behind = move |meta: &ObjectMeta| offset.as_ref().is_none_or(|offset| meta.location > *offset);
    pages
        .try_flatten()
        .map_err(Into::into)
        .try_filter(move |meta| futures::future::ready(behind(meta)))
        .boxed()
}

/// What is directly below `prefix`.
pub(super) async fn level(shared: &Shared, prefix: Option<&Path>) -> Result<ListResult, BucketError> {
    let query = Query { prefix: folder(prefix), after: None, one_level: true };
    let mut result =
        ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() };
    let mut next = Next::Page(None);
    while let Next::Page(token) = next {
        let (page, following) = page(shared, &query, token).await?;
        let prefixes = page.common_prefixes.unwrap_or_default().into_iter();
        let parsed = prefixes.filter_map(|prefix| Path::parse(prefix.prefix?).ok());
        result.common_prefixes.extend(parsed);
        result.objects.extend(page.contents.unwrap_or_default().into_iter().filter_map(meta));
        next = following;
    }
    Ok(result)
}

/// One page, and where the next one begins.
async fn page(
    shared: &Shared,
    query: &Query,
    token: Option<String>,
) -> Result<(ListObjectsV2Output, Next), BucketError> {
    let place = format!("s3://{}/{}", shared.bucket, query.prefix);
    let request = Request { kind: RequestKind::List, place, bytes: 0 };
    let page = shared
        .retrier
        .run(&request, async |_| {
            shared
                .client
                .list_objects_v2()
                .bucket(&shared.bucket)
                .prefix(&query.prefix)
                .set_delimiter(query.one_level.then(|| DELIMITER.to_owned()))
                .set_start_after(query.after.clone())
                .set_continuation_token(token.clone())
                .send()
                .await
                .map_err(|error| error_of(&request, error))
        })
        .await?;
    let next = match (page.is_truncated.unwrap_or(false), page.next_continuation_token.clone()) {
        (false, _) => Next::End,
        (true, Some(next)) if Some(&next) != token.as_ref() => Next::Page(Some(next)),
        (true, _) => {
            let what = "a page says that there are more, but not where they begin".into();
            return Err(BucketError::new(request.kind.verb(), request.place, Cause::BadAnswer { what }));
        }
    };
    Ok((page, next))
}

fn folder(prefix: Option<&Path>) -> String {
    let prefix = prefix.map(Path::as_ref).unwrap_or_default();
    if prefix.is_empty() { String::new() } else { format!("{prefix}{DELIMITER}") }
}

/// None for the markers that some tools make of folders, and for names that the trait cannot have: nothing of ours is called so.
fn meta(object: Object) -> Option<ObjectMeta> {
    let key = object.key?;
    let location = match Path::parse(&key) {
        Ok(location) if location.as_ref() == key => location,
        _ => {
            tracing::debug!(key, "an object with a foreign name is not listed");
            return None;
        }
    };
    let size = u64::try_from(object.size.unwrap_or(0)).unwrap_or(0);
    let last_modified = body::time(object.last_modified);
    Some(ObjectMeta { location, last_modified, size, e_tag: object.e_tag, version: None })
}
