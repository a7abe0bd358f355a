//! What the bucket says of itself: questions go to the server, a [`Provider`] comes out. A question that these credentials
//! may not ask, or that the server does not know, is an answer too.

use super::S3;
use crate::backend::BackendError;
use crate::backend::provider::{LargeUploads, ObjectLock, Provider, Versioning};

impl S3 {
    pub(super) async fn ask_provider(&self) -> Result<Provider, BackendError> {
        let large_uploads = if self.settings.multipart {
            match self.completion_is_conditional().await {
                Ok(true) => LargeUploads::InParts,
                Ok(false) => LargeUploads::Whole,
                Err(error) => LargeUploads::NotTold(in_short(error)?),
            }
        } else {
            LargeUploads::WholeByChoice
        };
        let object_lock = self.ask_lock().await?;
        let mut versioning = self.ask_versioning().await?;
        if let (Versioning::NotTold(_), ObjectLock::On { .. }) = (&versioning, &object_lock) {
            // There is no Object Lock without it (S3 user guide, "Locking objects with Object Lock").
            versioning = Versioning::On;
        }
        Ok(Provider {
            versioning,
            object_lock,
            lock_on_write: self.settings.lock.map(super::settings::Lock::in_words),
            large_uploads,
            checksums: self.settings.checksums.in_words(),
        })
    }

    async fn ask_versioning(&self) -> Result<Versioning, BackendError> {
        use aws_sdk_s3::types::BucketVersioningStatus as Status;
        let answer = self.client.get_bucket_versioning().bucket(&self.bucket).send().await;
        match answer.map_err(|e| self.error("asking for the versioning of", "", e)) {
            Ok(answer) => Ok(match answer.status() {
                Some(Status::Enabled) => Versioning::On,
                Some(Status::Suspended) => Versioning::Suspended,
                None => Versioning::Off,
                Some(other) => Versioning::NotTold(format!("it is {other}")),
            }),
            Err(error) => Ok(Versioning::NotTold(in_short(error)?)),
        }
    }

    async fn ask_lock(&self) -> Result<ObjectLock, BackendError> {
        let answer = self.client.get_object_lock_configuration().bucket(&self.bucket).send().await;
        match answer.map_err(|e| self.error("asking for the Object Lock of", "", e)) {
            Ok(answer) => {
                let configuration = answer.object_lock_configuration;
                let enabled = configuration.as_ref().is_some_and(|c| c.object_lock_enabled.is_some());
                if !enabled {
                    return Ok(ObjectLock::Off);
                }
                let default =
                    configuration.and_then(|c| c.rule).and_then(|r| r.default_retention).and_then(|r| {
                        let span = match (r.days, r.years) {
                            (Some(days), _) => format!("{days} days"),
                            (None, Some(years)) => format!("{years} years"),
                            (None, None) => return None,
                        };
                        let mode = r.mode.map_or_else(String::new, |m| m.as_str().to_lowercase());
                        Some(format!("{span} in {mode} mode"))
                    });
                Ok(ObjectLock::On { default })
            }
            // ObjectLockConfigurationNotFoundError.
            Err(BackendError::Missing { .. }) => Ok(ObjectLock::Off),
            Err(error) => Ok(ObjectLock::NotTold(in_short(error)?)),
        }
    }
}

/// Why a question has no answer; a store that cannot be reached is an error of its own.
fn in_short(error: BackendError) -> Result<String, BackendError> {
    match error {
        BackendError::Denied { .. } => Ok("they may not ask".into()),
        // moto wraps its answer in an element of another name.
        BackendError::Other { why, .. } if why.contains("error parsing XML") => {
            Ok("the server's answer has not the form that S3's has".into())
        }
        BackendError::Other { why, .. } | BackendError::Uncertain { why, .. } => Ok(why),
        error => Err(error),
    }
}
