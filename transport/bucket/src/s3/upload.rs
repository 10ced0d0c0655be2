//! An object that is put in parts.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use aws_smithy_types::byte_stream::ByteStream;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use tokio::runtime::Handle;

use super::classify::error_of;
use super::{Checksums, S3Store, checksum, put_result};
use crate::meter::RequestKind;
use crate::store_error::{BucketError, Cause};

/// A multipart upload. What is dropped before it is completed is aborted, as far as the server can be reached.
#[derive(Debug)]
pub(super) struct S3Upload {
    upload: Arc<Upload>,
    parts: u32,
    /// Whether the server has nothing of it any more, or an object.
    ended: bool,
}

#[derive(Debug)]
struct Upload {
    store: S3Store,
    key: Path,
    id: String,
    if_absent: bool,
    done: Mutex<Vec<DonePart>>,
}

#[derive(Clone, Debug)]
struct DonePart {
    number: u32,
    e_tag: Option<String>,
    content: checksum::Part,
}

impl S3Upload {
    pub(super) async fn begin(store: S3Store, key: Path, if_absent: bool) -> Result<Self, BucketError> {
        let shared = &store.shared;
        let request = shared.request(RequestKind::Begin, &key, 0);
        let crc32c = shared.checksums == Checksums::Crc32c;
        let answer = shared
            .retrier
            .run(&request, async |_| {
                shared
                    .client
                    .create_multipart_upload()
                    .bucket(&shared.bucket)
                    .key(key.as_ref())
                    .set_checksum_algorithm(crc32c.then_some(ChecksumAlgorithm::Crc32C))
                    .set_checksum_type(crc32c.then_some(ChecksumType::Composite))
                    .send()
                    .await
                    .map_err(|error| error_of(&request, error))
            })
            .await?;
        let Some(id) = answer.upload_id else {
            let what = "it names no upload".into();
            return Err(BucketError::new(request.kind.verb(), request.place, Cause::BadAnswer { what }));
        };
        let upload = Upload { key, id, if_absent, done: Mutex::new(Vec::new()), store: store.clone() };
        Ok(Self { upload: Arc::new(upload), parts: 0, ended: false })
    }
}

impl Upload {
    async fn put_part(&self, number: u32, bytes: Bytes) -> Result<(), BucketError> {
        let shared = &self.store.shared;
        let request = shared.request(RequestKind::Part, &self.key, bytes.len() as u64);
        let checksum = shared.checksum(&bytes);
        let _permit = shared.permit().await;
        let answer = shared
            .retrier
            .run(&request, async |_| {
                shared
                    .client
                    .upload_part()
                    .bucket(&shared.bucket)
                    .key(self.key.as_ref())
                    .upload_id(&self.id)
                    .part_number(part_number(number))
                    .set_checksum_crc32_c(checksum.clone())
                    .content_length(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
                    .body(ByteStream::from(bytes.clone()))
                    .send()
                    .await
                    .map_err(|error| error_of(&request, error))
            })
            .await?;
        let content = checksum::Part::of(&bytes);
        self.lock().push(DonePart { number, e_tag: answer.e_tag, content });
        Ok(())
    }

    async fn complete(&self) -> Result<PutResult, BucketError> {
        let shared = &self.store.shared;
        let mut done = self.lock().clone();
        done.sort_unstable_by_key(|part| part.number);
        let parts = done.iter().map(|part| self.completed(part)).collect();
        let list = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = shared.request(RequestKind::Complete, &self.key, 0);
        let result = shared
            .retrier
            .run(&request, async |_| {
                shared
                    .client
                    .complete_multipart_upload()
                    .bucket(&shared.bucket)
                    .key(self.key.as_ref())
                    .upload_id(&self.id)
                    .set_if_none_match(self.if_absent.then(|| "*".to_owned()))
                    .multipart_upload(list.clone())
                    .send()
                    .await
                    .map_err(|error| error_of(&request, error))
            })
            .await;
        match result {
            Ok(answer) => Ok(put_result(answer.e_tag, answer.version_id)),
            // An upload that is gone was completed by a try whose answer was lost, or by nobody. What servers say of one differs.
            Err(error) if error.tries > 1 && !error.cause.is_passing() => {
                let contents: Vec<checksum::Part> = done.iter().map(|part| part.content).collect();
                self.store.settle_own_effect(&self.key, &contents, error).await
            }
            Err(error) => Err(error),
        }
    }

    fn completed(&self, part: &DonePart) -> CompletedPart {
        let crc32c = self.store.shared.checksums == Checksums::Crc32c;
        CompletedPart::builder()
            .part_number(part_number(part.number))
            .set_e_tag(part.e_tag.clone())
            .set_checksum_crc32_c(crc32c.then(|| checksum::header(part.content.crc)))
            .build()
    }

    async fn abort(&self) -> Result<(), BucketError> {
        let shared = &self.store.shared;
        let request = shared.request(RequestKind::Abort, &self.key, 0);
        let result = shared
            .retrier
            .run(&request, async |_| {
                let abort = shared.client.abort_multipart_upload();
                let abort = abort.bucket(&shared.bucket).key(self.key.as_ref()).upload_id(&self.id);
                abort.send().await.map_err(|error| error_of(&request, error))
            })
            .await;
        match result {
            Ok(_) => Ok(()),
            Err(error) if error.cause == Cause::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<DonePart>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn part_number(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[async_trait]
impl MultipartUpload for S3Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts += 1;
        let (upload, number) = (Arc::clone(&self.upload), self.parts);
        Box::pin(async move { Ok(upload.put_part(number, data.into()).await?) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        if self.parts == 0 {
            self.put_part(PutPayload::new()).await?;
        }
        let done = self.upload.lock().len();
        if done != usize::try_from(self.parts).unwrap_or(usize::MAX) {
            let reason = format!("only {done} of {} parts were put", self.parts);
            let place = self.upload.key.as_ref();
            return Err(BucketError::new(RequestKind::Complete.verb(), place, Cause::Local { reason }).into());
        }
        let result = self.upload.complete().await?;
        self.ended = true;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        // Not tried once more when this is dropped, whatever comes of it.
        self.ended = true;
        Ok(self.upload.abort().await?)
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let upload = Arc::clone(&self.upload);
        let abort = async move {
            if let Err(error) = upload.abort().await {
                tracing::warn!(%error, "parts of an upload that was given up stay in the bucket, and are paid for, until its rules delete them");
            }
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(abort)),
            Err(_) => tracing::debug!("an upload is dropped outside the runtime and stays in the bucket"),
        }
    }
}
