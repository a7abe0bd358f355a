//! A replica store in an S3 bucket, through aws-sdk-s3. Needs PUT with `If-None-Match: *`, GET, HEAD and listing;
//! nothing here uses `If-Match` (Ceph RGW 16.2 refuses correct ones). What a provider may have beyond that (uploads in
//! parts whose completion is conditional, Object Lock, checksums) is asked for or said in the URL, and never needed.
//!
//! What must hold: every call ends within a time that grows only with the bytes it moves, and ends at once when it is
//! dropped; after a failed write the error says whether it may have taken effect.

mod answer;
mod ask;
mod client;
mod failure;
mod lock;
mod multipart;
mod read;
pub mod settings;

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use farsite_model::StoreTime;
use tokio::sync::{Semaphore, SemaphorePermit};

use self::answer::{Answer, stamp};
use self::multipart::Uploads;
use self::settings::Settings;
use super::provider::Provider;
use super::{Backend, BackendError, Listed, Object, S3Access};

/// Parts of uploads and pieces of ranges that are under way at once, over all callers.
const PIECES_AT_ONCE: usize = 8;

#[derive(Debug, Clone)]
pub struct S3 {
    client: Client,
    bucket: String,
    /// Empty, or ending in `/`.
    prefix: String,
    endpoint: String,
    settings: Arc<Settings>,
    uploads: Arc<Uploads>,
    turns: Arc<Semaphore>,
    /// The store's time as last heard, and when.
    heard: Arc<Mutex<Option<(Instant, StoreTime)>>>,
}

impl S3 {
    /// With the usual settings. `prefix` may be empty. No request is made yet.
    pub fn new(bucket: &str, prefix: &str, access: &S3Access) -> Self {
        Self::with(bucket, prefix, access, Settings::default())
    }

    pub fn with(bucket: &str, prefix: &str, access: &S3Access, settings: Settings) -> Self {
        let prefix = prefix.trim_matches('/');
        Self {
            client: client::client(bucket, access, &settings),
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            endpoint: access.endpoint.clone().unwrap_or_else(|| "AWS".into()),
            settings: Arc::new(settings),
            uploads: Arc::default(),
            turns: Arc::new(Semaphore::new(PIECES_AT_ONCE)),
            heard: Arc::default(),
        }
    }

    fn object(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn description(&self) -> String {
        format!("s3://{}/{} at {}", self.bucket, self.prefix.trim_end_matches('/'), self.endpoint)
    }

    /// Waits for one of the places for pieces.
    async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("this semaphore is never closed")
    }

