//! Keeps uploads below the policy's bandwidth limit, which may differ by time of day. What is held back waits; the
//! store behind it sees the same calls in the same order.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use farsite_model::StoreTime;
use farsite_model::policy::Bandwidth;
use farsite_store::backend::provider::Provider;
use farsite_store::backend::{Backend, BackendError, Listed, Object, SharedBackend};
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Uploads smaller than this never wait: ledger entries and log segments are what the RPO hangs on.
const FREE_BYTES: usize = 64 << 10;

/// A store with a limit in front of it.
pub struct Throttled {
    inner: SharedBackend,
    bandwidth: Bandwidth,
    /// When the next byte may leave.
    free_at: Mutex<Instant>,
}

impl Throttled {
    /// The store itself where the policy sets no limit.
    pub fn around(inner: SharedBackend, bandwidth: Bandwidth) -> SharedBackend {
        if bandwidth.limit.is_none() && bandwidth.windows.is_empty() {
            return inner;
        }
        Arc::new(Self { inner, bandwidth, free_at: Mutex::new(Instant::now()) })
    }

    /// Waits until `bytes` may leave.
    async fn admit(&self, bytes: usize) {
        if bytes < FREE_BYTES {
            return;
        }
        let Some(limit) = self.bandwidth.limit_at(Timestamp::now()) else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / limit.0 as f64);
        let start = {
            let mut free_at = self.free_at.lock().await;
            let start = (*free_at).max(Instant::now());
            *free_at = start + takes;
            start
        };
        // The object leaves at once when its turn comes; its whole length is paid for before the next one.
        tokio::time::sleep_until(start).await;
    }
}

#[async_trait]
impl Backend for Throttled {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn clock_grain_ms(&self) -> u64 {
        self.inner.clock_grain_ms()
    }
    async fn time(&self) -> Result<StoreTime, BackendError> {
        self.inner.time().await
    }
    async fn create(&self, key: &str, bytes: Bytes) -> Result<StoreTime, BackendError> {
        self.admit(bytes.len()).await;
        self.inner.create(key, bytes).await
    }
    async fn get(&self, key: &str) -> Result<Object, BackendError> {
        self.inner.get(key).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError> {
        self.inner.get_range(key, range).await
    }
    async fn size(&self, key: &str) -> Result<u64, BackendError> {
        self.inner.size(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, BackendError> {
        self.inner.list(prefix, after).await
    }
    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.inner.delete(key).await
    }
    async fn try_overwrite(&self, key: &str, bytes: Bytes) -> Result<(), BackendError> {
        self.inner.try_overwrite(key, bytes).await
    }
    async fn provider(&self) -> Result<Option<Provider>, BackendError> {
        self.inner.provider().await
    }
    async fn locked_until(&self, key: &str) -> Result<Option<StoreTime>, BackendError> {
        self.inner.locked_until(key).await
    }
    async fn extend_lock(&self, key: &str, until: StoreTime) -> Result<(), BackendError> {
        self.inner.extend_lock(key, until).await
    }
    async fn end_abandoned_uploads(&self, older_than: Duration) -> Result<usize, BackendError> {
        self.inner.end_abandoned_uploads(older_than).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farsite_model::quantity::Rate;
    use farsite_store::backend::folder::Folder;

    #[tokio::test(start_paused = true)]
    async fn what_is_over_the_limit_waits_for_its_turn() {
        let dir = tempfile::tempdir().unwrap();
        let folder: SharedBackend = Arc::new(Folder::open(dir.path()).unwrap());
        let bandwidth = Bandwidth { limit: Some(Rate(1 << 20)), windows: Vec::new() };
        let throttled = Throttled { inner: folder, bandwidth, free_at: Mutex::new(Instant::now()) };
        let start = Instant::now();
        for _ in 0..4 {
            throttled.admit(1 << 20).await;
        }
        assert_eq!(start.elapsed().as_secs(), 3, "the first one leaves at once, each other a second later");
        throttled.admit(100).await;
        assert_eq!(start.elapsed().as_secs(), 3, "small things never wait");
    }
}
