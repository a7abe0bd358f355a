//! A replica store in an S3 bucket, through aws-sdk-s3. Needs PUT with `If-None-Match: *`, GET, HEAD and listing;
//! nothing here uses `If-Match` (Ceph RGW 16.2 refuses correct ones).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
    FinalizerInterceptorContextRef,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use bytes::Bytes;
use farsite_model::StoreTime;
use jiff::Timestamp;

use super::{Backend, BackendError, Listed, Object, S3Access};

/// No answer within this time is no answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct S3 {
    client: Client,
    bucket: String,
    /// Empty, or ending in `/`.
    prefix: String,
    endpoint: String,
}

impl S3 {
    /// `prefix` may be empty. No request is made yet.
    pub fn new(bucket: &str, prefix: &str, access: &S3Access) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
                aws_smithy_http_client::tls::rustls_provider::CryptoMode::AwsLc,
            ))
            .build_https();
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(access.region.clone()))
            .credentials_provider(Credentials::new(
                access.access_key.clone(),
                access.secret_key.clone(),
                access.session_token.clone(),
                None,
                "farsite",
            ))
            .force_path_style(access.path_style)
            // Providers differ in which checksums they know; every byte is authenticated by Farsite itself.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(
                RetryConfig::standard().with_max_attempts(4).with_initial_backoff(Duration::from_millis(200)),
            )
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                    .build(),
            )
            .http_client(http);
        if let Some(endpoint) = &access.endpoint {
            config = config.endpoint_url(endpoint);
        }
        let prefix = prefix.trim_matches('/');
        Self {
            client: Client::from_conf(config.build()),
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            endpoint: access.endpoint.clone().unwrap_or_else(|| "AWS".into()),
        }
    }

    fn object(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn error<E: std::error::Error + Send + Sync + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        error: SdkError<E, HttpResponse>,
    ) -> BackendError {
        let (store, key) = (self.describe(), key.to_owned());
        let status = error.raw_response().map(|r| r.status().as_u16());
        let why = in_words(&error);
        match (status, &error) {
            (Some(404), _) if why.contains("NoSuchBucket") => BackendError::Unreachable {
                store,
                operation,
                key,
                why: "there is no such bucket, or these credentials may not know of it".into(),
            },
            (Some(416), _) => BackendError::Unreadable { store, key, why: "the object is truncated".into() },
            (Some(404), _) => BackendError::Missing { store, key },
            (Some(412 | 409), _) => BackendError::Exists { store, key },
            (Some(401 | 403), _) => BackendError::Denied { store, operation, key, why },
            (Some(507), _) => BackendError::Full { store, key, why },
            (_, SdkError::ConstructionFailure(_)) => BackendError::Other { store, operation, key, why },
            (_, SdkError::DispatchFailure(_)) if connect_failed(&why) => {
                BackendError::Unreachable { store, operation, key, why }
            }
            (None | Some(500..=599), _) => BackendError::Uncertain { store, operation, key, why },
            _ => BackendError::Other { store, operation, key, why },
        }
    }

    async fn put(
        &self,
        operation: &'static str,
        key: &str,
        bytes: Bytes,
        only_new: bool,
    ) -> Result<StoreTime, BackendError> {
        let date = DateOf::default();
        let limit = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(write_limit(bytes.len()))
            .build();
        let mut request =
            self.client.put_object().bucket(&self.bucket).key(self.object(key)).body(ByteStream::from(bytes));
        if only_new {
            request = request.if_none_match("*");
        }
        let limited = aws_sdk_s3::Config::builder().timeout_config(limit);
        let answer = request.customize().config_override(limited).interceptor(date.clone()).send().await;
        let not_known =
            |why| BackendError::Uncertain { store: self.describe(), operation, key: key.to_owned(), why };
        match answer.map_err(|e| self.error(operation, key, e)) {
            // The write took effect, and when is not known: the caller reads back.
            Ok(_) => date.get(self).map_err(|_| not_known("the answer carried no valid Date".into())),
            // The SDK tried more than once, and an earlier attempt may have arrived.
            Err(BackendError::Unreachable { why, .. }) if date.attempts() > 1 && date.sent() => {
                Err(not_known(why))
            }
            Err(error) => Err(error),
        }
    }
}

/// The whole chain of causes in one line; the SDK's own Display says only "dispatch failure".
fn in_words<E: std::error::Error + 'static>(error: &SdkError<E, HttpResponse>) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let line = inner.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = inner.source();
    }
    text
}

/// No connection was made, so nothing was sent. A connection that was cut says "connection closed": that one was sent.
fn connect_failed(why: &str) -> bool {
    why.contains("client error (Connect)") || why.contains("HTTP connect timeout")
}

/// How often a body that was cut in the middle is asked for again; the SDK retries only what fails before it.
const BODY_ATTEMPTS: usize = 3;

/// Reads the `Date` of the answer to one request.
#[derive(Debug, Clone, Default)]
struct DateOf {
    date: Arc<Mutex<Option<StoreTime>>>,
    attempts: Arc<AtomicU32>,
    /// An attempt failed behind the connection: its request may have arrived.
    sent: Arc<AtomicBool>,
}

