//! Keeps uploads below the policy's bandwidth limit, which may differ by time of day. What is held back waits; the
//! store behind it sees the same calls in the same order.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use farsite_model::StoreTime;
use farsite_model::policy::Bandwidth;
use farsite_model::quantity::ByteSize;
use farsite_model::schedule::Schedule;
use farsite_store::backend::provider::Provider;
use farsite_store::backend::{Backend, BackendError, Listed, Object, SharedBackend};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Uploads smaller than this never wait: ledger entries and log segments are what the RPO hangs on.
const FREE_BYTES: usize = 64 << 10;
/// Of fewer points nobody knows what a point ships as a rule.
const LEAST_POINTS: usize = 3;

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

/// A limit is looked up so many times between two runs at most.
const LOOKS: i64 = 1440;

/// What the limit lets through between two moments; `None` while there is a stretch without a limit.
fn let_through(bandwidth: &Bandwidth, from: Timestamp, to: Timestamp) -> Option<u64> {
    let whole = to.duration_since(from);
    // Windows are minutes.
    let step = (whole / LOOKS as i32).max(SignedDuration::from_mins(1));
    let (mut at, mut bytes) = (from, 0.0);
    while at < to {
        let until = (at + step).min(to);
        bytes += bandwidth.limit_at(at)?.0 as f64 * until.duration_since(at).as_secs_f64();
        at = until;
    }
    Some(bytes as u64)
}

/// Says so when the limit does not let through, between the next run and the one after it, what a point usually ships.
pub(crate) fn shortfall(
    bandwidth: &Bandwidth,
    schedule: &Schedule,
    shipped_bytes: Vec<u64>,
    now: Timestamp,
) -> Option<String> {
    let mut shipped = shipped_bytes;
    if shipped.len() < LEAST_POINTS {
        return None;
    }
    shipped.sort_unstable();
    let usual = shipped[shipped.len() / 2];
    let next = schedule.next_after(now)?;
    let after = schedule.next_after(next)?;
    let through = let_through(bandwidth, next, after)?;
    (through < usual).then(|| {
        format!(
            "the schedule cannot be met: a point ships {} as a rule, and from {next:.0} to {after:.0} the bandwidth limit lets {} through\n  hint: raise the limit, or let runs be further apart",
            ByteSize(usual),
            ByteSize(through)
        )
    })
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
    use farsite_model::policy::Window;

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

    #[test]
    fn a_schedule_that_the_limit_of_its_hours_cannot_meet_is_said_so() {
        let schedule = Schedule::parse("*/15 * * * *", Some("UTC")).unwrap();
        let office = Window {
            name: "office-hours".into(),
            cron: Schedule::parse("* 8-17 * * *", Some("UTC")).unwrap(),
            limit: Rate(10 << 10),
        };
        let bandwidth = Bandwidth { limit: Some(Rate(1 << 20)), windows: vec![office] };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (night, day) = (at("2026-11-24T03:01:00Z"), at("2026-11-24T12:01:00Z"));
        // 15 minutes let 900 MiB through at night, and 9000 KiB by day.
        let shipped = || vec![80 << 20, 100 << 20, 90 << 20];
        assert_eq!(shortfall(&bandwidth, &schedule, shipped(), night), None);
        let words = shortfall(&bandwidth, &schedule, shipped(), day).unwrap();
        assert!(words.contains("a point ships 90MiB") && words.contains("lets 8.8MiB through"), "{words}");
        assert_eq!(shortfall(&bandwidth, &schedule, vec![90 << 20; 2], day), None, "too few points to know");
        assert_eq!(shortfall(&bandwidth, &schedule, vec![1 << 20; 5], day), None);
        // At the border of the window the two limits count for as long as each holds.
        let border = at("2026-11-24T07:50:00Z");
        let through = let_through(&bandwidth, border, border + SignedDuration::from_mins(15)).unwrap();
        assert_eq!(through, (600 << 20) + 300 * (10 << 10));
        let free = Bandwidth { limit: None, windows: bandwidth.windows.clone() };
        assert_eq!(shortfall(&free, &schedule, shipped(), night), None, "there is no limit at night");
    }
}
