//! Large packs go up in parts: several at once, each tried again alone. A pack in memory comes in, one object goes out or
//! none: an upload that fails, or whose task is dropped, is ended at the server, and one that could not be ended is ended
//! before the next one begins. Parts are slices of the pack: no further memory.
//!
//! Only where the server is known to honour `If-None-Match` on the completion, which is asked once with a probe object,
//! and only for packs: their names are drawn at random, so that no two writers ever complete the same one.

use std::sync::Mutex;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumType, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use farsite_model::StoreTime;
use futures::future::try_join_all;
use tokio::time::timeout;

use super::S3;
use super::answer::Answer;
use super::client::limits;
use super::settings::Checksums;
use crate::backend::BackendError;

/// Objects with this prefix go up in parts when they are larger than two parts.
const PACKS: &str = "packs/";
/// One object for all probes, so that a store where nothing can be deleted does not fill up with them.
const PROBE_KEY: &str = "probe/multipart";
const ABORT_LIMIT: Duration = Duration::from_secs(30);

const BEGINNING: &str = "beginning an upload of";
const SENDING: &str = "sending a part of";
const COMPLETING: &str = "completing the upload of";

/// An upload that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Begun {
    key: String,
    upload: String,
}

/// What this process knows of its server's uploads.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// Whether completions obey `If-None-Match`; asked once.
    honoured: tokio::sync::OnceCell<bool>,
    /// Begun by this process and not ended: ending them failed.
    left_over: Mutex<Vec<Begun>>,
}

/// Ends the upload when it is dropped before it was completed.
struct Guard<'s> {
    s3: &'s S3,
    begun: Option<Begun>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        let s3 = self.s3.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { s3.end(begun).await })),
            Err(_) => s3.remember(begun),
        }
    }
}

impl S3 {
    /// Whether this object goes up in parts.
    pub(super) async fn in_parts(&self, key: &str, bytes: usize) -> bool {
        self.settings.multipart
            && key.starts_with(PACKS)
            && bytes > 2 * self.settings.part_bytes
            && self.completion_is_conditional().await.unwrap_or(false)
    }

    /// Completes an upload over a probe object that exists: a server that honours the condition refuses. A question that
    /// stays without an answer is asked again next time.
    pub(super) async fn completion_is_conditional(&self) -> Result<bool, BackendError> {
        self.uploads.honoured.get_or_try_init(|| self.probe_completion()).await.copied()
    }

