//! A client that tries again, as whoever writes a group does, and judges by content what a lost answer left.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, Result as StoreResult,
};

use crate::probe::{ProbeReport, probe};
use crate::put_file::put_file;
use crate::s3::IfAbsent;
use crate::store_error::{BucketError, Cause};

/// Uses a folder of a backend.
#[derive(Debug)]
pub struct Client {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    tries: u32,
}

type Result<T> = std::result::Result<T, BucketError>;

impl Client {
    pub(super) fn new(store: Arc<dyn ObjectStore>, folder: Path, tries: u32) -> Self {
        Self { store, folder, tries }
    }

    pub(super) fn key(&self, name: &str) -> Path {
        Path::parse(format!("{}/{name}", self.folder)).expect("a name of the suite")
    }

    /// Makes a call until its error is none that passes.
    async fn tried<T, F: Future<Output = Result<T>>>(&self, mut call: impl FnMut() -> F) -> Result<T> {
        let mut failed = 0;
        loop {
            match call().await {
                Err(mut error) => {
                    failed += 1;
                    error.tries = failed;
                    if failed >= self.tries || !error.cause.is_passing() {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    /// A put that met the effect of its own earlier try has put.
    async fn settled(&self, key: &Path, content: &Bytes, result: Result<()>) -> Result<()> {
        match result {
            Err(error) if error.cause == Cause::Exists && error.tries > 1 => {
                if self.get(key).await? == *content { Ok(()) } else { Err(error) }
            }
            result => result,
        }
    }

    pub(super) async fn put(&self, key: &Path, content: Bytes, mode: PutMode) -> Result<()> {
        let put = async || {
            let options = PutOptions::from(mode.clone());
            named("put", key, self.store.put_opts(key, content.clone().into(), options).await).map(drop)
        };
        let result = self.tried(put).await;
        self.settled(key, &content, result).await
    }

    pub(super) async fn put_file(
        &self,
        key: &Path,
        file: &Arc<File>,
        bytes: u64,
        content: &Bytes,
    ) -> Result<()> {
        let put = async || put_file(&*self.store, key, file, bytes, PutMode::Create).await.map(drop);
        let result = self.tried(put).await;
        self.settled(key, content, result).await
    }

    pub(super) async fn put_in_parts(&self, key: &Path, content: Bytes) -> Result<()> {
        let put = async || {
            let mut upload = named("begin", key, self.store.put_multipart_opts(key, if_absent()).await)?;
            let mut result = upload.put_part(content.clone().into()).await;
            if result.is_ok() {
                result = upload.complete().await.map(drop);
            }
            if result.is_err() {
                upload.abort().await.expect("aborted");
            }
            named("put in parts", key, result)
        };
        let result = self.tried(put).await;
        self.settled(key, &content, result).await
    }

    pub(super) async fn begin_upload(&self, key: &Path) -> Box<dyn MultipartUpload> {
        let begin = async || named("begin", key, self.store.put_multipart_opts(key, if_absent()).await);
        self.tried(begin).await.expect("begun")
    }

    pub(super) async fn get(&self, key: &Path) -> Result<Bytes> {
        self.get_with(key, GetOptions::default()).await
    }

    pub(super) async fn get_range(&self, key: &Path, range: GetRange) -> Result<Bytes> {
        self.get_with(key, GetOptions { range: Some(range), ..GetOptions::default() }).await
    }

    async fn get_with(&self, key: &Path, options: GetOptions) -> Result<Bytes> {
        let get = async || {
            let found = named("get", key, self.store.get_opts(key, options.clone()).await)?;
            named("get", key, found.bytes().await)
        };
        self.tried(get).await
    }

    pub(super) async fn head(&self, key: &Path) -> Result<ObjectMeta> {
        self.tried(async || named("head", key, self.store.head(key).await)).await
    }

    pub(super) async fn delete(&self, key: &Path) -> Result<()> {
        match self.tried(async || named("delete", key, self.store.delete(key).await)).await {
            Err(error) if error.cause == Cause::NotFound => Ok(()),
            result => result,
        }
    }

    /// Names below the folder, without it, in order.
    pub(super) async fn list(&self, prefix: Option<&str>, offset: Option<&str>) -> Vec<String> {
        let prefix = prefix.map_or_else(|| self.folder.clone(), |prefix| self.key(prefix));
        let list = async || {
            let objects = match offset {
                Some(offset) => self.store.list_with_offset(Some(&prefix), &self.key(offset)),
                None => self.store.list(Some(&prefix)),
            };
            let metas: StoreResult<Vec<ObjectMeta>> = objects.try_collect().await;
            named("list", &prefix, metas)
        };
        let metas = self.tried(list).await.expect("listed");
        let mut names: Vec<String> = metas.iter().map(|meta| self.name(&meta.location)).collect();
        names.sort_unstable();
        names
    }

    /// Folders and objects directly below the folder, in order.
    pub(super) async fn level(&self) -> (Vec<String>, Vec<String>) {
        let folder = &self.folder;
        let list = async || named("list", folder, self.store.list_with_delimiter(Some(folder)).await);
        let level = self.tried(list).await.expect("listed");
        let mut folders: Vec<String> = level.common_prefixes.iter().map(|path| self.name(path)).collect();
        let mut objects: Vec<String> = level.objects.iter().map(|meta| self.name(&meta.location)).collect();
        folders.sort_unstable();
        objects.sort_unstable();
        (folders, objects)
    }

    fn name(&self, path: &Path) -> String {
        let rest = path.as_ref().strip_prefix(self.folder.as_ref()).expect("below the folder");
        rest.trim_start_matches('/').to_owned()
    }

    pub(super) async fn probe(&self) -> ProbeReport {
        let store = PrefixStore::new(Arc::clone(&self.store), self.folder.clone());
        probe(&store).await.expect("probed")
    }
}

fn if_absent() -> PutMultipartOptions {
    let mut options = PutMultipartOptions::default();
    options.extensions.insert(IfAbsent);
    options
}

fn named<T>(operation: &'static str, key: &Path, result: StoreResult<T>) -> Result<T> {
    result.map_err(|error| BucketError::from_store_error(operation, key.as_ref(), error))
}
