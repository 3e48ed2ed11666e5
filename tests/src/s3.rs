//! An S3-compatible server in memory, with the conditional writes that a log on an object store stands on.
//!
//! Holds: objects with metadata and ETags, `If-None-Match: *`, `If-Match`, range reads, listing in key order with
//! delimiter and continuation, multipart uploads. One lock: every request is atomic, as on S3.
//! Change here: what a store does. Not here: HTTP and faults (`serve`); anything the cloud does not use (versions, ACLs, copies).

mod faults;
mod serve;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use s3s::{
    S3, S3Request, S3Response, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, CommonPrefix,
        CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CreateBucketInput,
        CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput,
        DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput,
        DeletedObject, ETag, ETagCondition, GetObjectInput, GetObjectOutput, HeadObjectInput,
        HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, Metadata, Object,
        PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp, UploadPartInput,
        UploadPartOutput,
    },
    s3_error,
};

pub use self::faults::{Control, Faults};

/// Credentials the server takes.
pub const ACCESS_KEY: &str = "tributary";
/// Credentials the server takes.
pub const SECRET_KEY: &str = "tributary-secret";

#[derive(Clone)]
struct Stored {
    body: Bytes,
    etag: String,
    metadata: Option<Metadata>,
    modified: SystemTime,
}

#[derive(Default)]
struct Upload {
    key: (String, String),
    metadata: Option<Metadata>,
    parts: BTreeMap<i32, Bytes>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<(String, String), Stored>,
    uploads: HashMap<String, Upload>,
    versions: u64,
}

/// The store; clones share it.
#[derive(Clone, Default)]
pub struct MemoryS3 {
    state: Arc<Mutex<State>>,
    faults: Arc<Mutex<faults::Present>>,
}

impl MemoryS3 {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn faults<T>(&self, act: impl FnOnce(&mut faults::Present) -> T) -> T {
        act(&mut self.faults.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Number of objects, for tests.
    pub fn objects(&self) -> usize {
        self.with(|state| state.objects.len())
    }

    /// Number of objects with that in their key.
    pub fn objects_of(&self, part: &str) -> usize {
        self.with(|state| state.objects.keys().filter(|(_, key)| key.contains(part)).count())
    }
}

impl State {
    fn check(
        &self,
        key: &(String, String),
        if_none_match: Option<&ETagCondition>,
        if_match: Option<&ETagCondition>,
    ) -> S3Result<()> {
        let current = self.objects.get(key);
        let same = |condition: &ETagCondition| match (condition, current) {
            (_, None) => false,
            (ETagCondition::Any, Some(_)) => true,
            (ETagCondition::ETag(tag), Some(stored)) => tag.value() == stored.etag,
        };
        if if_none_match.is_some_and(same) {
            return Err(s3_error!(PreconditionFailed));
        }
        if let Some(condition) = if_match
            && !same(condition)
        {
            return Err(match current {
                None => s3_error!(NoSuchKey),
                Some(_) => s3_error!(PreconditionFailed),
            });
        }
        Ok(())
    }

    fn put(&mut self, key: (String, String), body: Bytes, metadata: Option<Metadata>) -> ETag {
        let etag = self.next_etag();
        let modified = SystemTime::now();
        let stored = Stored { body, etag: etag.value().to_owned(), metadata, modified };
        self.objects.insert(key, stored);
        etag
    }

