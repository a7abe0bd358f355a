//! A backend with faults: every operation of the one behind it is shown to a rule, which decides its fate.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use farsite_model::StoreTime;
use farsite_store::backend::provider::Provider;
use farsite_store::backend::{Backend, BackendError, Listed, Object, SharedBackend};

/// An operation as a rule sees it.
#[derive(Debug, Clone)]
pub struct Operation<'a> {
    pub name: &'static str,
    pub key: &'a str,
    /// Counts from 1 over all operations of this backend.
    pub number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Pass,
    /// Nothing is done; the store is gone.
    Unreachable,
    /// Nothing is done; there is no room.
    Full,
    /// It is done, and the answer is lost.
    LoseAnswer,
    /// Nothing is done, and no answer comes.
    NoAnswer,
    /// The store says that it locks this object until then, and lets the lock be lengthened.
    LockedUntil(StoreTime),
    /// Nothing is done, and this process ends at once, with code 77.
    Die,
    /// It is done, and this process ends at once.
    DieDone,
}

pub type Rule = Arc<dyn Fn(&Operation) -> Fate + Send + Sync>;

pub struct FaultyBackend {
    inner: SharedBackend,
    rule: Rule,
    count: AtomicU64,
}

impl FaultyBackend {
    pub fn around(inner: SharedBackend, rule: Rule) -> Self {
        Self { inner, rule, count: AtomicU64::new(0) }
    }

    async fn meet<T>(
        &self,
        name: &'static str,
        key: &str,
        work: impl Future<Output = Result<T, BackendError>> + Send,
    ) -> Result<T, BackendError> {
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        let (store, why) = (self.inner.describe(), "a fault of the test".to_owned());
        let key_owned = key.to_owned();
        let uncertain = BackendError::Uncertain {
            store: store.clone(),
            operation: name,
            key: key_owned.clone(),
            why: why.clone(),
        };
        match (self.rule)(&Operation { name, key, number }) {
            Fate::Pass | Fate::LockedUntil(_) => work.await,
            Fate::Unreachable => {
                Err(BackendError::Unreachable { store, operation: name, key: key_owned, why })
            }
            Fate::Full => Err(BackendError::Full { store, key: key_owned, why }),
            Fate::NoAnswer => Err(uncertain),
            Fate::Die => std::process::exit(77),
            Fate::DieDone => {
                let _ = work.await;
                std::process::exit(77)
            }
            Fate::LoseAnswer => match work.await {
                Ok(_) => Err(uncertain),
                Err(error) => Err(error),
            },
        }
    }
}

#[async_trait]
impl Backend for FaultyBackend {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn clock_grain_ms(&self) -> u64 {
        self.inner.clock_grain_ms()
    }
    async fn time(&self) -> Result<StoreTime, BackendError> {
        self.meet("time", "", self.inner.time()).await
    }
    async fn create(&self, key: &str, bytes: Bytes) -> Result<StoreTime, BackendError> {
        self.meet("create", key, self.inner.create(key, bytes)).await
    }
    async fn get(&self, key: &str) -> Result<Object, BackendError> {
        self.meet("get", key, self.inner.get(key)).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError> {
        self.meet("get_range", key, self.inner.get_range(key, range)).await
    }
    async fn size(&self, key: &str) -> Result<u64, BackendError> {
        self.meet("size", key, self.inner.size(key)).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, BackendError> {
        self.meet("list", prefix, self.inner.list(prefix, after)).await
    }
    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.meet("delete", key, self.inner.delete(key)).await
    }
    async fn try_overwrite(&self, key: &str, bytes: Bytes) -> Result<(), BackendError> {
        self.meet("overwrite", key, self.inner.try_overwrite(key, bytes)).await
    }
    async fn provider(&self) -> Result<Option<Provider>, BackendError> {
        self.inner.provider().await
    }
    async fn locked_until(&self, key: &str) -> Result<Option<StoreTime>, BackendError> {
        if let Fate::LockedUntil(until) = (self.rule)(&Operation { name: "locked", key, number: 0 }) {
            return Ok(Some(until));
        }
        self.inner.locked_until(key).await
    }
    async fn extend_lock(&self, key: &str, until: StoreTime) -> Result<(), BackendError> {
        if let Fate::LockedUntil(_) = (self.rule)(&Operation { name: "lock", key, number: 0 }) {
            return Ok(());
        }
        self.meet("lock", key, self.inner.extend_lock(key, until)).await
    }
    async fn end_abandoned_uploads(&self, older_than: Duration) -> Result<usize, BackendError> {
        self.meet("end_uploads", "", self.inner.end_abandoned_uploads(older_than)).await
    }
}