    async fn ask_time(&self) -> Result<StoreTime, BackendError> {
        let heard = Answer::default();
        let answer = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.object("format"))
            .customize()
            .interceptor(heard.clone())
            .send()
            .await;
        match answer.map_err(|e| self.error("asking the time of", "format", e)) {
            // A store that is not initialised yet tells the time as well.
            Ok(_) | Err(BackendError::Missing { .. }) => Ok(self.told(heard.date(self)?)),
            Err(error) => Err(error),
        }
    }

    /// Notes the store's time.
    fn told(&self, time: StoreTime) -> StoreTime {
        *self.heard.lock().expect("no holder of this lock panics") = Some((Instant::now(), time));
        time
    }

    /// Writes an object with one request.
    async fn put_whole(
        &self,
        operation: &'static str,
        key: &str,
        bytes: Bytes,
        only_new: bool,
    ) -> Result<StoreTime, BackendError> {
        let heard = Answer::default();
        let limits = client::limits(&self.settings, bytes.len());
        let mut request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.object(key))
            .set_checksum_algorithm(self.settings.checksums.algorithm())
            .body(ByteStream::from(bytes));
        if only_new {
            request = request.if_none_match("*");
        }
        if let Some((mode, until)) = self.retention(key).await? {
            // The protocol demands a checksum with a lock, whatever the URL says.
            let algorithm = self.settings.checksums.algorithm();
            request = request
                .object_lock_mode(mode)
                .object_lock_retain_until_date(until)
                .checksum_algorithm(algorithm.unwrap_or(aws_sdk_s3::types::ChecksumAlgorithm::Crc32));
        }
        let limited = aws_sdk_s3::Config::builder().timeout_config(limits);
        let answer = request.customize().config_override(limited).interceptor(heard.clone()).send().await;
        let not_known = |why| self.uncertain(operation, key, why);
        match answer.map_err(|e| self.error(operation, key, e)) {
            // The write took effect, and when is not known: the caller reads back.
            Ok(_) => match heard.date(self) {
                Ok(time) => Ok(self.told(time)),
                Err(_) => Err(not_known("the answer carried no valid Date".into())),
            },
            // The SDK tried more than once, and an earlier attempt may have arrived.
            Err(BackendError::Unreachable { why, .. }) if heard.may_have_arrived() => Err(not_known(why)),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Backend for S3 {
    fn describe(&self) -> String {
        self.description()
    }

    fn clock_grain_ms(&self) -> u64 {
        1000
    }

    async fn time(&self) -> Result<StoreTime, BackendError> {
        self.ask_time().await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<StoreTime, BackendError> {
        if self.in_parts(key, bytes.len()).await {
            return self.upload(key, &bytes).await;
        }
        self.put_whole("creating", key, bytes, true).await
    }

    async fn get(&self, key: &str) -> Result<Object, BackendError> {
        self.read(key, None).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.read_range(key, range).await
    }

    async fn size(&self, key: &str) -> Result<u64, BackendError> {
        let answer = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.object(key))
            .send()
            .await
            .map_err(|e| self.error("looking at", key, e))?;
        answer
            .content_length()
            .and_then(|bytes| u64::try_from(bytes).ok())
            .ok_or_else(|| self.unsaid("looking at", key, "how long the object is"))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, BackendError> {
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let answer = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(self.object(prefix))
                .set_start_after(after.map(|after| self.object(after)))
                .set_continuation_token(token.take())
                .send()
                .await
                .map_err(|e| self.error("listing", prefix, e))?;
            for object in answer.contents() {
                let Some(key) = object.key().and_then(|key| key.strip_prefix(self.prefix.as_str())) else {
                    continue;
                };
                // Some servers ignore start-after; the promise of this trait is kept here.
                if after.is_none_or(|after| key > after) {
                    let written = stamp(object.last_modified());
                    found.push(Listed {
                        key: key.to_owned(),
                        size_bytes: object.size().unwrap_or(0).max(0) as u64,
                        written: written.ok_or_else(|| self.unsaid("listing", key, "when it was written"))?,
                    });
                }
            }
            if answer.is_truncated() != Some(true) {
                break;
            }
            // Half a listing would hide entries of a ledger.
            match answer.next_continuation_token() {
                Some(next) => token = Some(next.to_owned()),
                None => return Err(self.unsaid("listing", prefix, "how the listing goes on")),
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.client
            .delete_object()
            .bucket(&self.bucket)
            .key(self.object(key))
            .send()
            .await
            .map(|_| ())
            .map_err(|e| self.error("deleting", key, e))
    }

    async fn try_overwrite(&self, key: &str, bytes: Bytes) -> Result<(), BackendError> {
        self.put_whole("overwriting", key, bytes, false).await.map(|_| ())
    }

    async fn provider(&self) -> Result<Option<Provider>, BackendError> {
        self.ask_provider().await.map(Some)
    }

    async fn locked_until(&self, key: &str) -> Result<Option<StoreTime>, BackendError> {
        Ok(self.locked(key).await?.map(|(_, until)| until))
    }

    async fn extend_lock(&self, key: &str, until: StoreTime) -> Result<(), BackendError> {
        self.lock_until(key, until).await
    }

    async fn end_abandoned_uploads(&self, older_than: Duration) -> Result<usize, BackendError> {
        self.end_abandoned(older_than).await
    }
}