    fn next_etag(&mut self) -> ETag {
        self.versions += 1;
        ETag::Strong(format!("{:032x}", self.versions))
    }
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let mut all = BytesMut::new();
    let mut body = body;
    while let Some(chunk) =
        body.try_next().await.map_err(|error| s3_error!(IncompleteBody, "{error}"))?
    {
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

fn blob(body: Bytes) -> StreamingBlob {
    StreamingBlob::wrap(futures::stream::once(async move { Ok::<_, std::io::Error>(body) }))
}

#[async_trait::async_trait]
impl S3 for MemoryS3 {
    async fn create_bucket(
        &self,
        _: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let body = collect(input.body).await?;
        let key = (input.bucket, input.key);
        let (checked, kept) = self.faults(|faults| faults.put(&key.1));
        let etag = self.with(|state| {
            if checked {
                state.check(&key, input.if_none_match.as_ref(), input.if_match.as_ref())?;
            }
            Ok::<_, s3s::S3Error>(if kept {
                state.put(key, body, input.metadata)
            } else {
                state.next_etag()
            })
        })?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(etag), ..Default::default() }))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let key = (input.bucket, input.key);
        let stored = self
            .with(|state| state.objects.get(&key).cloned())
            .ok_or_else(|| s3_error!(NoSuchKey))?;
        let total = stored.body.len();
        let range = match input.range {
            Some(range) => {
                let range = range.check(total as u64).map_err(|_| s3_error!(InvalidRange))?;
                Some(range.start as usize..range.end as usize)
            }
            None => None,
        };
        let content_range = range
            .as_ref()
            .map(|r| format!("bytes {}-{}/{total}", r.start, r.end.saturating_sub(1)));
        let body = range.map_or(stored.body.clone(), |range| stored.body.slice(range));
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(body.len() as i64),
            content_range,
            e_tag: Some(ETag::Strong(stored.etag)),
            last_modified: Some(Timestamp::from(stored.modified)),
            metadata: stored.metadata,
            body: Some(blob(body)),
            ..Default::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let key = (request.input.bucket, request.input.key);
        let stored = self
            .with(|state| state.objects.get(&key).cloned())
            .ok_or_else(|| s3_error!(NoSuchKey))?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(stored.body.len() as i64),
            e_tag: Some(ETag::Strong(stored.etag)),
            last_modified: Some(Timestamp::from(stored.modified)),
            metadata: stored.metadata,
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let key = (request.input.bucket, request.input.key);
        self.with(|state| state.objects.remove(&key));
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let bucket = request.input.bucket;
        let deleted = self.with(|state| {
            request
                .input
                .delete
                .objects
                .into_iter()
                .map(|object| {
                    state.objects.remove(&(bucket.clone(), object.key.clone()));
                    DeletedObject { key: Some(object.key), ..Default::default() }
                })
                .collect()
        });
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..Default::default() }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input
            .continuation_token
            .clone()
            .or_else(|| input.start_after.clone())
            .unwrap_or_default();
        let max = input.max_keys.unwrap_or(1000).clamp(1, 1000) as usize;
        let mut contents = Vec::new();
        let mut prefixes: Vec<String> = Vec::new();
        let mut last = None;
        let mut truncated = false;
        self.with(|state| {
            for ((bucket, key), stored) in &state.objects {
                if *bucket != input.bucket || !key.starts_with(&prefix) || *key <= after {
                    continue;
                }
                let rest = &key[prefix.len()..];
                let folded = input.delimiter.as_deref().and_then(|d| {
                    rest.find(d).map(|at| format!("{prefix}{}", &rest[..at + d.len()]))
                });
                if let Some(folded) = &folded
                    && (prefixes.last() == Some(folded) || after.starts_with(folded.as_str()))
                {
                    last = Some(key.clone());
                    continue;
                }
                if contents.len() + prefixes.len() == max {
                    truncated = true;
                    break;
                }
                last = Some(key.clone());
                match folded {
                    Some(folded) => prefixes.push(folded),
                    None => contents.push(Object {
                        key: Some(key.clone()),
                        size: Some(stored.body.len() as i64),
                        e_tag: Some(ETag::Strong(stored.etag.clone())),
                        last_modified: Some(Timestamp::from(stored.modified)),
                        ..Default::default()
                    }),
                }
            }
        });
        let common: Vec<_> =
            prefixes.into_iter().map(|p| CommonPrefix { prefix: Some(p) }).collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            key_count: Some((contents.len() + common.len()) as i32),
            is_truncated: Some(truncated),
            next_continuation_token: truncated.then_some(last).flatten(),
            contents: Some(contents),
            common_prefixes: Some(common),
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        let id = self.with(|state| {
            state.versions += 1;
            let id = format!("upload-{}", state.versions);
            let key = (input.bucket.clone(), input.key.clone());
            state.uploads.insert(
                id.clone(),
                Upload { key, metadata: input.metadata, parts: BTreeMap::new() },
            );
            id
        });
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let body = collect(input.body).await?;
        let etag = format!("{:032x}", u64::from(fnv(&body)));
        self.with(|state| {
            let upload =
                state.uploads.get_mut(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
            upload.parts.insert(input.part_number, body);
            Ok::<_, s3s::S3Error>(())
        })?;
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(ETag::Strong(etag)),
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let (checked, _) = self.faults(|faults| faults.put(&input.key));
        let etag = self.with(|state| {
            let key = (input.bucket.clone(), input.key.clone());
            if checked {
                state.check(&key, input.if_none_match.as_ref(), input.if_match.as_ref())?;
            }
            let upload = state
                .uploads
                .remove(&input.upload_id)
                .filter(|upload| upload.key == key)
                .ok_or_else(|| s3_error!(NoSuchUpload))?;
            let mut body = BytesMut::new();
            upload.parts.values().for_each(|part| body.extend_from_slice(part));
            Ok::<_, s3s::S3Error>(state.put(key, body.freeze(), upload.metadata))
        })?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.with(|state| state.uploads.remove(&request.input.upload_id));
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

/// Part tags only need to differ when the parts do.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
