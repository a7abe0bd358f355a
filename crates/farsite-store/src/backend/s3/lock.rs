//! Object Lock: retention that is set when an object is written, and lengthened by the standby for what live points
//! reach. What must hold: a lock is never shortened here, and it is counted by the store's clock, not by this machine's.

use std::time::Duration;

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ChecksumAlgorithm, ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode};
use farsite_model::StoreTime;
use jiff::{SignedDuration, Timestamp};

use super::S3;
use crate::backend::BackendError;

/// Probes are tried to be overwritten and deleted, and cleaned up: they are never locked.
const PROBES: &str = "probe/";

impl S3 {
    /// What is to be set on an object that is written now.
    pub(super) async fn retention(
        &self,
        key: &str,
    ) -> Result<Option<(ObjectLockMode, DateTime)>, BackendError> {
        let Some(lock) = self.settings.lock.filter(|_| !key.starts_with(PROBES)) else { return Ok(None) };
        let until = later(self.now().await?, lock.span);
        Ok(Some((lock.mode(), DateTime::from_secs(seconds_up(until)))))
    }

    /// Until when an object is locked, and how. Out of HEAD, which all servers with Object Lock answer (moto 5.2 has no
    /// GetObjectRetention). Credentials that may not know are told nothing: then the lock is set anew, which no server
    /// takes for leave to shorten it.
    pub(super) async fn locked(
        &self,
        key: &str,
    ) -> Result<Option<(ObjectLockRetentionMode, StoreTime)>, BackendError> {
        let answer = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.object(key))
            .send()
            .await
            .map_err(|e| self.error("asking for the lock of", key, e))?;
        let (Some(mode), Some(until)) =
            (answer.object_lock_mode(), super::answer::stamp(answer.object_lock_retain_until_date()))
        else {
            return Ok(None);
        };
        let mode = ObjectLockRetentionMode::from(mode.as_str());
        Ok(Some((mode, until)))
    }

    /// Locks an object until `until` at least.
    pub(super) async fn lock_until(&self, key: &str, until: StoreTime) -> Result<(), BackendError> {
        let mode = match self.locked(key).await? {
            Some((_, there)) if there.0 >= until.0 => return Ok(()),
            Some((mode, _)) => mode,
            None if self.settings.lock.is_some_and(|lock| lock.compliance) => {
                ObjectLockRetentionMode::Compliance
            }
            None => ObjectLockRetentionMode::Governance,
        };
        let retention = ObjectLockRetention::builder()
            .mode(mode)
            .retain_until_date(DateTime::from_secs(seconds_up(until.0)))
            .build();
        self.client
            .put_object_retention()
            .bucket(&self.bucket)
            .key(self.object(key))
            .retention(retention)
            .checksum_algorithm(self.settings.checksums.algorithm().unwrap_or(ChecksumAlgorithm::Crc32))
            .send()
            .await
            .map(|_| ())
            .map_err(|e| self.error("lengthening the lock of", key, e))
    }

    /// The store's time as last heard, and what has passed since; asked where none was heard yet.
    async fn now(&self) -> Result<StoreTime, BackendError> {
        let heard = *self.heard.lock().expect("no holder of this lock panics");
        match heard {
            Some((at, time)) => Ok(StoreTime(later(time, at.elapsed()))),
            None => self.ask_time().await,
        }
    }
}

/// The moment that lies `by` after `time`.
pub(super) fn after(time: StoreTime, by: Duration) -> StoreTime {
    StoreTime(later(time, by))
}

fn later(time: StoreTime, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    time.0.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Whole seconds, rounded up: a lock must not end before the moment that was meant.
fn seconds_up(time: Timestamp) -> i64 {
    time.as_second() + i64::from(time.subsec_nanosecond() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_no_earlier_than_meant() {
        let time: Timestamp = "2026-11-24T01:00:00.2Z".parse().unwrap();
        assert_eq!(seconds_up(time), time.as_second() + 1);
        assert_eq!(later(StoreTime(Timestamp::MAX), Duration::from_secs(5)), Timestamp::MAX);
    }
}
