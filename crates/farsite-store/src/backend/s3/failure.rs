//! From the SDK's errors to what the caller can do about them. What must hold: an answer that leaves open whether the
//! write took effect is never called a refusal, a loss or a success.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::S3;
use crate::backend::BackendError;

impl S3 {
    pub(super) fn error<E>(
        &self,
        operation: &'static str,
        key: &str,
        error: SdkError<E, HttpResponse>,
    ) -> BackendError
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let (store, key) = (self.description(), key.to_owned());
        let status = error.raw_response().map(|r| r.status().as_u16());
        let code = error.as_service_error().and_then(|e| e.code()).unwrap_or_default().to_owned();
        let why = in_words(&error);
        match (status, &error) {
            (Some(404), _) if code == "NoSuchBucket" || why.contains("NoSuchBucket") => {
                BackendError::Unreachable {
                    store,
                    operation,
                    key,
                    why: "there is no such bucket, or these credentials may not know of it".into(),
                }
            }
            (Some(416), _) => BackendError::Unreadable { store, key, why: "the object is truncated".into() },
            // The upload was completed by an earlier attempt whose answer was lost, or somebody ended it.
            (Some(404), _) if code == "NoSuchUpload" => {
                BackendError::Uncertain { store, operation, key, why }
            }
            (Some(404), _) => BackendError::Missing { store, key },
            (Some(412), _) => BackendError::Exists { store, key },
            // Somebody is writing the same key at this moment (AWS: ConditionalRequestConflict, OperationAborted):
            // whether that one arrives is open.
            (Some(409), _) => BackendError::Uncertain { store, operation, key, why },
            (Some(401 | 403), _) => BackendError::Denied { store, operation, key, why },
            (Some(507), _) => BackendError::Full { store, key, why },
            (_, _) if code == "QuotaExceeded" || code == "XMinioStorageFull" => {
                BackendError::Full { store, key, why }
            }
            // Final: the server does not know this operation.
            (Some(501), _) | (_, SdkError::ConstructionFailure(_)) => {
                BackendError::Other { store, operation, key, why }
            }
            (_, SdkError::DispatchFailure(_)) if connect_failed(&why) => {
                BackendError::Unreachable { store, operation, key, why }
            }
            (None | Some(408 | 429 | 500..=599), _) => BackendError::Uncertain { store, operation, key, why },
            _ => BackendError::Other { store, operation, key, why },
        }
    }

    pub(super) fn other(&self, operation: &'static str, key: &str, why: String) -> BackendError {
        BackendError::Other { store: self.description(), operation, key: key.to_owned(), why }
    }

    pub(super) fn uncertain(&self, operation: &'static str, key: &str, why: String) -> BackendError {
        BackendError::Uncertain { store: self.description(), operation, key: key.to_owned(), why }
    }

    pub(super) fn unsaid(&self, operation: &'static str, key: &str, what: &str) -> BackendError {
        self.other(operation, key, format!("the answer does not say {what}"))
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
pub(super) fn connect_failed(why: &str) -> bool {
    why.contains("client error (Connect)") || why.contains("HTTP connect timeout")
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
