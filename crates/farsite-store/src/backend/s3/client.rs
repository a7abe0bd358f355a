//! The SDK's client as Farsite uses it: an address and credentials come in, a client with bounded retries and time limits
//! goes out. Retries are the SDK's own (exponential, full jitter, and a budget that ends a storm of them); what it does
//! not count as worth a retry and S3 servers mean so is added here.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction, RetryConfig, RetryPartition};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::retries::classifiers::RetryClassifierPriority;

use super::settings::{Checksums, Settings};
use crate::backend::S3Access;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The first attempt included.
const ATTEMPTS: u32 = 4;
/// The first pause is drawn between nothing and this; each further one doubles the range.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

pub(super) fn client(bucket: &str, access: &S3Access, settings: &Settings) -> Client {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
            aws_smithy_http_client::tls::rustls_provider::CryptoMode::AwsLc,
        ))
        .build_https();
    let (ask, compare) = match settings.checksums {
        Checksums::WhenRequired => {
            (RequestChecksumCalculation::WhenRequired, ResponseChecksumValidation::WhenRequired)
        }
        _ => (RequestChecksumCalculation::WhenSupported, ResponseChecksumValidation::WhenSupported),
    };
    // One budget for retries to each bucket: a store that is down must not use up the budget of another one.
    let partition = format!("farsite {} {bucket}", access.endpoint.as_deref().unwrap_or(&access.region));
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
        .request_checksum_calculation(ask)
        .response_checksum_validation(compare)
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(ATTEMPTS)
                .with_initial_backoff(FIRST_BACKOFF)
                .with_max_backoff(LONGEST_BACKOFF),
        )
        .retry_partition(RetryPartition::new(partition))
        .retry_classifier(Busy)
        .timeout_config(limits(settings, 0))
        .http_client(http);
    if let Some(endpoint) = &access.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(config.build())
}

/// Time limits of an operation that moves so many bytes.
pub(super) fn limits(settings: &Settings, bytes: usize) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(settings.attempt_limit(bytes))
        .operation_timeout(settings.operation_limit(bytes))
        .build()
}

/// Answers that ask for another try and that the SDK takes for final: 429 (Ceph RGW's and many gateways' word for
/// slow down), 408, and 409 for a write that meets another one at the same moment, which AWS documents as to be retried
/// (S3 user guide, "Conditional write behavior").
#[derive(Debug)]
struct Busy;

impl ClassifyRetry for Busy {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.response().map(|answer| answer.status().as_u16()) {
            Some(429) => RetryAction::throttling_error(),
            Some(408 | 409) => RetryAction::transient_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }
    fn name(&self) -> &'static str {
        "Busy"
    }
    fn priority(&self) -> RetryClassifierPriority {
        RetryClassifierPriority::run_after(RetryClassifierPriority::transient_error_classifier())
    }
}