impl DateOf {
    fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }
    fn sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }
    fn get(&self, store: &S3) -> Result<StoreTime, BackendError> {
        self.date.lock().expect("no holder of this lock panics").ok_or_else(|| BackendError::Other {
            store: store.describe(),
            operation: "reading the Date of",
            key: String::new(),
            why: "the answer carried no valid Date header, so the store's clock is not known".into(),
        })
    }
}

impl Intercept for DateOf {
    fn name(&self) -> &'static str {
        "DateOf"
    }
    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), aws_smithy_runtime_api::box_error::BoxError> {
        let date = context.response().headers().get("date").and_then(parse_http_date);
        *self.date.lock().expect("no holder of this lock panics") = date;
        // An answer came, whatever it says.
        self.sent.store(true, Ordering::Relaxed);
        Ok(())
    }
    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), aws_smithy_runtime_api::box_error::BoxError> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), aws_smithy_runtime_api::box_error::BoxError> {
        if let Some(Err(error)) = context.output_or_error() {
            let why = match error.as_connector_error() {
                Some(error) => chain(error),
                None => String::new(),
            };
            if !connect_failed(&why) {
                self.sent.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// RFC 9110 `IMF-fixdate`, which is RFC 2822's form with `GMT`.
fn parse_http_date(text: &str) -> Option<StoreTime> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| StoreTime(zoned.timestamp()))
}

fn stamp(time: Option<&aws_sdk_s3::primitives::DateTime>) -> Option<StoreTime> {
    Timestamp::from_second(time?.secs()).ok().map(StoreTime)
}

/// How long one attempt to write so many bytes may take: what a link of 256 kbit/s needs, beyond the usual limit. A link
/// on which nothing moves any more is noticed much earlier, by the SDK's own watch over the stream.
fn write_limit(bytes: usize) -> Duration {
    ATTEMPT_TIMEOUT + Duration::from_secs(bytes as u64 / (32 << 10))
}

#[async_trait]
impl Backend for S3 {
    fn describe(&self) -> String {
        format!("s3://{}/{} at {}", self.bucket, self.prefix.trim_end_matches('/'), self.endpoint)
    }

    fn clock_grain_ms(&self) -> u64 {
        1000
    }

    async fn time(&self) -> Result<StoreTime, BackendError> {
        let date = DateOf::default();
        let answer = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.object("format"))
            .customize()
            .interceptor(date.clone())
            .send()
            .await;
        match answer.map_err(|e| self.error("asking the time of", "format", e)) {
            // A store that is not initialised yet tells the time as well.
            Ok(_) | Err(BackendError::Missing { .. }) => date.get(self),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<StoreTime, BackendError> {
        self.put("creating", key, bytes, true).await
    }

    async fn get(&self, key: &str) -> Result<Object, BackendError> {
        self.body(key, None).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let asked = format!("bytes={}-{}", range.start, range.end - 1);
        let bytes = self.body(key, Some(asked)).await?.bytes;
        if bytes.len() as u64 != range.end - range.start {
            return Err(BackendError::Unreadable {
                store: self.describe(),
                key: key.to_owned(),
                why: format!(
                    "asked for bytes {}..{} and got {}: the object is truncated",
                    range.start,
                    range.end,
                    bytes.len()
                ),
            });
        }
        Ok(bytes)
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
        self.put("overwriting", key, bytes, false).await.map(|_| ())
    }
}

impl S3 {
    fn unsaid(&self, operation: &'static str, key: &str, what: &str) -> BackendError {
        BackendError::Other {
            store: self.describe(),
            operation,
            key: key.to_owned(),
            why: format!("the answer does not say {what}"),
        }
    }

    /// Reads an object or a range of it. A connection that is cut is no damage: it is asked again, and then said.
    async fn body(&self, key: &str, range: Option<String>) -> Result<Object, BackendError> {
        let mut why = String::new();
        for _ in 0..BODY_ATTEMPTS {
            let answer = self
                .client
                .get_object()
                .bucket(&self.bucket)
                .key(self.object(key))
                .set_range(range.clone())
                .send()
                .await
                .map_err(|e| self.error("reading", key, e))?;
            // A time that was made up would make a commit or an epoch look old, and an RPO better than the truth.
            let written = stamp(answer.last_modified())
                .ok_or_else(|| self.unsaid("reading", key, "when it was written"))?;
            match answer.body.collect().await {
                Ok(bytes) => return Ok(Object { bytes: bytes.into_bytes(), written }),
                Err(error) => why = format!("the connection was cut: {}", chain(&error)),
            }
        }
        Err(BackendError::Uncertain {
            store: self.describe(),
            operation: "reading",
            key: key.to_owned(),
            why,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_date_is_read() {
        let time = parse_http_date("Tue, 24 Nov 2026 01:54:37 GMT").unwrap();
        assert_eq!(time.0.to_string(), "2026-11-24T01:54:37Z");
        assert!(parse_http_date("yesterday").is_none());
    }

    #[test]
    fn a_pack_may_take_as_long_as_a_slow_link_needs() {
        assert_eq!(write_limit(1000), ATTEMPT_TIMEOUT);
        assert!(write_limit(32 << 20) > Duration::from_secs(1000));
    }

    #[test]
    fn a_time_that_was_not_said_is_not_made_up() {
        assert_eq!(stamp(None), None);
    }
}