    async fn probe_completion(&self) -> Result<bool, BackendError> {
        let body = Bytes::from_static(b"multipart");
        match self.put_whole("creating", PROBE_KEY, body.clone(), true).await {
            Ok(_) | Err(BackendError::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
        match self.upload_parts(PROBE_KEY, &body).await {
            Err(BackendError::Exists { .. }) => Ok(true),
            // It was overwritten; or the server or the credentials know no uploads in parts.
            Ok(_) | Err(BackendError::Denied { .. } | BackendError::Other { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates an object in parts; as [`crate::backend::Backend::create`].
    pub(super) async fn upload(&self, key: &str, bytes: &Bytes) -> Result<StoreTime, BackendError> {
        self.end_left_over().await;
        // What one upload may take in all, whatever its parts do: nobody is alive behind one that is older.
        let limit = self.settings.operation_limit(bytes.len()) * 2;
        let result = match timeout(limit, self.upload_parts(key, bytes)).await {
            Ok(result) => result,
            Err(_) => Err(self.uncertain(COMPLETING, key, format!("no end within {} s", limit.as_secs()))),
        };
        match result {
            // An upload that an earlier delivery of the same request completed is not known any more, and servers have
            // several words for that (s3s-fs: AccessDenied). The probe has shown that completing is allowed.
            Err(
                BackendError::Denied { operation: COMPLETING, why, .. }
                | BackendError::Other { operation: COMPLETING, why, .. },
            ) => Err(self.uncertain(COMPLETING, key, why)),
            Ok(written) => self.see_to_lock(key, written).await,
            Err(error) => Err(error),
        }
    }

    /// A wish for a lock is given when an upload begins, and some servers forget it until it ends (moto 5.2): it is looked
    /// for, and set where it is missing.
    async fn see_to_lock(&self, key: &str, written: StoreTime) -> Result<StoreTime, BackendError> {
        if let Some(lock) = self.settings.lock
            && self.locked(key).await?.is_none()
        {
            self.lock_until(key, super::lock::after(written, lock.span)).await?;
        }
        Ok(written)
    }

    async fn upload_parts(&self, key: &str, bytes: &Bytes) -> Result<StoreTime, BackendError> {
        let begun = self.begin(key).await?;
        let mut guard = Guard { s3: self, begun: Some(begun.clone()) };
        let size = self.settings.part_bytes;
        let parts = (0..bytes.len().div_ceil(size).max(1)).map(|index| {
            let part = bytes.slice(index * size..bytes.len().min((index + 1) * size));
            self.send_part(&begun, index as i32 + 1, part)
        });
        let result = match try_join_all(parts).await {
            Ok(parts) => self.complete(&begun, parts).await,
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) => guard.begun = None,
            Err(_) => {
                if let Some(begun) = guard.begun.take() {
                    self.end(begun).await;
                }
            }
        }
        result
    }

    async fn begin(&self, key: &str) -> Result<Begun, BackendError> {
        let mut request = self.client.create_multipart_upload().bucket(&self.bucket).key(self.object(key));
        request = request.set_checksum_algorithm(self.settings.checksums.algorithm());
        if self.settings.checksums == Checksums::Crc64Nvme {
            request = request.checksum_type(ChecksumType::FullObject);
        }
        if let Some((mode, until)) = self.retention(key).await? {
            request = request.object_lock_mode(mode).object_lock_retain_until_date(until);
        }
        let answer = request.send().await.map_err(|e| self.error(BEGINNING, key, e))?;
        let upload = answer.upload_id().ok_or_else(|| self.unsaid(BEGINNING, key, "what its id is"))?;
        Ok(Begun { key: key.to_owned(), upload: upload.to_owned() })
    }

    async fn send_part(
        &self,
        begun: &Begun,
        number: i32,
        bytes: Bytes,
    ) -> Result<CompletedPart, BackendError> {
        let _turn = self.turn().await;
        let limited = aws_sdk_s3::Config::builder().timeout_config(limits(&self.settings, bytes.len()));
        let answer = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(self.object(&begun.key))
            .upload_id(&begun.upload)
            .part_number(number)
            .set_checksum_algorithm(self.settings.checksums.algorithm())
            .body(ByteStream::from(bytes))
            .customize()
            .config_override(limited)
            .send()
            .await
            .map_err(|e| self.error(SENDING, &begun.key, e))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag)
            .set_checksum_crc32(answer.checksum_crc32)
            .set_checksum_crc64_nvme(answer.checksum_crc64_nvme)
            .set_checksum_sha256(answer.checksum_sha256)
            .build())
    }

    async fn complete(&self, begun: &Begun, parts: Vec<CompletedPart>) -> Result<StoreTime, BackendError> {
        let heard = Answer::default();
        let answer = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.object(&begun.key))
            .upload_id(&begun.upload)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .if_none_match("*")
            .customize()
            .interceptor(heard.clone())
            .send()
            .await;
        let not_known = |why| self.uncertain(COMPLETING, &begun.key, why);
        match answer.map_err(|e| self.error(COMPLETING, &begun.key, e)) {
            Ok(_) => heard.date(self).map_err(|_| not_known("the answer carried no valid Date".into())),
            Err(BackendError::Unreachable { why, .. }) if heard.may_have_arrived() => Err(not_known(why)),
            // No upload of that name: an earlier attempt may have completed it.
            Err(BackendError::Missing { .. }) => Err(not_known("the upload is gone".into())),
            Err(error) => Err(error),
        }
    }

    /// Ends an upload, or remembers that it could not be ended. One that is gone is ended.
    async fn end(&self, begun: Begun) {
        match timeout(ABORT_LIMIT, self.abort(&begun.key, &begun.upload)).await {
            Ok(Ok(())) => {}
            // Credentials that may not end uploads: the bucket's lifecycle rule and the standby do it.
            Ok(Err(BackendError::Denied { .. })) => {
                tracing::debug!(
                    key = begun.key,
                    "an upload was left behind: these credentials may not end it"
                );
            }
            Ok(Err(_)) | Err(_) => self.remember(begun),
        }
    }

    async fn abort(&self, key: &str, upload: &str) -> Result<(), BackendError> {
        let answer = self
            .client
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(self.object(key))
            .upload_id(upload)
            .send()
            .await;
        match answer.map_err(|e| self.error("ending the upload of", key, e)) {
            Ok(_) | Err(BackendError::Missing { .. }) => Ok(()),
            Err(BackendError::Uncertain { why, .. }) if why.contains("NoSuchUpload") => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn remember(&self, begun: Begun) {
        self.uploads.left_over.lock().expect("no holder of this lock panics").push(begun);
    }

    async fn end_left_over(&self) {
        let left =
            std::mem::take(&mut *self.uploads.left_over.lock().expect("no holder of this lock panics"));
        for begun in left {
            self.end(begun).await;
        }
    }

    /// Ends uploads below this store's prefix that were begun longer ago than `older_than`, by the store's own clock: those
    /// of agents that were killed. Says how many.
    pub(super) async fn end_abandoned(&self, older_than: Duration) -> Result<usize, BackendError> {
        const LISTING: &str = "listing the uploads of";
        let now = self.ask_time().await?;
        let mut ended = 0;
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let answer = self
                .client
                .list_multipart_uploads()
                .bucket(&self.bucket)
                .prefix(self.object(PACKS))
                .set_key_marker(key_marker.take())
                .set_upload_id_marker(id_marker.take())
                .send()
                .await;
            if let Err(error) = &answer
                && error.raw_response().is_some_and(|answer| answer.status().as_u16() == 501)
            {
                tracing::debug!(
                    "this server cannot list uploads: what was left behind stays for its own rules"
                );
                return Ok(ended);
            }
            let answer = answer.map_err(|e| self.error(LISTING, PACKS, e))?;
            for upload in answer.uploads() {
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
                let Some(key) = key.strip_prefix(self.prefix.as_str()) else { continue };
                let begun = super::answer::stamp(upload.initiated())
                    .ok_or_else(|| self.unsaid(LISTING, key, "when it was begun"))?;
                if now.0.duration_since(begun.0).unsigned_abs() >= older_than && begun.0 < now.0 {
                    self.abort(key, id).await?;
                    ended += 1;
                }
            }
            if answer.is_truncated() != Some(true) {
                return Ok(ended);
            }
            key_marker = answer.next_key_marker().map(str::to_owned);
            id_marker = answer.next_upload_id_marker().map(str::to_owned);
            if key_marker.is_none() {
                return Err(self.unsaid(LISTING, PACKS, "how the listing goes on"));
            }
        }
    }
}
